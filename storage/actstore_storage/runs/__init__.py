"""Runs: a shard's objects and the commit that makes them visible, and a snapshot of what is committed."""
