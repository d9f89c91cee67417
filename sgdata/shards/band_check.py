"""Do the pixels look like the bands and the level they are named? One verdict over a whole dataset.

A lake, a roof or a cloud can look like anything, so nothing is judged on one sample: the band means are pooled over
all of them, and below 100 samples the verdict is 'undecided'. The bounds hold for the published means of
fMoW-Sentinel, BigEarthNet v1 and v2, EuroSAT, OSCD and SegMunich (table `normalisation_stats`) with room to spare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sgdata.sentinel2 import MSI
from sgdata.types import BandStatistics, Contract

LEAST_SAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pooled means say: `bands` and `level` are 'as named', 'undecided', or what contradicts the names."""

    samples: int
    bands: str
    level: str

    @property
    def contradictions(self) -> tuple[str, ...]:
        """The parts of the verdict that speak against the names."""
        return tuple(text for text in (self.bands, self.level) if text not in ("as named", "undecided"))

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        return f"spectral fingerprints of {self.samples} samples: bands {self.bands}; level {self.level}"


def judge(pooled: Mapping[str, BandStatistics], samples: int, contract: Contract) -> Verdict:
    """The verdict on so many samples, from the statistics of each band over all of them, of every split."""
    if samples < LEAST_SAMPLES:
        return Verdict(samples=samples, bands="undecided", level="undecided")
    # In DN of the sensor, the unit of the bounds; fMoW stores twice that.
    means = {
        name: (band.mean + contract.offset) * contract.scale / MSI.scale for name, band in pooled.items() if band.count
    }
    return Verdict(samples=samples, bands=bands(means), level=level(means, contract.level))


def bands(means: Mapping[str, float]) -> str:
    """Whether means by band name (DN) fit the names: the near infrared where it belongs, B8A beside B08, B10 dark."""
    edge = [name for name in ("B04", "B05", "B06", "B07") if name in means]
    wrong = []
    # Vegetation's red edge: it rises from the absorption of chlorophyll at 665 nm to the plateau beyond 780 nm.
    if len(edge) > 1 and [means[name] for name in edge] != sorted(means[name] for name in edge):
        wrong.append(f"{' '.join(edge)} do not rise")
    if {"B08", "B04"} <= means.keys() and means["B08"] < 1.15 * means["B04"]:
        wrong.append("B08 is not near infrared")
    # Both on the plateau, 833 and 865 nm. EuroSAT's files hold water vapour (B09, a third of B08) at B8A's place.
    if {"B08", "B8A"} <= means.keys() and not 0.8 < means["B8A"] / max(means["B08"], 1e-9) < 1.35:
        wrong.append(f"B8A is {means['B8A']:.0f}, beside {means['B08']:.0f} of B08")
    # Water in leaves and soil takes more at 2190 nm than at 1610: 0.6 to 0.75 of it is left in every published set.
    if {"B11", "B12"} <= means.keys() and means["B12"] > 1.05 * means["B11"]:
        wrong.append("B12 is above B11")
    if means.get("B10", 0.0) > 100:
        wrong.append(f"B10 is {means['B10']:.0f}, the cirrus band sees no ground")
    return "; ".join(wrong) or ("as named" if means else "undecided")


def level(means: Mapping[str, float], declared: str) -> str:
    """Whether means by band name (DN) fit the `declared` level, from the water vapour that only L2A takes away."""
    if not {"B09", "B8A"} <= means.keys() or not means["B8A"]:
        return "undecided"
    vapour = means["B09"] / means["B8A"]  # L1C: 0.28 to 0.32; L2A: 0.99 to 1.14
    found = "L1C" if vapour < 0.55 else "L2A" if vapour > 0.8 else "undecided"
    return "as named" if found == declared else f"{found}, named {declared}" if found != "undecided" else found
