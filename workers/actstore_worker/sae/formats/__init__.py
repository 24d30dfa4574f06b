"""The formats that SAEs are read from, a file each project; `loading.py` tells them apart by `sae/files.py`.

To add one: a `Signature` there, a reader here, a line in `loading.py`, and docs/reference/sae-formats.md.
"""
