"""Pictures of what a model sees and says, as PNG: true, masked, predicted; image, label, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sgdata import files
from sgdata.pages import true_colour
from sgdata.types import Array, Contract

GREY = 96
GAP = 4
ENLARGED_TO = 192


def band_indices(contract: Contract) -> list[int]:
    """Return the indices of the three bands to show as red, green and blue."""
    return true_colour.band_indices([band.name for band in contract.bands])


def stretch(image: Array, like: Array) -> Array:
    """Render (3, H, W) floats as (H, W, 3) uint8; percentiles 2 and 98 of each band of `like` become 0 and 255."""
    # All values count: normalised bands have a mean of 0.
    return true_colour.stretch(image, [true_colour.limits(band) for band in like]).transpose(1, 2, 0)


def reconstruction(true: Tensor, predicted: Tensor, removed: Tensor, bands: Sequence[int]) -> list[Array]:
    """Three (C, H, W) float tensors, `removed` 1 where the model could not see -> true, masked, predicted in the three
    `bands`, and the errors of all."""
    every, guess, hidden = (t.float().cpu().numpy() for t in (true, predicted, removed))
    image, answer, hidden = every[bands], guess[bands], hidden[bands]
    seen = np.where(hidden.transpose(1, 2, 0) > 0, GREY, stretch(image, image)).astype(np.uint8)
    return [stretch(image, image), seen, stretch(answer, image), errors(every, guess)]


def errors(true: Array, predicted: Array) -> Array:
    """(C, H, W) each -> (H, columns, 3) uint8: the absolute error of every band, in order, at half size in two rows."""
    count, height, _ = true.shape
    low, high = np.percentile(true, (2, 98), axis=(1, 2))
    # White is an error as large as the band's own contrast: bands of small values would else look better than they are.
    share = np.abs(predicted - true)[:, ::2, ::2] / np.maximum(high - low, 1e-6)[:, None, None]
    columns = -(-count // 2)
    grey = np.pad(share.clip(0, 1) * 255, ((0, 2 * columns - count), (0, 0), (0, 0))).round().astype(np.uint8)
    grey[:, -1] = grey[:, :, -1] = 255  # lines between the bands
    rows = grey.reshape(2, columns, *grey.shape[1:]).transpose(0, 2, 1, 3).reshape(-1, columns * grey.shape[2])[:height]
    return rows[..., None].repeat(3, 2)


def segmentation(image: Tensor, target: Tensor, predicted: Tensor, colours: Sequence[str]) -> list[Array]:
    """(3, H, W) floats and two (H, W) label maps -> true colour, label, prediction; unlabelled pixels black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = [tuple(bytes.fromhex(colour.lstrip("#"))) for colour in colours]
    true = image.float().cpu().numpy()
    maps = [palette[labels.cpu().numpy().astype(np.uint8)] for labels in (target, predicted)]
    return [stretch(true, true), *maps]


def write(path: Path, rows: Sequence[Sequence[Array]]) -> None:
    """One PNG of rows of (H, W, 3) uint8 tiles, enlarged by a whole factor, with gaps. Raises OutputError."""
    from PIL import Image

    factor = max(1, ENLARGED_TO // rows[0][0].shape[0])
    large = [[tile.repeat(factor, 0).repeat(factor, 1) for tile in row] for row in rows]
    edge = ((GAP, GAP), (GAP, GAP), (0, 0))
    sheet = np.concatenate(
        [np.concatenate([np.pad(t, edge, constant_values=255) for t in row], axis=1) for row in large]
    )
    with files.replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
