"""Sparse autoencoders: one common form for computation, and readers for several file formats.

`autoencoder.py` is independent of files. Each module in `formats/` knows the files and terms of one project, and
`parts.py` interprets them: it checks them, and folds every scale into the weights. `formats/loading.py` detects the
format.
"""
