"""What a sweep is asked of: prompts and their spans, rows of a stored run, features of an SAE."""
