"""The first hour with one's own file: a pipeline over it, and what a run will cost, by a sample."""
