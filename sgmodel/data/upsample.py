"""Upsample the bands of native shards on the device to the finest grid of a sample, bit for bit as `sgdata` does.

Only the stored integers are copied to the device, a third of the resampled bytes. The rule is that of
`sgdata.rasters.resample` (version 1), which is not imported since it compiles code; a test compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgdata.errors import SettingError
from sgdata.types import Contract

GROUPS = ("image_10m", "image_20m", "image_60m")


def images(arrays: dict[str, Tensor], valid_size: Tensor, contract: Contract, device: torch.device) -> Tensor:
    """Return the images (N, C, H, W) of a batch on `device`, as stored or upsampled from native groups.

    Args:
        arrays: Arrays of the batch: "image", or the native groups `image_10m`, ...
        valid_size: (N, 2) height and width of each sample.
        contract: Contract, which gives the order of the bands.
        device: Device of the result.

    Raises:
        SettingError: Native samples have several sizes, or the kernel is not supported.
    """
    if "image" in arrays:
        stored = arrays["image"].to(device, non_blocking=True)
        return _unified(stored, arrays) if "band_indices" in arrays else stored
    if bool((valid_size != valid_size[:1]).any()):
        raise SettingError(f"'{contract.dataset}': native shards of samples of many sizes; use --layout resampled")
    finest = min(int(name[6:-1]) for name in arrays if name in GROUPS)
    nodata = -1 if contract.nodata is None else contract.nodata
    bands: dict[str, Tensor] = {}
    for name in GROUPS:
        if name not in arrays:
            continue
        gsd = int(name[6:-1])
        coarse = arrays[name].to(device, non_blocking=True)
        fine = upsample(coarse, gsd // finest, kernel=contract.resampling, nodata=nodata)
        names = [band.name for band in contract.bands if band.gsd_m == gsd]
        bands |= zip(names, fine.unbind(1), strict=True)
    return torch.stack([bands[band.name] for band in contract.bands], dim=1)


def _unified(stored: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    """Select the bands of images (N, B, H, W) of several datasets, as float32 in one scale with NaN as no data."""
    rows = torch.arange(len(stored), device=stored.device)[:, None]
    band_indices, factor, nodata = (
        arrays[name].to(stored.device, non_blocking=True) for name in ("band_indices", "factor", "nodata")
    )
    images = stored.float()[rows, band_indices]
    return (images * factor[:, None, None, None]).masked_fill(images == nodata[:, None, None, None], float("nan"))


def upsample(coarse: Tensor, factor: int, *, kernel: str, nodata: int) -> Tensor:
    """Upsample (N, C, h, w) integers of at most 16 bits to (N, C, h factor, w factor) int32. Raises SettingError."""
    x = coarse.to(torch.int32)
    if factor == 1:
        return x
    rows, cols = (_taps(size, factor, x.device) for size in x.shape[2:])
    own = _at(x, rows[0], cols[0])
    if kernel == "nearest":
        return own
    if kernel != "bilinear":
        raise SettingError(f"native shards resampled by '{kernel}': expected nearest or bilinear")
    unit = 2 * factor
    total = torch.zeros_like(own)
    for row, row_share in ((rows[1], unit - rows[3]), (rows[2], rows[3])):
        for col, col_share in ((cols[1], unit - cols[3]), (cols[2], cols[3])):
            value = _at(x, row, col)
            # A neighbour that is nodata takes the value of the pixel's own coarse pixel.
            total += torch.where(value == nodata, own, value) * (row_share[:, None] * col_share).to(torch.int32)
    return torch.where(own == nodata, own, (total + unit * unit // 2) // (unit * unit))


def _taps(size: int, factor: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for each fine pixel its coarse pixel, the two around its centre, and the weight of the second.

    The weight is in units of 1 / (2 factor).
    """
    fine = torch.arange(size * factor, device=device)
    at = 2 * fine + 1 - factor  # centre of the fine pixel in units of 1 / (2 factor) coarse pixels
    first = at // (2 * factor)  # floor division: -1 before the first centre
    return fine // factor, first.clamp(min=0), (first + 1).clamp(max=size - 1), at % (2 * factor)


def _at(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return x[..., rows[:, None], cols]
