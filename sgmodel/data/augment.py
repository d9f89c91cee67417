"""Crops, flips, quarter turns, erasing and mixing on the device, each drawn from (seed, epoch, sample).

The geometry is drawn on the CPU as integers from counter-based random numbers; matrix products and flips then move the
pixels, so that CPU and GPU run the same code on the same geometry.

Mixing needs a second sample, which is the neighbour in the stream of samples: positions 2k and 2k + 1 of an epoch's
order are partners. The amount is drawn per sample. The partner and the amount therefore depend neither on the number of
ranks nor on the batch size, as long as every micro-batch has an even number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdata.errors import SettingError
from sgmodel.data import seeded_random

ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Random crops, flips and quarter turns.

    Attributes:
        crop_area: Lowest and highest area of the random resized crop as shares of the image; unset for whole images.
        crop_aspect: Lowest and highest aspect ratio (width / height) of the crop.
        horizontal_flip: Probability of a flip left to right.
        vertical_flip: Probability of a flip top to bottom.
        quarter_turns: Whether to rotate by a random multiple of 90 degrees.
    """

    crop_area: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        """Refuse ranges from which no crop can be drawn. Raises SettingError."""
        low, high = self.crop_area or (1.0, 1.0)
        if not (0 < low <= high <= 1 and 0 < self.crop_aspect[0] <= self.crop_aspect[1]):
            message = f"augment.crop_area is {self.crop_area}, crop_aspect {self.crop_aspect}"
            raise SettingError(f"{message}: expected low <= high, above 0, areas at most 1")

    @property
    def still(self) -> bool:
        """Whether a sample looks the same in every epoch."""
        return self.crop_area is None and not (self.horizontal_flip or self.vertical_flip or self.quarter_turns)


