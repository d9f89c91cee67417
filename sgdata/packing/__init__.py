"""Pack the samples of a dataset into shards."""
