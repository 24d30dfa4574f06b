"""Ways to run a model with cells patched: whole forward passes, and fast ones that compute what a patch can change."""
