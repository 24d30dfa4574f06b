"""Runs: captures under way, one run and its stored rows, and several revisions of a model side by side."""
