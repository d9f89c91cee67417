"""Names of the files that several kinds of output have, or that other stages look for, and of bands in them."""

from __future__ import annotations

SUMS = "SHA256SUMS"
RECIPE, CONTRACT, SUMMARY = "recipe.toml", "contract.json", "summary.json"
SIMULATION, IMAGE, PROVENANCE = "simulation.json", "image.tif", "provenance.tif"
PROVENANCE_BANDS = ("item_index", "valid_count", "days_since_1970", "score_x10000", "bright_target")
LABELS, LABEL_SOURCE, USAGE = "labels.tif", "label_source.tif", "usage.json"
PATCHES, LOCK = "patches.parquet", "segmunich.lock.json"
INDEX, QUARANTINE, AUDIT, CROISSANT = "index.parquet", "quarantine.jsonl", "audit.json", "croissant.json"
METRICS, TIMINGS, RESULTS, LEDGER = "metrics.jsonl", "timings.jsonl", "results.json", "ledger.json"
BAND_CHECK, SCORED = "fingerprints.json", "scored.parquet"
# Files and folders that contain times. SHA256SUMS omits them, so that equal runs have equal sums.
TIMED = (SUMMARY, TIMINGS, "tensorboard")
