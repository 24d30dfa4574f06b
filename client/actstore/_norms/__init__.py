"""Norms of stored activations and of weights: profiles, growth, separability, and toy models to hold them against."""
