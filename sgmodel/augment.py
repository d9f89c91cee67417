"""Crops, flips and quarter turns on the device, each drawn from (seed, epoch, sample).

What to do is settled on the CPU from counter-based draws, as whole numbers; pixels then move by matrix
products and flips, so that CPU and GPU run the same code on the same geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgmodel import draws

ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """`crop_area` (share of the image, low and high) turns the random resized crop on; chances are 0-1."""

    crop_area: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: bool = False


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Per sample: `box` (N, 4) = top, left, height, width; then transpose, then flips, (N,) bool each."""

    box: Tensor
    transpose: Tensor
    flip_rows: Tensor
    flip_cols: Tensor


def draw(recipe: AugmentRecipe, samples: Tensor, epoch: Tensor, extent: Tensor, *, seed: int) -> Geometry:
    """The geometry of each sample (N,) in its epoch (N,); `extent` (N, 2) is its height and width. On the CPU."""
    chance = draws.uniform(samples, 3, seed=seed, epoch=epoch, stream=draws.Stream.TURN)
    turns = (chance[:, 2] * 4).long() if recipe.quarter_turns else torch.zeros_like(samples)
    # A turn by k x 90 degrees counter-clockwise = transpose where k is odd, then these flips.
    return Geometry(
        box=_boxes(recipe, samples, epoch, extent, seed=seed),
        transpose=turns % 2 == 1,
        flip_rows=(chance[:, 1] < recipe.vertical_flip) ^ ((turns == 1) | (turns == 2)),
        flip_cols=(chance[:, 0] < recipe.horizontal_flip) ^ ((turns == 2) | (turns == 3)),
    )


def centre(extent: Tensor, size: int) -> Geometry:
    """The middle size x size pixels of each image (all of a smaller one), untouched otherwise."""
    length = extent.clamp(max=size)
    still = torch.zeros(len(extent), dtype=torch.bool)
    box = torch.cat([(extent - length) // 2, length], dim=1)
    return Geometry(box=box, transpose=still, flip_rows=still, flip_cols=still)


def _boxes(recipe: AugmentRecipe, samples: Tensor, epoch: Tensor, extent: Tensor, *, seed: int) -> Tensor:
    """Random resized crop: area and log-aspect uniform, first of ten attempts that fits, else the whole image."""
    whole = torch.cat([torch.zeros_like(extent), extent], dim=1)
    if recipe.crop_area is None:
        return whole
    u = draws.uniform(samples, 2 * ATTEMPTS + 2, seed=seed, epoch=epoch, stream=draws.Stream.CROP).double()
    low, high = recipe.crop_area
    area = (low + u[:, :ATTEMPTS] * (high - low)) * extent.prod(dim=1, keepdim=True)
    log_low, log_high = (torch.tensor(a).double().log() for a in recipe.crop_aspect)
    aspect = (log_low + u[:, ATTEMPTS:-2] * (log_high - log_low)).exp()
    size = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()], dim=2).long()
    fits = ((size > 0) & (size <= extent[:, None])).all(dim=2)
    first = fits.long().argmax(dim=1)
    chosen = size[torch.arange(len(samples)), first]
    corner = (u[:, -2:] * (extent - chosen + 1)).long()
    return torch.where(fits.any(dim=1, keepdim=True), torch.cat([corner, chosen], dim=1), whole)


def images(x: Tensor, how: Geometry, size: int) -> Tensor:
    """(N, C, H, W) float -> (N, C, size, size): box, bicubic (a = -0.75, no anti-aliasing), turn and flips."""
    if not _untouched(x, how, size):
        rows = _bicubic(how.box[:, 0].to(x.device), how.box[:, 2].to(x.device), x.shape[2], size)
        cols = _bicubic(how.box[:, 1].to(x.device), how.box[:, 3].to(x.device), x.shape[3], size)
        x = rows[:, None] @ x @ cols[:, None].transpose(2, 3)
    return _turn(x, how)


def masks(y: Tensor, how: Geometry, size: int) -> Tensor:
    """(N, H, W) integer -> (N, size, size) of the same type: box, nearest pixel, turn and flips."""
    if not _untouched(y, how, size):
        rows, cols = (_nearest(how.box[:, axis], how.box[:, axis + 2], size).to(y.device) for axis in (0, 1))
        y = y[torch.arange(len(y), device=y.device)[:, None, None], rows[:, :, None], cols[:, None, :]]
    return _turn(y[:, None], how)[:, 0]


def _untouched(x: Tensor, how: Geometry, size: int) -> bool:
    """True where every box is the whole image and no pixel has to be interpolated."""
    return tuple(x.shape[-2:]) == (size, size) and bool((how.box == torch.tensor([0, 0, size, size])).all())


def _turn(x: Tensor, how: Geometry) -> Tensor:
    x = torch.where(_each(how.transpose, x), x.transpose(2, 3), x)
    x = torch.where(_each(how.flip_rows, x), x.flip(2), x)
    return torch.where(_each(how.flip_cols, x), x.flip(3), x)


def _each(chosen: Tensor, x: Tensor) -> Tensor:
    return chosen.to(x.device)[:, None, None, None]


def _nearest(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size) source index of each output pixel centre."""
    return start[:, None] + (2 * torch.arange(size) + 1) * length[:, None] // (2 * size)


def _bicubic(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source) interpolation weights, pixel centres aligned, taps clamped to the box."""
    scale = (length.float() / size)[:, None]
    at = (torch.arange(size, device=start.device).float() + 0.5) * scale - 0.5
    base = at.floor()
    t = at - base
    columns = torch.arange(source, device=start.device)
    weights = torch.zeros(len(start), size, source, device=start.device)
    for tap, weight in enumerate(_cubic(t), -1):
        inside = torch.minimum((base.long() + tap).clamp(min=0), length[:, None] - 1) + start[:, None]
        weights += weight[..., None] * (inside[..., None] == columns)
    return weights


def _cubic(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys' kernel with a = -0.75 at distances t + 1, t, 1 - t, 2 - t."""
    a = -0.75
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    return far[0], near[0], near[1], far[1]
