"""Draw PNG pictures of training: true, masked and predicted images; images, labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sgdata import files
from sgdata.display import true_colour
from sgdata.types import Array

GREY = 96
GAP = 4
ENLARGED_TO = 192


def _render(image: Array, like: Array) -> Array:
    """Render (3, H, W) floats as (H, W, 3) uint8; percentiles 2 and 98 of each band of `like` become 0 and 255."""
    # All values count: normalised bands have a mean of 0.
    return true_colour.stretch(image, [true_colour.limits(band) for band in like]).transpose(1, 2, 0)


def draw_reconstruction(true: Tensor, predicted: Tensor, removed: Tensor, bands: Sequence[int]) -> list[Array]:
    """Draw a reconstruction.

    Args:
        true: (C, H, W) image.
        predicted: (C, H, W) prediction.
        removed: (C, H, W), 1 where the image was masked.
        bands: The three bands to show.

    Returns:
        Tiles (H, W, 3) uint8: the image, the masked image, the prediction, and the errors of all bands.
    """
    every, guess, hidden = (t.float().cpu().numpy() for t in (true, predicted, removed))
    image = every[bands]
    masked = np.where(hidden[bands].transpose(1, 2, 0) > 0, GREY, _render(image, image)).astype(np.uint8)
    return [_render(image, image), masked, _render(guess[bands], image), draw_errors(every, guess)]


def draw_errors(true: Array, predicted: Array) -> Array:
    """Draw the absolute error of every band (C, H, W), in order, at half size in two rows: (H, columns, 3) uint8."""
    count, height, _ = true.shape
    low, high = np.percentile(true, (2, 98), axis=(1, 2))
    # White is an error as large as the contrast of the band, so that bands of small values are comparable.
    share = np.abs(predicted - true)[:, ::2, ::2] / np.maximum(high - low, 1e-6)[:, None, None]
    columns = -(-count // 2)
    grey = np.pad(share.clip(0, 1) * 255, ((0, 2 * columns - count), (0, 0), (0, 0))).round().astype(np.uint8)
    grey[:, -1] = grey[:, :, -1] = 255  # lines between the bands
    rows = grey.reshape(2, columns, *grey.shape[1:]).transpose(0, 2, 1, 3).reshape(-1, columns * grey.shape[2])[:height]
    return rows[..., None].repeat(3, 2)


def draw_segmentation(image: Tensor, target: Tensor, predicted: Tensor, colours: Sequence[str]) -> list[Array]:
    """Draw an image (3, H, W), its labels (H, W) and their prediction (H, W); unlabelled pixels are black."""
    palette = np.zeros((max(256, len(colours) + 1), 3), np.uint8)  # the last or 255 is unlabelled
    palette[: len(colours)] = [tuple(bytes.fromhex(colour.lstrip("#"))) for colour in colours]
    true = image.float().cpu().numpy()
    maps = [palette[labels.cpu().numpy().astype(np.int64)] for labels in (target, predicted)]
    return [_render(true, true), *maps]


def write_pictures(path: Path, rows: Sequence[Sequence[Array]]) -> None:
    """Write a PNG of rows of (H, W, 3) uint8 tiles, enlarged by an integer factor, with gaps. Raises OutputError."""
    from PIL import Image

    factor = max(1, ENLARGED_TO // rows[0][0].shape[0])
    edge = ((GAP, GAP), (GAP, GAP), (0, 0))
    strips = []
    for row in rows:
        tiles = [np.pad(tile.repeat(factor, 0).repeat(factor, 1), edge, constant_values=255) for tile in row]
        strips.append(np.concatenate(tiles, axis=1))
    width = max(strip.shape[1] for strip in strips)  # samples may differ in size
    strips = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    with files.replacing(path) as temporary:
        Image.fromarray(np.concatenate(strips)).save(temporary, format="PNG")
