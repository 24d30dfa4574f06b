"""Kinds of sites that no layer has."""

# The token's own part of what goes into layer 0, and features of an SAE.
EMBEDDING, FEATURES = "embedding", "features"