@dataclass(frozen=True, kw_only=True)
class MixRecipe:
    """Random erasing, mixup and CutMix.

    Attributes:
        erase: Probability that a box is erased, that is set to 0 after normalisation.
        erase_area: Lowest and highest area of the box as shares of the image.
        erase_aspect: Lowest and highest aspect ratio (width / height) of the box.
        mixup: Parameter a of Beta(a, a) for mixup; 0 turns it off.
        cutmix: Parameter a of Beta(a, a) for CutMix; 0 turns it off.
        cutmix_share: Probability of CutMix rather than mixup where both are on.
        chance: Probability that a sample is mixed.
    """

    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 10 / 3)
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_share: float = 0.5
    chance: float = 1.0

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed, and so need partners."""
        return max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True, kw_only=True)
class MixedPairs:
    """Mixing of each of N samples with its partner: weights and boxes.

    Attributes:
        partner: (N,) row of the partner in the batch.
        own: (N,) weight of the sample's own label; that of the partner has the rest.
        blend: (N,) weight of the sample's own pixels outside `box`.
        box: (N, 4) top, left, height, width of the box that shows the partner alone.
    """

    partner: Tensor
    own: Tensor
    blend: Tensor
    box: Tensor


@dataclass(frozen=True, kw_only=True)
class GeometricTransform:
    """Geometric transform of each of N samples: cut to the box, then transpose, then flip.

    Attributes:
        box: (N, 4) top, left, height, width in pixels.
        transpose: (N,) bool.
        flip_rows: (N,) bool.
        flip_cols: (N,) bool.
        zoom: Whether boxes are resized to the model's image; otherwise smaller ones are mirrored at their lower and
            right edge, as in prediction.
    """

    box: Tensor
    transpose: Tensor
    flip_rows: Tensor
    flip_cols: Tensor
    zoom: bool = True


def draw(recipe: AugmentRecipe, samples: Tensor, epoch: Tensor, valid_size: Tensor, *, seed: int) -> GeometricTransform:
    """Draw the geometry of each sample, on the CPU.

    Args:
        recipe: Probabilities and ranges.
        samples: (N,) int64 sample numbers.
        epoch: (N,) int64 epoch of each sample.
        valid_size: (N, 2) height and width of each sample.
        seed: Seed of the run.
    """
    chance = seeded_random.uniform(samples, 3, seed=seed, epoch=epoch, stream=seeded_random.RandomStream.TURN)
    turns = (chance[:, 2] * 4).long() if recipe.quarter_turns else torch.zeros_like(samples)
    # A rotation by k x 90 degrees counter-clockwise is a transposition where k is odd, followed by these flips.
    return GeometricTransform(
        box=_boxes(recipe, samples, epoch, valid_size, seed=seed),
        transpose=turns % 2 == 1,
        flip_rows=(chance[:, 1] < recipe.vertical_flip) ^ ((turns == 1) | (turns == 2)),
        flip_cols=(chance[:, 0] < recipe.horizontal_flip) ^ ((turns == 2) | (turns == 3)),
        zoom=recipe.crop_area is not None,
    )


def centre_crop(valid_size: Tensor, size: int) -> GeometricTransform:
    """Return the geometry of a centre crop of size x size pixels (all of a smaller image), without flips."""
    length = valid_size.clamp(max=size)
    no = torch.zeros(len(valid_size), dtype=torch.bool)
    box = torch.cat([(valid_size - length) // 2, length], dim=1)
    return GeometricTransform(box=box, transpose=no, flip_rows=no, flip_cols=no, zoom=False)


def _boxes(recipe: AugmentRecipe, samples: Tensor, epoch: Tensor, valid_size: Tensor, *, seed: int) -> Tensor:
    """Draw the boxes (N, 4) of random resized crops; the whole image where no attempt fits."""
    whole = torch.cat([torch.zeros_like(valid_size), valid_size], dim=1)
    if recipe.crop_area is None:
        return whole
    u = seeded_random.uniform(
        samples, 2 * ATTEMPTS + 2, seed=seed, epoch=epoch, stream=seeded_random.RandomStream.CROP
    ).double()
    boxes, fits = _within(valid_size, u, recipe.crop_area, recipe.crop_aspect)
    return torch.where(fits, boxes, whole)


def _within(
    valid_size: Tensor, u: Tensor, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Draw boxes (N, 4) of uniform area and log-aspect, the first of ten that fits, and whether one does (N, 1)."""
    low, high = area
    pixels = (low + u[:, :ATTEMPTS] * (high - low)) * valid_size.prod(dim=1, keepdim=True)
    log_low, log_high = (torch.tensor(a).double().log() for a in aspect)
    ratio = (log_low + u[:, ATTEMPTS : 2 * ATTEMPTS] * (log_high - log_low)).exp()
    size = torch.stack([(pixels / ratio).sqrt().round(), (pixels * ratio).sqrt().round()], dim=2).long()
    fits = ((size > 0) & (size <= valid_size[:, None])).all(dim=2)
    chosen = size[torch.arange(len(u)), fits.long().argmax(dim=1)]
    corner = (u[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2] * (valid_size - chosen + 1)).long()
    return torch.cat([corner, chosen], dim=1), fits.any(dim=1, keepdim=True)


def transform_images(x: Tensor, how: GeometricTransform, size: int) -> Tensor:
    """Crop, resize or pad, rotate and flip images.

    Args:
        x: (N, C, H, W) float images.
        how: Geometry of each image.
        size: Side of the result in pixels.

    Returns:
        (N, C, size, size) images, interpolated bicubically (a = -0.75) without anti-aliasing.
    """
    if not _is_whole(x, how, size):
        # Autocast would round pixels, and with them the targets of pretraining, to three digits.
        with torch.autocast(x.device.type, enabled=False):
            x = _cut(x, how, size) if how.zoom else _mirrored(x, how, size)
    return _turn(x, how)


def transform_valid(valid: Tensor, how: GeometricTransform, size: int) -> Tensor:
    """Return which values of `transform_images` come from known ones (N, C, H, W) bool in the box alone."""
    whole = transform_images(valid.float(), how, size)
    inside = transform_masks(torch.ones_like(valid[:, 0], dtype=torch.uint8), how, size, outside=0)
    # Weights of the interpolation sum to 1, up to rounding.
    return ((whole - 1).abs() < 1e-3) & (inside[:, None] == 1)


