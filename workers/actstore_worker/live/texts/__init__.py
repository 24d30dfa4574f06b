"""Questions about a language model on a text, and about its weights."""
