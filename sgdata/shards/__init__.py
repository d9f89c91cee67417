"""The shard format: tars, index, contract, statistics."""
