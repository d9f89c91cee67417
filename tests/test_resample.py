"""Test upsampling: ramps keep their position, nodata follows the nearest source, windows do not matter, GDAL agrees."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from sgdata.rasters import resample
from sgdata.types import Array, Window


def noise(seed: int, shape: tuple[int, ...], holes: float = 0.0) -> Array:
    rng = np.random.Generator(np.random.Philox(key=seed))
    values = rng.integers(1, 10_000, shape).astype(np.uint16)
    return np.where(rng.random(shape) < holes, 0, values).astype(np.uint16)


def by_definition(coarse: Array, factor: int) -> Array:
    """Interpolate bilinearly in floating point: centres at (i + 0.5) / factor - 0.5, gaps from the nearest pixel."""
    height, width = coarse.shape
    out = np.zeros((height * factor, width * factor), np.uint16)
    for i, j in np.ndindex(*out.shape):
        own = float(coarse[i // factor, j // factor])
        y, x = (i + 0.5) / factor - 0.5, (j + 0.5) / factor - 0.5
        r, c = int(np.floor(y)), int(np.floor(x))
        total = 0.0
        for dr, dc in np.ndindex(2, 2):
            neighbour = coarse[np.clip(r + dr, 0, height - 1), np.clip(c + dc, 0, width - 1)]
            value = float(neighbour or own)
            total += value * (y - r if dr else 1 - y + r) * (x - c if dc else 1 - x + c)
        out[i, j] = np.floor(total + 0.5 + 1e-9) if own else 0
    return out


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_bilinear_is_the_definition_in_exact_integers(factor: int, holes: float) -> None:
    coarse = noise(factor, (9, 7), holes)
    np.testing.assert_array_equal(resample.upsample(coarse, factor, kernel="bilinear"), by_definition(coarse, factor))


@pytest.mark.parametrize("factor", [2, 6])
@pytest.mark.parametrize("kernel", ["bilinear", "cubic"])
def test_a_ramp_is_not_shifted(factor: int, kernel: resample.Kernel) -> None:
    ramp = np.broadcast_to(np.arange(20) * 600 + 1000, (10, 20)).astype(np.uint16)
    fine = resample.upsample(ramp, factor, kernel=kernel)
    x = (np.arange(20 * factor) + 0.5) / factor - 0.5
    inner = slice(2 * factor, -2 * factor)
    np.testing.assert_allclose(fine[:, inner], np.broadcast_to(x * 600 + 1000, fine.shape)[:, inner], atol=0.5)


@pytest.mark.parametrize("factor", [2, 6])
@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "cubic"])
def test_gdal_warp_agrees_where_all_is_valid(factor: int, kernel: resample.Kernel) -> None:
    coarse = noise(5, (12, 15))
    expected = np.zeros((12 * factor, 15 * factor), np.uint16)
    how = {"src_crs": "EPSG:32632", "dst_crs": "EPSG:32632", "resampling": Resampling[kernel]}
    with rasterio.Env():
        reproject(
            coarse,
            expected,
            src_transform=Affine(10 * factor, 0, 600000, 0, -10 * factor, 5400000),
            dst_transform=Affine(10, 0, 600000, 0, -10, 5400000),
            tolerance=0,
            **how,
        )
    ours = resample.upsample(coarse, factor, kernel=kernel)
    # GDAL rounds in floating point: exact halves may go either way.
    away = np.abs(ours.astype(int) - expected)
    if kernel == "cubic":  # at the edge of the array GDAL leaves out the missing taps, ours repeats the last pixel
        away = away[2 * factor : -2 * factor, 2 * factor : -2 * factor]
    assert away.max() <= (kernel != "nearest")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), factor=st.sampled_from([1, 2, 3, 6]), kernel=st.sampled_from(["nearest", "bilinear", "cubic"]))
def test_a_window_is_the_cut_of_the_whole(data: st.DataObject, factor: int, kernel: resample.Kernel) -> None:
    coarse = noise(9, (2, 6, 5), 0.2)
    height, width = 6 * factor, 5 * factor
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = (data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    window = Window(row=row, col=col, height=size[0], width=size[1])
    whole = resample.upsample(coarse, factor, kernel=kernel)
    np.testing.assert_array_equal(
        resample.upsample(coarse, factor, kernel=kernel, window=window), whole[(..., *window.slices)]
    )


def test_nodata_is_exactly_where_the_nearest_source_is() -> None:
    coarse = noise(3, (8, 8), 0.4)
    for kernel in ("nearest", "bilinear", "cubic"):
        fine = resample.upsample(coarse, 2, kernel=kernel)  # type: ignore[arg-type]
        np.testing.assert_array_equal(fine == 0, np.kron(coarse == 0, np.ones((2, 2), bool)))


def test_the_largest_value_survives() -> None:
    full = np.full((3, 3), 65535, np.uint16)
    for kernel in ("bilinear", "cubic"):
        assert (resample.upsample(full, 6, kernel=kernel) == 65535).all()  # type: ignore[arg-type]


def test_cubic_overshoot_stays_inside_the_type_and_off_nodata() -> None:
    step = np.repeat(np.array([[1, 1, 1, 65535, 65535, 65535]], np.uint16), 6, axis=0)
    fine = resample.upsample(step, 2, kernel="cubic")
    assert (fine[:, :4] == 1).all()
    assert (fine[:, -4:] == 65535).all()


@given(
    factor=st.integers(2, 7),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "uint16"]),
    seed=st.integers(0, 99),
)
def test_whole_planes_are_resampled_as_their_windows(
    factor: int, height: int, width: int, dtype: str, seed: int
) -> None:
    """The path for whole planes without holes gives the values of the one for windows."""
    plane = np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, (height, width), dtype, endpoint=True)
    whole, pieces = (np.zeros((height * factor, width * factor), dtype) for _ in range(2))
    resample._bilinear_whole(plane, factor, whole)
    resample._bilinear(plane, factor, 0, 0, -1, pieces)
    np.testing.assert_array_equal(whole, pieces)
