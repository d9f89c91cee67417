"""Sentinel-2 MSI: bands, product levels, offsets and the Sen2Cor scene classes.

Source: ESA Sentinel-2 User Handbook and Sentinel-2 Products Specification Document; centre wavelengths of
Sentinel-2A, rounded to 0.1 nm.
"""

from __future__ import annotations

from datetime import date
from enum import IntEnum

from sgdata.types import Band, OffsetRule, SceneClassification, Sensor


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


MSI = Sensor(
    name="Sentinel-2 MSI",
    # By wavelength, the order of all arrays of 12 or 13 bands: B8A follows B08, unlike in a sorted list of names.
    bands=tuple(
        Band(name=name, gsd_m=gsd_m, wavelength_nm=wavelength_nm)
        for name, gsd_m, wavelength_nm in (
            ("B01", 60, 442.7), ("B02", 10, 492.4), ("B03", 10, 559.8), ("B04", 10, 664.6), ("B05", 20, 704.1),
            ("B06", 20, 740.5), ("B07", 20, 782.8), ("B08", 10, 832.8), ("B8A", 20, 864.7), ("B09", 60, 945.1),
            ("B10", 60, 1373.5), ("B11", 20, 1613.7), ("B12", 20, 2202.4),
        )
    ),
    # B10 detects cirrus: water vapour absorbs 1375 nm before it reaches the ground, so Sen2Cor writes no L2A of it.
    absent={"L1C": (), "L2A": ("B10",)},
    # Both levels: QUANTIFICATION_VALUE is 10,000.
    scale=1e-4,
    nodata=0,
    # Since baseline 04.00 (2022-01-25), as BOA_ADD_OFFSET and RADIO_ADD_OFFSET: ESA adds 1000 to the pixels so that
    # noise over dark water, which may be negative, is not cut off at 0. Vegetation and water reflect less than 0.1 in
    # the test bands.
    offset=OffsetRule(value=-1000, first_baseline=(4, 0), test_bands=("B02", "B04", "B12"), dark_dn=1000),
    classes=SceneClassification(
        layer="SCL",
        gsd_m=20,
        count=len(SceneClass),
        no_data=SceneClass.NO_DATA,
        clouds=(SceneClass.CLOUD_MEDIUM, SceneClass.CLOUD_HIGH, SceneClass.CIRRUS),
        shadow=SceneClass.CLOUD_SHADOW,
        doubtful=(SceneClass.DARK, SceneClass.UNCLASSIFIED),
        offset_test=(SceneClass.VEGETATION, SceneClass.WATER),
    ),
    in_service={
        "sentinel-2a": date(2015, 7, 4),
        "sentinel-2b": date(2017, 7, 1),
        "sentinel-2c": date(2025, 1, 21),
    },
    repeat_days=10,
)  # fmt: skip

# Full width at half maximum of Sentinel-2A in nm. Not in `Band`, which contracts store.
BANDWIDTHS_NM = {
    "B01": 21, "B02": 66, "B03": 36, "B04": 31, "B05": 15, "B06": 15, "B07": 20, "B08": 106, "B8A": 21, "B09": 20,
    "B10": 31, "B11": 91, "B12": 175,
}  # fmt: skip
RED_GREEN_BLUE = ("B04", "B03", "B02")

BANDS = MSI.bands
BAND = MSI.by_name
L2A_BANDS = MSI.names("L2A")


def bands(names: tuple[str, ...]) -> tuple[Band, ...]:
    """Return bands of Sentinel-2's MSI by name.

    Args:
        names: Names such as `B02` and `B8A`.

    Returns:
        The bands in the order of `names`.

    Raises:
        KeyError: There is no band of that name.
    """
    return tuple(BAND[name] for name in names)
