"""One shard, on one worker: batches through the model, or stored rows through SAEs, and what is stored of them."""
