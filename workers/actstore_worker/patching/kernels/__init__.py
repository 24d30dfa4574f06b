"""Ways to run a model with cells patched: full forward passes, and fast ones that compute only what a patch
can change.
"""