def _mirrored(x: Tensor, how: GeometricTransform, size: int) -> Tensor:
    """Cut the boxes from images (N, C, H, W) without resizing, mirrored beyond their lower and right edge."""
    box = how.box.to(x.device, non_blocking=True)
    step = torch.arange(size, device=x.device)
    places = []
    for axis in (0, 1):
        length = box[:, axis + 2, None]
        at = step % (2 * length - 2).clamp(min=1)
        places.append(box[:, axis, None] + at.where(at < length, 2 * length - 2 - at))
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return x[sample, :, places[0][:, :, None], places[1][:, None]].permute(0, 3, 1, 2)


def _cut(x: Tensor, how: GeometricTransform, size: int) -> Tensor:
    box = how.box.to(x.device, non_blocking=True)
    rows, cols = (_bicubic(box[:, axis], box[:, axis + 2], x.shape[axis + 2], size) for axis in (0, 1))
    return rows[:, None] @ x @ cols[:, None].transpose(2, 3)


def zoom_in(x: Tensor, valid_size: Tensor, size: int, *, share: float) -> Tensor:
    """Enlarge images (N, C, H, W) to size / `share` and crop the centre, as scenes are scored.

    With `share` 0.875 and `size` 128 an image becomes 146 px wide, of which the middle 128 are taken, as in the
    released code.

    Returns:
        (N, C, size, size) images.
    """
    # In two steps, as released: interpolation at the edge of the crop uses pixels outside it.
    large = int(size / share)
    edge = (large - size) // 2
    whole = transform_images(x, replace(centre_crop(valid_size, int(valid_size.max())), zoom=True), large)
    return whole[:, :, edge : edge + size, edge : edge + size]


def transform_masks(y: Tensor, how: GeometricTransform, size: int, outside: int = 255) -> Tensor:
    """Crop, resize by the nearest pixel, rotate and flip integer masks (N, H, W) to (N, size, size).

    Where boxes are padded instead, the padding is `outside`.
    """
    if not _is_whole(y, how, size) and not how.zoom:
        step = torch.arange(size, device=y.device)
        height, width = how.box.to(y.device, non_blocking=True)[:, 2:, None].unbind(1)
        beyond = (step >= height)[:, :, None] | (step >= width)[:, None]
        y = _mirrored(y[:, None], how, size)[:, 0].masked_fill(beyond, outside)
    elif not _is_whole(y, how, size):
        box = how.box.to(y.device, non_blocking=True)
        rows, cols = (_nearest(box[:, axis], box[:, axis + 2], size) for axis in (0, 1))
        y = y[torch.arange(len(y), device=y.device)[:, None, None], rows[:, :, None], cols[:, None, :]]
    return _turn(y[:, None], how)[:, 0]


def _is_whole(x: Tensor, how: GeometricTransform, size: int) -> bool:
    """Return whether every box is the whole image, so that no pixel has to be interpolated."""
    return tuple(x.shape[-2:]) == (size, size) and bool((how.box == torch.tensor([0, 0, size, size])).all())


def _turn(x: Tensor, how: GeometricTransform) -> Tensor:
    x = torch.where(_each(how.transpose, x), x.transpose(2, 3), x)
    x = torch.where(_each(how.flip_rows, x), x.flip(2), x)
    return torch.where(_each(how.flip_cols, x), x.flip(3), x)


def _each(chosen: Tensor, x: Tensor) -> Tensor:
    return chosen.to(x.device, non_blocking=True)[:, None, None, None]


