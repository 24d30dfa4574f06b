"""The inputs of a sweep: prompts and their spans, rows of a stored run, features of an SAE."""
