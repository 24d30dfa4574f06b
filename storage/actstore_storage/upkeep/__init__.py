"""Maintains a store: folds commits, merges indexes, removes runs, and checks every byte."""
