"""Simulate clouds, shadows, cirrus, haze, snow and Sen2Cor's classification. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sgdata.sentinel2 import SceneClass
from sgdata.simulation import noise
from sgdata.simulation.noise import Field
from sgdata.types import Array

if TYPE_CHECKING:
    from sgdata.simulation.scenarios import SimulatedScene, Weather

# DN in the order of L2A_BANDS. Droplets scatter every visible wavelength alike; B09 sinks in the water vapour above
# the cloud, B11 and B12 in the water of the drops, and more in the ice of cirrus.
CLOUD = np.array([6800, 6900, 6700, 6700, 6800, 6900, 7000, 7000, 7000, 5200, 5000, 4000], np.float32)
CIRRUS = np.array([3600, 3600, 3500, 3500, 3500, 3500, 3500, 3500, 3500, 3000, 2300, 1700], np.float32)
# Aerosol and air scatter short waves most: what haze adds falls from the coastal band to nothing in B12.
HAZE = np.array([900, 650, 420, 300, 260, 210, 180, 150, 130, 100, 40, 20], np.float32)
# Bright to the eye, black at 1.6 um: the contrast that the snow index NDSI rests on (Dozier 1989).
SNOW = np.array([7800, 8100, 8000, 7900, 7800, 7700, 7600, 7400, 7200, 7000, 800, 650], np.float32)
# Share of the light that still reaches a shadowed place: it comes from the blue sky, hence more of it in blue.
SKYLIGHT = np.array([0.55, 0.5, 0.42, 0.36, 0.34, 0.31, 0.3, 0.28, 0.27, 0.25, 0.2, 0.18], np.float32)
# Share of the snow on open ground that each land cover class holds: none on water, little under trees and on streets.
HOLD = np.array([0.35, 1, 0.8, 1, 0.3, 0, 0.7, 0.9, 0.8, 0.8, 0.85, 0.6, 0.45], np.float32)

# Opacity from which cloud, and depth from which shadow, counts as such in the true masks; below it is thin.
THICK, DEEP = 0.25, 0.35
CLOUD_BIT, SHADOW_BIT, THIN_BIT, SNOW_BIT = 1, 2, 4, 8
# Down to a thirtieth of the cloud: real outlines stay ragged at every scale, and a mask that dilates has to cope.
OCTAVES = (1, 0.5, 0.25, 0.125, 0.0625, 0.03125)


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Per 10 m pixel (H, W), 0 to 1: cloud opacity, shadow depth, cirrus opacity, haze strength, snow share.

    `glare` is the brightness of the cloud top against the usual one.
    """

    cloud: Field
    shadow: Field
    cirrus: Field
    haze: Field
    snow: Field
    glare: Field

    @property
    def bits(self) -> Array:
        """uint8: 1 cloud, 2 shadow, 4 a trace of either, cirrus or haze, 8 snow; 0: seen as it is."""
        cloud, shadow = self.cloud > THICK, self.shadow > DEEP
        thin = ((self.cloud > 0) & ~cloud) | ((self.shadow > 0) & ~shadow) | (self.cirrus > 0) | (self.haze > 0)
        bits = cloud * CLOUD_BIT + shadow * SHADOW_BIT + thin * THIN_BIT + (self.snow > 0) * SNOW_BIT
        return np.asarray(bits, np.uint8)


def _field(seed: int, weather: Weather, rows: Array, cols: Array) -> Field:
    return noise.fractal(seed, rows, cols, [weather.cell_px * octave for octave in OCTAVES], 0.62)


