"""What a run embedded, searched: index, queries, and a page to look at it."""
