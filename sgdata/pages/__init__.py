"""Render static HTML pages of builds, shards, releases, training runs and audits."""
