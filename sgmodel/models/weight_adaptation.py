"""Adapt weights made elsewhere to a model: other prefixes, bands, patches or image sizes.

Layouts that need no reader of their own: torchvision and timm; MoCo (`module.encoder_q.`), MoCo v3
(`module.base_encoder.`), SimCLR (`backbone.`, `encoder.`), Lightning (`state_dict`), SatMAE and MAE (`model`), and
SeCo, whose ResNet is a plain list of layers (`encoder_q.0.` is the first convolution).

| weight | rule |
| --- | --- |
| first layer of a baseline | by the recipe's `FirstLayer` |
| position table | bicubic on its (row, column) grid |
| patch kernel | each value is shared out over the new values that cover it, along bands, rows and columns alike |
| spectral table | linear between the groups, which are spaced evenly over the spectrum; repeated for several times |

So a patch of one value gives the same token as before, and an enlarged patch that of the small one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from math import isqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]

FirstLayer = Literal["mean-scaled", "repeated", "new"]
"""Adaptation of a first layer over red, green and blue to other bands: the mean of the three on every band; each on
its own band by wavelength and in turn on the others; or random weights. The first two are scaled by 3 / bands, so that
the layer's output keeps its magnitude."""

RGB_NM = (665.0, 560.0, 490.0)

_FOLLOWER = re.compile("encoder_k|momentum|slow|teacher")

# Children of torchvision's ResNet in order; 2 and 3 (ReLU, pooling) have no weights.
_LISTED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def strip_prefix(state: State, wanted: Collection[str]) -> State:
    """Return the weights behind the prefix that most of the names `wanted` have, without that prefix.

    Of several encoders in a file, one that only follows another (MoCo's `encoder_k`) comes last.

    Args:
        state: Weights by the names of the file.
        wanted: Names that the model has.
    """
    plain = {
        re.sub(r"(?<=encoder_q)\.(\d)\.", lambda m: f".{_LISTED.get(m[1], m[1])}.", n): t for n, t in state.items()
    }
    votes: Counter[str] = Counter()
    for name in plain:
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        votes.update(name[:end] for end in ends if name[end:] in wanted)
    prefix = max(votes, key=lambda name: (votes[name], not _FOLLOWER.search(name)), default="")
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}


def first_layer(weight: Tensor, bands: int, how: FirstLayer, wavelengths: Sequence[float]) -> Tensor | None:
    """Adapt a convolution over red, green and blue to other bands.

    Args:
        weight: Weights (D, 3, h, w).
        bands: Number of bands.
        how: The rule, see `FirstLayer`.
        wavelengths: Centre wavelengths of the bands in nm, by which "repeated" finds red, green and blue; without them
            it begins at band 0.

    Returns:
        Weights (D, bands, h, w); None where the model's fresh ones are to stay.
    """
    if how == "new" or weight.shape[1] != len(RGB_NM):
        return None
    if how == "mean-scaled":
        return weight.mean(dim=1, keepdim=True).expand(-1, bands, -1, -1) * (3 / bands)
    source = torch.arange(bands) % 3
    if wavelengths:
        distance = (torch.tensor(wavelengths)[None] - torch.tensor(RGB_NM)[:, None]).abs()
        source[distance.argmin(dim=1)] = torch.arange(3)
    return weight[:, source] * (3 / bands)


def resize_table(table_1RD: Tensor, *, rows: int, planes: int) -> Tensor:
    """Resize a position table (1, planes x side^2, D) to `rows` rows, bicubic on its (row, column) grid."""
    width = table_1RD.shape[-1]
    side, side_to = isqrt(table_1RD.shape[1] // planes), isqrt(rows // planes)
    # Each plane is an image of `width` channels; in float32, since bicubic weights lose too much in half precision.
    grid = table_1RD.float().reshape(planes, side, side, width).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side_to, side_to), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, -1, width).to(table_1RD.dtype)


def shares(old: int, new: int) -> Tensor:
    """Return the share (new, old) of each of `old` equal intervals in each of `new` ones; columns sum to 1."""
    # Shared out, not interpolated: sums stay, and with them the magnitude of the first layer's output.
    edges = torch.arange(new + 1) * (old / new)
    starts = torch.arange(old)
    return (torch.minimum(edges[1:, None], starts + 1) - torch.maximum(edges[:-1, None], starts)).clamp(min=0)


def kernel(weight: Tensor, size: torch.Size) -> Tensor:
    """Adapt a patch kernel (D, 1, g, p, p) to `size` (D, 1, g', p', p')."""
    bands, rows, cols = (shares(old, new).to(weight) for old, new in zip(weight.shape[2:], size[2:], strict=True))
    return torch.einsum("dxijk,ai,bj,ck->dxabc", weight, bands, rows, cols)


def spectral_table(table_1GD: Tensor, rows: int, times: int) -> Tensor:
    """Adapt a spectral table (1, G, D) of one time to `rows` rows, for `times` times."""
    # In float32: weights of the interpolation lose too much in half precision.
    groups = functional.interpolate(table_1GD.float().transpose(1, 2), rows // times, mode="linear").transpose(1, 2)
    return groups.repeat(1, times, 1).to(table_1GD.dtype)
