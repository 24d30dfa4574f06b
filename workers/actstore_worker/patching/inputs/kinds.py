"""Site kinds that belong to no layer."""

# The token's own part of layer 0's input, and features of an SAE.
EMBEDDING, FEATURES = "embedding", "features"
