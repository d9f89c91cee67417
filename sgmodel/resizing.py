"""Weights of a model of other bands made to fit: spectral tables and patch kernels.

| weight | rule |
| --- | --- |
| patch kernel | each value is shared out over the new values that cover it, along bands, rows and columns alike |
| spectral table | linear between the groups, which lie evenly over the spectrum; repeated for several times |

So a patch of one value gives the same token as before, and an enlarged patch that of the small one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def shares(old: int, new: int) -> Tensor:
    """(new, old): which part of each of `old` equal pieces of a whole lies in each of `new` ones; columns sum to 1."""
    # Shared out, not interpolated: sums stay, and with them the size of what the first layer gives.
    edges = torch.arange(new + 1) * (old / new)
    pieces = torch.arange(old)
    return (torch.minimum(edges[1:, None], pieces + 1) - torch.maximum(edges[:-1, None], pieces)).clamp(min=0)


def kernel(weight: Tensor, size: torch.Size) -> Tensor:
    """A patch kernel (D, 1, g, p, p) as one of `size` (D, 1, g', p', p')."""
    bands, rows, cols = (shares(old, new).to(weight) for old, new in zip(weight.shape[2:], size[2:], strict=True))
    return torch.einsum("dxijk,ai,bj,ck->dxabc", weight, bands, rows, cols)


def spectral_table(table_1GD: Tensor, rows: int, times: int) -> Tensor:
    """A spectral table (1, G, D) of one time as one of `rows` rows, for `times` times."""
    # In float32, as for the tables of the ground: weights of the interpolation lose too much in half precision.
    groups = functional.interpolate(table_1GD.float().transpose(1, 2), rows // times, mode="linear").transpose(1, 2)
    return groups.repeat(1, times, 1).to(table_1GD.dtype)