def _nearest(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the (N, size) source index of each output pixel centre."""
    return start[:, None] + (2 * torch.arange(size, device=start.device) + 1) * length[:, None] // (2 * size)


def _bicubic(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Return (N, size, source) interpolation weights, pixel centres aligned, taps clamped to the box."""
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
    """Evaluate Keys' kernel with a = -0.75 at distances t + 1, t, 1 - t, 2 - t."""
    a = -0.75
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    return far[0], near[0], near[1], far[1]


# --- erasing and mixing --------------------------------------------------------------------


def erase(x: Tensor, recipe: MixRecipe, samples: Tensor, epoch: Tensor, *, seed: int) -> Tensor:
    """Set a random box of some images (N, C, H, W) to 0 (Zhong et al., "Random Erasing", AAAI 2020)."""
    if not recipe.erase:
        return x
    count = 2 * ATTEMPTS + 3
    u = seeded_random.uniform(samples, count, seed=seed, epoch=epoch, stream=seeded_random.RandomStream.ERASE).double()
    # Areas are shares of the cropped input, not of the scene.
    valid_size = torch.tensor(x.shape[-2:]).expand(len(x), 2)
    boxes, fits = _within(valid_size, u, recipe.erase_area, recipe.erase_aspect)
    chosen = fits & (u[:, -1:] < recipe.erase)
    return x.masked_fill(_inside(torch.where(chosen, boxes, 0), x), 0.0)


def draw_mix(recipe: MixRecipe, samples: Tensor, epoch: Tensor, size: int, *, seed: int) -> MixedPairs:
    """Draw how each sample is mixed with its partner, on the CPU.

    Sources: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    # Slow to import, and only mixing needs an inverse of the Beta distribution.
    from scipy.special import betaincinv

    u = seeded_random.uniform(samples, 5, seed=seed, epoch=epoch, stream=seeded_random.RandomStream.MIX).double()
    mixed = (u[:, 0] < recipe.chance) & torch.tensor(recipe.mixes)
    share = recipe.cutmix_share if recipe.mixup and recipe.cutmix else float(recipe.cutmix > 0)
    cut = u[:, 1] < share
    # Alpha 0 is never used, but the inverse must not fail on it.
    alpha = torch.where(cut, recipe.cutmix, recipe.mixup).clamp(min=1e-9)
    blend = torch.from_numpy(betaincinv(alpha.numpy(), alpha.numpy(), u[:, 2].numpy()))
    # The box of CutMix: its sides are sqrt(1 - lambda) of the image's, its centre is uniform, it is cut at the edges.
    half = ((1 - blend).sqrt() * size).long()[:, None] // 2
    middle = (u[:, 3:] * size).long()
    corner, end = (middle - half).clamp(min=0), (middle + half).clamp(max=size)
    box = torch.where((mixed & cut)[:, None], torch.cat([corner, end - corner], dim=1), 0)
    blend = torch.where(mixed & ~cut, blend, 1.0)
    rows = torch.arange(len(samples))
    # The last of an odd number of samples is its own partner, so that it is not changed.
    partner = torch.where(rows ^ 1 < len(rows), rows ^ 1, rows)
    # From the box after it was cut at the edges: its area is the visible part of the partner.
    own = torch.where(cut, 1 - box[:, 2:].prod(dim=1) / size**2, blend)
    return MixedPairs(partner=partner, own=own.float(), blend=blend.float(), box=box)


def mix(x: Tensor, how: MixedPairs) -> Tensor:
    """Mix images (N, C, H, W) with their partners."""
    other = x[how.partner.to(x.device, non_blocking=True)]
    blend = how.blend.to(x.device, non_blocking=True)[:, None, None, None]
    return torch.where(_inside(how.box, x), other, blend * x + (1 - blend) * other)


def mix_targets(y: Tensor, how: MixedPairs) -> Tensor:
    """Mix targets (N, K), shares of classes, in the proportions of the pixels."""
    own = how.own.to(y.device, non_blocking=True)[:, None]
    return own * y + (1 - own) * y[how.partner.to(y.device, non_blocking=True)]


def _inside(box: Tensor, x: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool, true within each box."""
    top, left, height, width = box.to(x.device, non_blocking=True)[:, :, None].unbind(1)
    rows, cols = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    inside = ((rows >= top) & (rows < top + height))[:, :, None] & ((cols >= left) & (cols < left + width))[:, None]
    return inside[:, None]
