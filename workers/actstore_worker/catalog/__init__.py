"""Finds models, SAEs and datasets by name: in folders, in the bucket and on the hub."""
