"""Captions as texts: their characters, words and kinds of words, how they are mended, and which of several is taken."""
