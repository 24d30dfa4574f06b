"""Activation patching: requests for sweeps, their results, and what corrupt prompts hide."""
