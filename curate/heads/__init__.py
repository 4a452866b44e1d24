"""Heads: small classifiers over embeddings, in a file format of their own, evaluated without torch."""
