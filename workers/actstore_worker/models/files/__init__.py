"""Checks the files of a model before a library parses them."""
