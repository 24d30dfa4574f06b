"""Sparse autoencoders: what they compute, once and in one form, and the formats that they are read from.

`autoencoder.py` knows no file. Each of `formats/` knows the files and the words of one project, and `parts.py` settles
what they mean: it checks, and folds every scale into the weights. `formats/loading.py` tells the formats apart.
"""
