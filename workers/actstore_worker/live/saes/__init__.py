"""Questions about an SAE on a text, and about the directions in its weights."""
