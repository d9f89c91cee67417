"""Size of the Earth: radius, and metres per degree of longitude and latitude."""

from __future__ import annotations

import numpy as np

from sgdata.types import Array

RADIUS_M = 6_371_000.0
"""Mean radius in metres."""
DEGREE_M = 111_195.0
"""Metres per degree of a great circle of the mean radius."""
EQUATOR_LATITUDE_M, EQUATOR_LONGITUDE_M = 110_574.0, 111_320.0
"""Metres per degree of latitude and longitude at the equator, where a degree of latitude is shortest."""
AXIS_M, ECCENTRICITY_2 = 6_378_137.0, 0.006_694_379_990_14
"""Semi-major axis in metres, and square of the first eccentricity, of the ellipsoid of WGS 84."""


def metres_per_degree(latitude: Array) -> tuple[Array, Array]:
    """Return metres per degree of longitude and of latitude, by the radii of curvature of the ellipsoid.

    Args:
        latitude: (N,) degrees.
    """
    angle = np.radians(latitude)
    root = np.sqrt(1 - ECCENTRICITY_2 * np.sin(angle) ** 2)
    normal, meridian = AXIS_M / root, AXIS_M * (1 - ECCENTRICITY_2) / root**3
    return np.radians(normal * np.cos(angle)), np.radians(meridian)
