"""Compute the kernels of `sgdata.composite` in plain numpy, for tests and benchmarks."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np

from sgdata.composite import kernels, rules
from sgdata.types import Array


def median(observations: Array, usable: Array) -> Array:
    """Compute the median as `rules.median` does."""
    return np.floor(_middle(observations, usable) + 0.5).astype(observations.dtype)


def medoid(looked: Array, usable: Array) -> Array:
    """Return the date chosen by `rules.medoid`."""
    return _first_best(-((looked - _middle(looked, usable)) ** 2).sum(axis=1), usable)


def maxndvi(looked: Array, usable: Array) -> Array:
    """Return the date chosen by `rules.maxndvi`."""
    red, nir = looked[:, 0].astype(np.float64), looked[:, 1].astype(np.float64)
    return _first_best((nir - red) / np.maximum(nir + red, 1), usable)


def bap(looked: Array, sights: Array, days: tuple[int, ...], settings: rules.BapSettings, gsd_m: float) -> Array:
    """Return the score of `rules.bap` in floating point: (T, H, W), 0-1."""
    w_doy, w_year, w_cloud, w_haze = settings.weights
    when = [date(1970, 1, 1) + timedelta(days=day) for day in days]
    off = np.abs(np.array([d.timetuple().tm_yday for d in when]) - settings.day_of_year)
    doy = np.exp(-0.5 * (np.minimum(off, 365 - off) / settings.sigma_days) ** 2)
    year = settings.year_factor ** np.abs(np.array([d.year for d in when]) - settings.year)
    away = np.where(sights < 128, sights, 0) * float(gsd_m)
    cloud = 1 / (1 + np.exp(-10 / settings.cloud_m * (away - settings.cloud_m / 2)))
    hot = np.clip(looked[:, 0] - looked[:, 1] / 2, -1024, 1023.5)
    haze = 1 / (1 + np.exp(0.05 * (hot - settings.haze_dn)))
    dated = (w_doy * doy + w_year * year)[:, None, None]
    scores: Array = (dated + w_cloud * cloud + w_haze * haze) / sum(settings.weights)
    return scores


def geomedian(observations: Array, usable: Array) -> Array:
    """Compute `rules.geomedian` without rounding: (C, H, W) float64, all pixels through all rounds."""
    values, weight = observations.astype(np.float64), usable[:, None].astype(np.float64)
    point: Array = (values * weight).sum(axis=0) / np.maximum(weight.sum(axis=0), 1)
    for _ in range(kernels.MAX_ITERATIONS):
        away = np.sqrt(((values - point) ** 2).sum(axis=1, keepdims=True))
        pull = weight / np.maximum(away, 0.5)
        point = (values * pull).sum(axis=0) / np.maximum(pull.sum(axis=0), 1e-12)
    return point


def _first_best(quality: Array, usable: Array) -> Array:
    """Return (H, W) the usable date of highest quality (T, H, W), the first of equals, NO_VALUE where there is none."""
    best: Array = np.where(usable.any(axis=0), np.where(usable, quality, -np.inf).argmax(axis=0), kernels.NO_VALUE)
    return best


def _middle(values: Array, usable: Array) -> Array:
    """Return (C, H, W) float64: the mean of the two middle usable values of (T, C, H, W), 0 where there is none."""
    ranked = np.sort(np.where(usable[:, None], values, np.inf), axis=0)
    count = usable.sum(axis=0)[None, None]
    lower = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=0)[0]
    upper = np.take_along_axis(ranked, np.where(count > 0, count // 2, 0), axis=0)[0]
    return np.where(count[0] > 0, (lower + upper) / 2, 0.0)
