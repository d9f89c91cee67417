"""What a page says of each kind of output: builds, shards and releases, training runs, audits."""
