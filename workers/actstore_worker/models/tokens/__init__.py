"""Tokenizers by their files, and the texts of their tokens."""

# The file that decides how a text is split. It is here for code that looks for it and reads no tokenizer.
TOKENIZER = "tokenizer.json"
