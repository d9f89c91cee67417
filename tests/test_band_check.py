from __future__ import annotations

import numpy as np
import pytest

from sgdata import package_data
from sgdata.datasets import cards
from sgdata.shards import band_check, statistics
from sgdata.types import Array

SETS = package_data.document("normalisation_stats")


def published() -> dict[str, dict[str, float]]:
    """Return the sets of band means in DN of the catalogue, by name."""
    found: dict[str, dict[str, float]] = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, dict):
            bands = {
                k: v for k, v in node.items() if isinstance(v, int | float) and k in ("B04", "B08", "B8A", "B09", "B10")
            }
            if len(bands) >= 4 and name.rpartition(".")[2] == "mean":
                found[name] = {k: float(v) for k, v in node.items() if isinstance(v, int | float)}
            for key, value in node.items():
                walk(value, f"{name}.{key}")
        elif isinstance(node, list):
            for number, value in enumerate(node):
                walk(value, f"{name}.{number}")

    walk(SETS, "")
    return found


MEANS = {
    "L1C": {"B01": 1370, "B02": 1184, "B03": 1121, "B04": 1136, "B05": 1264, "B06": 1645, "B07": 1847, "B08": 1763,
            "B8A": 1973, "B09": 583, "B10": 15, "B11": 1732, "B12": 1248},
    "L2A": {"B01": 341, "B02": 430, "B03": 614, "B04": 590, "B05": 951, "B06": 1792, "B07": 2075, "B08": 2219,
            "B8A": 2266, "B09": 2246, "B11": 1594, "B12": 1009},
}  # fmt: skip


@pytest.mark.parametrize("level", MEANS)
def test_published_means_fit_their_names_and_level(level: str) -> None:
    assert band_check.bands(MEANS[level]) == "as named"
    assert band_check.level(MEANS[level], level) == "as named"
    other = {"L1C": "L2A", "L2A": "L1C"}[level]
    assert band_check.level(MEANS[level], other) == f"{level}, named {other}"


def test_every_published_set_fits() -> None:
    sets = {name: means for name, means in published().items() if means["B04"] > 10}
    verdicts = {name: band_check.bands(means) for name, means in sets.items()}
    # SpectralGPT's numbers for EuroSAT are of another dataset, with that of B09 at the place of B10.
    assert {name for name, verdict in verdicts.items() if verdict != "as named"} == {".eurosat/spectralgpt.mean"}
    assert len(verdicts) > 4


@pytest.mark.parametrize("level", MEANS)
@pytest.mark.parametrize(
    ("one", "other"), [("B04", "B08"), ("B05", "B08"), ("B8A", "B09"), ("B8A", "B12"), ("B04", "B07")]
)
def test_swapped_bands_are_detected(level: str, one: str, other: str) -> None:
    swapped = MEANS[level] | {one: MEANS[level][other], other: MEANS[level][one]}
    verdict = band_check.bands(swapped) + band_check.level(swapped, level)
    if level == "L2A" and (one, other) == ("B8A", "B09"):
        assert verdict == "as namedas named", "the two are alike once the water vapour is taken away"
    else:
        assert verdict not in ("as namedas named", "as namedundecided")


def _counts(means: dict[str, float], pixels: int) -> Array:
    histogram = statistics.empty(len(means))
    for row, mean in enumerate(means.values()):
        histogram[row, round(mean)] = pixels
    return histogram


def test_lakes_do_not_fail_a_dataset_and_few_samples_decide_nothing() -> None:
    contract = cards.contract_of(
        "bigearthnet",
        cards.edition("bigearthnet", "v2"),
        cards.label_space("bigearthnet", "none"),
        resampling="bilinear",
        resampling_version=1,
    )
    lake = dict.fromkeys(MEANS["L2A"], 90.0)
    counts = {"train": _counts(MEANS["L2A"], 80), "val": _counts(lake, 20)}

    def judged(samples: int, *counts: Array) -> band_check.BandVerdict:
        pooled = statistics.summarise(np.sum(counts, axis=0), list(MEANS["L2A"]), contract.nodata)
        return band_check.check_band_means(pooled, samples, contract)

    assert judged(100, *counts.values()).contradictions == ()
    assert judged(99, _counts(lake, 99)).bands == "undecided"
    assert judged(100, _counts(lake, 100)).contradictions
    nothing = np.zeros_like(counts["train"])
    assert judged(100, nothing).bands == "undecided"
