"""Tokenizers by their files, and the texts of their tokens."""
