"""Captures one shard on one worker: runs batches through the model, or stored rows through SAEs, and stores the
results.
"""
