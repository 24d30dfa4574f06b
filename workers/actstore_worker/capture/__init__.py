"""Captures: turns a request into a run whose shards are all in the bucket.

`plan` and `encode_plan` check a request, `preparing` creates the run, `coordinator` assigns its shards to the workers
of `worker_pool`, and `merging` merges their feature indexes. `shards/` is the work of one worker on one shard.
"""
