"""Captures: from a request to a run whose shards are all in the bucket.

`plan` and `encode_plan` check what is asked, `preparing` makes a run of it, `coordinator` hands its shards to the
workers of `worker_pool`, and `merging` merges their indexes. What one worker does with one shard is in `shards/`.
"""
