"""Sentinel-2 MSI: bands, product levels and the Sen2Cor scene classes.

Source: ESA Sentinel-2 User Handbook and Sentinel-2 Products Specification Document; centre wavelengths of
Sentinel-2A, rounded to 0.1 nm.
"""

from __future__ import annotations

from enum import IntEnum

from sgdata.types import Band

# Wavelength order, the order of every 12- or 13-band array of ours: B8A stands after B08, where no sort puts it.
BANDS: tuple[Band, ...] = tuple(
    Band(name=name, gsd_m=gsd_m, wavelength_nm=wavelength_nm)
    for name, gsd_m, wavelength_nm in (
        ("B01", 60, 442.7), ("B02", 10, 492.4), ("B03", 10, 559.8), ("B04", 10, 664.6), ("B05", 20, 704.1),
        ("B06", 20, 740.5), ("B07", 20, 782.8), ("B08", 10, 832.8), ("B8A", 20, 864.7), ("B09", 60, 945.1),
        ("B10", 60, 1373.5), ("B11", 20, 1613.7), ("B12", 20, 2202.4),
    )
)  # fmt: skip

BAND = {band.name: band for band in BANDS}

# B10 looks at cirrus: water vapour swallows 1375 nm before it reaches the ground, so Sen2Cor writes no L2A of it.
L2A_BANDS: tuple[str, ...] = tuple(band.name for band in BANDS if band.name != "B10")

# Reflectance per DN, both levels: QUANTIFICATION_VALUE is 10,000.
SCALE = 1e-4

# Added to DN from processing baseline 04.00 on (2022-01-25): BOA_ADD_OFFSET, RADIO_ADD_OFFSET. ESA shifted the pixels
# so that noise over dark water, which may be negative, is no longer cut off at 0.
BASELINE_OFFSET = -1000

# Also under the shift: 0 keeps its meaning, and is never shifted.
NODATA = 0


class SceneClass(IntEnum):
    """Sen2Cor scene classification (SCL), 20 m."""

    NO_DATA = 0
    SATURATED = 1
    DARK = 2
    CLOUD_SHADOW = 3
    VEGETATION = 4
    NOT_VEGETATED = 5
    WATER = 6
    UNCLASSIFIED = 7
    CLOUD_MEDIUM = 8
    CLOUD_HIGH = 9
    CIRRUS = 10
    SNOW = 11


def bands(names: tuple[str, ...]) -> tuple[Band, ...]:
    """Return the bands of these names, in order. Raises KeyError."""
    return tuple(BAND[name] for name in names)
