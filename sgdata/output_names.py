"""Names of files that several kinds of output have or other stages look for, of their bands, and of other programs."""

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

PAM = ".aux.xml"
"""Ending of the file in which GDAL keeps what a raster cannot store, such as statistics and names of classes."""
STYLE = ".qml"
"""Ending of the file in which QGIS keeps the style of a raster."""
_LEFT = {
    ".DS_Store": "macOS",
    ".directory": "KDE",
    "Thumbs.db": "Windows",
    "ehthumbs.db": "Windows",
    "desktop.ini": "Windows",
}
_LEFT_ENDINGS = {
    **dict.fromkeys((STYLE, ".qmd", ".qlr", ".qgz", ".qgs", ".qgz~", ".qgs~"), "QGIS"),
    ".lyrx": "ArcGIS",
}


def program_of(name: str) -> str:
    """Return the program that writes files of this name for itself; "" if none is known, and for GDAL's (`PAM`)."""
    base = name.rpartition("/")[2]
    if base.startswith("._"):  # on file systems that are not its own
        return "macOS"
    return _LEFT.get(base) or next((program for end, program in _LEFT_ENDINGS.items() if base.endswith(end)), "")


def is_own(name: str) -> bool:
    """Return whether an output may have a file of this name itself; styles are also written by us."""
    return name.endswith(STYLE) or not program_of(name)


ZARR_METADATA = frozenset({".zgroup", ".zattrs", ".zarray", ".zmetadata"})
"""Hidden files that are part of a simulated archive."""

# The file that identifies each kind of output.
KINDS = {
    SIMULATION: "a simulated archive",
    IMAGE: "a build",
    INDEX: "shards",
    METRICS: "a training run",
    AUDIT: "an audit",
    CROISSANT: "a release",
    LEDGER: "a ledger",
}
