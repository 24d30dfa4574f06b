"""Activation patching: what is asked of a sweep, what it found, and what its corrupt prompts hide."""
