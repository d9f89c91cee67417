"""A release: shards with everything that lets a stranger use, cite, check and trust them."""
