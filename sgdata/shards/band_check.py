"""Check whether the band means of a dataset agree with its declared bands and level.

Single samples (a lake, a roof, a cloud) say little, so the means are pooled over all samples, and below 100 samples
the verdict is 'undecided'. The published means of fMoW-Sentinel, BigEarthNet v1 and v2, EuroSAT, OSCD and SegMunich
(table `normalisation_stats`) are well within the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sgdata.sentinel2 import MSI
from sgdata.types import DISPLAY, BandStatistics, Contract

LEAST_SAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class BandVerdict:
    """Result of the check.

    Attributes:
        samples: Number of samples.
        bands: 'as named', 'undecided' or a contradiction.
        level: 'as named', 'undecided' or a contradiction.
    """

    samples: int
    bands: str
    level: str

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Texts of the contradictions."""
        return tuple(text for text in (self.bands, self.level) if text not in ("as named", "undecided"))

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        return f"spectral fingerprints of {self.samples} samples: bands {self.bands}; level {self.level}"


def check_band_means(pooled: Mapping[str, BandStatistics], samples: int, contract: Contract) -> BandVerdict:
    """Judge a dataset.

    Args:
        pooled: Statistics of each band over the samples of all splits.
        samples: Number of samples.
        contract: Contract with the declared bands, level, scale and offset.
    """
    # Values for display have no level, and stretched bands no order.
    if samples < LEAST_SAMPLES or contract.level == DISPLAY:
        return BandVerdict(samples=samples, bands="undecided", level="undecided")
    # In DN of the sensor, the unit of the bounds; shards of fMoW have half of it.
    means = {
        name: (band.mean + contract.offset) * contract.scale / MSI.scale for name, band in pooled.items() if band.count
    }
    return BandVerdict(samples=samples, bands=bands(means), level=level(means, contract.level))


def bands(means: Mapping[str, float]) -> str:
    """Check band means (DN) by name: red edge rising, B08 near infrared, B8A near B08, B12 below B11, B10 dark."""
    edge = [name for name in ("B04", "B05", "B06", "B07") if name in means]
    wrong = []
    # Red edge of vegetation: reflectance rises from chlorophyll absorption at 665 nm to the plateau above 780 nm.
    if len(edge) > 1 and [means[name] for name in edge] != sorted(means[name] for name in edge):
        wrong.append(f"{' '.join(edge)} do not rise")
    if {"B08", "B04"} <= means.keys() and means["B08"] < 1.15 * means["B04"]:
        wrong.append("B08 is not near infrared")
    # Both on the plateau, at 833 and 865 nm. In EuroSAT's files B09 (a third of B08) is in place of B8A.
    if {"B08", "B8A"} <= means.keys() and not 0.8 < means["B8A"] / max(means["B08"], 1e-9) < 1.35:
        wrong.append(f"B8A is {means['B8A']:.0f}, beside {means['B08']:.0f} of B08")
    # Water in leaves and soil absorbs more at 2190 nm than at 1610 nm: B12 / B11 is 0.6 to 0.75 in published datasets.
    if {"B11", "B12"} <= means.keys() and means["B12"] > 1.05 * means["B11"]:
        wrong.append("B12 is above B11")
    if means.get("B10", 0.0) > 100:
        wrong.append(f"B10 is {means['B10']:.0f}, the cirrus band shows no ground")
    return "; ".join(wrong) or ("as named" if means else "undecided")


def level(means: Mapping[str, float], declared: str) -> str:
    """Check band means (DN) against the `declared` level: only L2A is corrected for water vapour."""
    if not {"B09", "B8A"} <= means.keys() or not means["B8A"]:
        return "undecided"
    vapour = means["B09"] / means["B8A"]  # L1C: 0.28 to 0.32; L2A: 0.99 to 1.14
    likely = "L1C" if vapour < 0.55 else "L2A" if vapour > 0.8 else "undecided"
    if likely == declared:
        return "as named"
    return likely if likely == "undecided" else f"{likely}, named {declared}"
