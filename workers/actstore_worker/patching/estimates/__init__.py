"""Estimates effects of patches by gradients, and selects the cells that are computed."""
