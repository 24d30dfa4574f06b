"""Readers of SAE formats, one file for each project; `loading.py` detects the format by `sae/files.py`.

To add one: a `Signature` there, a reader here, a line in `loading.py`, and docs/reference/sae-formats.md.
"""
