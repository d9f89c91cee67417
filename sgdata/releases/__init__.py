"""Publish shards: card, Croissant, STAC, licences, checksums."""
