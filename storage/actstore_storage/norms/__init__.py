"""Norms of a snapshot's activations: profiles, growth, separability."""
