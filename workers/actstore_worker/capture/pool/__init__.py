"""The workers of one coordinator: as many as the shards that wait need, for as long as they need them."""
