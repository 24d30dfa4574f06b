"""Runs: a shard's objects and the commit that makes them visible, and snapshots of commits."""