def threshold(seed: int, weather: Weather, shape: tuple[int, int]) -> float:
    """Return the field value exceeded by the share `weather.cloud` of the granule, from a coarse sample."""
    # Every tile must use the same level, or clouds would break at its edge: so from the granule, before any tile.
    step = max(max(shape) // 256, 1)
    field = _field(seed, weather, np.arange(0, shape[0], step), np.arange(0, shape[1], step))
    return float(np.quantile(field, 1 - weather.cloud))


def _opacity(field: Field, level: float) -> Field:
    """Return 0 below the level, rising to 1 within about a third of a standard deviation, for soft, ragged edges."""
    depth = np.clip((field - np.float32(level)) * 3.2, 0, None)
    return np.asarray(1 - np.exp(-depth * depth * 2.5 - depth * 0.4), np.float32)


def render_sky(scene: SimulatedScene, label: Array, seed: int, level: float, rows: Array, cols: Array) -> Sky:
    """Render the sky of a scene over rows and columns of the granule; `level` is its `threshold`."""
    weather = scene.weather
    shape = (len(rows), len(cols))
    zero = np.zeros(shape, np.float32)
    cloud = shadow = glare = zero
    if weather.cloud > 0:
        field = _field(seed, weather, rows, cols)
        cloud = _opacity(field, level)
        glare = np.clip(0.74 + 0.14 * (field - np.float32(level)), 0.5, 1.12)
        # A shadow falls height / tan(elevation) away from the sun; with a sun near the horizon, out of the picture.
        reach = weather.height_m / 10 / math.tan(math.radians(max(scene.sun_elevation, 15)))
        east = round(reach * math.sin(math.radians(scene.sun_azimuth)))
        north = round(reach * math.cos(math.radians(scene.sun_azimuth)))
        # A place is dark when a cloud is between it and the sun.
        dark = _opacity(_field(seed, weather, rows - north, cols + east), level)
        shadow = dark * (1 - cloud)  # a cloud hides the shadow under it
        # The exponential never reaches 0: without a floor, every pixel near a cloud would be "thin" in the truth.
        shadow[shadow < 0.02] = 0
        cloud[cloud < 0.01] = 0
    cirrus = zero
    if weather.cirrus:
        # Sheets drawn out along the upper wind: the columns are stretched fourfold.
        sheet = noise.fractal(seed + 11, rows, cols / 4, (90, 45, 20, 9))
        cirrus = np.clip((sheet - 0.1) * 0.35, 0, 0.6).astype(np.float32) * np.float32(weather.cirrus)
    haze = zero
    if weather.haze:
        haze = np.clip(noise.lattice(seed + 12, rows, cols, 400) * 0.4 + 0.2, 0, 1) * np.float32(weather.haze)
    snow = zero
    if weather.snow:
        drift = noise.fractal(seed + 13, rows, cols, (160, 40, 12, 3))
        snow = HOLD[label] * np.clip(0.8 + 0.3 * drift, 0, 1).astype(np.float32) * np.float32(weather.snow)
    return Sky(cloud=cloud, shadow=shadow, cirrus=cirrus, haze=haze, snow=snow, glare=glare)


def through_sky(ground: Field, sky: Sky) -> Field:
    """Return (12, H, W) DN of the ground through the sky, as a satellite measures it."""
    result = np.empty_like(ground)
    for band in range(12):
        # In the order in which the light meets them on its way up; what covers mixes, haze adds.
        image = ground[band] + (SNOW[band] - ground[band]) * sky.snow
        image = image * (1 - sky.shadow * (1 - SKYLIGHT[band]))
        image = image + HAZE[band] * sky.haze
        image = image + (CIRRUS[band] - image) * sky.cirrus
        result[band] = image + (CLOUD[band] * sky.glare - image) * sky.cloud
    return result


def scene_classes(image: dict[str, Field], sky: Sky, water: Field, seed: int, window: tuple[Array, Array]) -> Array:
    """Return (h, w) uint8 SCL at 20 m, with the typical errors of Sen2Cor.

    `image` holds 20 m DN of B02 B03 B04 B8A B11; `sky` and `water` (share) are at 20 m. Wrong on purpose: white roofs
    are cloud on most days, thin cloud and cloud edges are missed, dark forest is class 2, some water is shadow and
    some shadow water, cloud rims are unclassified.
    """
    rows, cols = window
    blue, red, nir, swir = image["B02"], image["B04"], image["B8A"], image["B11"]
    ndvi = (nir - red) / (nir + red)
    patch = noise.lattice(seed + 31, rows, cols, 12)
    rim = noise.lattice(seed + 32, rows, cols, 3)
    # Later lines overrule earlier ones, as in Sen2Cor: ground first, then dark things, snow, and cloud last.
    scl = np.where(ndvi > 0.36, SceneClass.VEGETATION, SceneClass.NOT_VEGETATED).astype(np.uint8)
    scl[(nir < 1650 + 100 * patch) & (red < 450) & (swir < 1000)] = SceneClass.DARK
    scl[(water > 0.6) | ((nir < 500) & (image["B03"] > nir))] = SceneClass.WATER
    scl[(water > 0.6) & (patch + 0.5 * rim > 2.0)] = SceneClass.CLOUD_SHADOW
    dark = sky.shadow + 0.06 * rim
    scl[dark > 0.30] = SceneClass.DARK
    scl[dark > 0.42] = SceneClass.CLOUD_SHADOW
    scl[(dark > 0.42) & (patch + rim > 2.6)] = SceneClass.WATER
    scl[sky.snow > 0.35] = SceneClass.SNOW
    thick = sky.cloud + 0.05 * rim
    scl[(sky.cirrus + 0.03 * rim + 0.04 * patch > 0.12)] = SceneClass.CIRRUS
    scl[thick > 0.16] = SceneClass.UNCLASSIFIED
    scl[thick > 0.22] = SceneClass.CLOUD_MEDIUM
    scl[thick > 0.62] = SceneClass.CLOUD_HIGH
    # The known trap of a brightness test: greenhouses and white halls are "cloud" on nearly every date, and a composite
    # that follows the mask alone leaves them out.
    roofs = (blue > 2600) & (sky.snow < 0.3) & (sky.cloud < 0.2)
    scl[roofs & (patch > -0.9)] = SceneClass.CLOUD_MEDIUM
    scl[roofs & (patch > -0.9) & (blue > 3400)] = SceneClass.CLOUD_HIGH
    return scl
