"""Attention of the first decoder block of a masked autoencoder, where mask tokens differ by their place only.

There queries, keys and values of mask tokens are the same in all images of a batch, as are the scores between them, so
that they are computed once. An image adds the pairs in which one of its visible tokens takes part. With a tenth of the
tokens visible and 8 images, a third of the scores is left; the result is the same.

Shape suffixes: N images, L places, K visible tokens, D width, A attention heads, E width of one head, F = E + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST = 1e-30
"""Least sum of exponentials, of a largest one of 1, which are precise."""


class PartlyMasked(NamedTuple):
    """Images of visible tokens, with a mask token in all other places.

    Attributes:
        visible: Visible tokens (N, K, D).
        places: Their places, (N, K).
        masks: The mask token at each place, (1, L, D).
    """

    visible: Tensor
    places: Tensor
    masks: Tensor

    def fill(self) -> Tensor:
        """Return the tokens of all places, (N, L, D)."""
        everywhere_NLD = self.masks.expand(len(self.visible), -1, -1)
        return everywhere_NLD.scatter(1, self.places.unsqueeze(-1).expand_as(self.visible), self.visible)

    def rows(self) -> Tensor:
        """Return visible tokens, then mask tokens, as those of a single image (1, N K + L, D)."""
        return torch.cat([self.visible.flatten(0, 1), self.masks[0]]).unsqueeze(0)

    def split_heads(self, rows_1RO: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Return q, k and v of visible tokens (3, N, A, K, E) and of mask tokens (3, A, L, E), of those of `rows`."""
        images, kept = self.places.shape
        visible, masks = rows_1RO.reshape(rows_1RO.shape[1], 3, heads, -1).tensor_split([images * kept])
        return visible.reshape(images, kept, *visible.shape[1:]).permute(2, 0, 3, 1, 4), masks.permute(1, 2, 0, 3)


def is_faster(visible: Tensor, tokens: int) -> bool:
    """Return whether images of so many tokens, of which `visible` (N, K, D) are visible, are faster to decode this way.

    That is on CPUs, if at most half of the scores are left. GPUs have fused attention, and compilers fuse theirs.
    """
    images, kept, _ = visible.shape
    if visible.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return 2 * (tokens + 2 * images * kept) <= images * tokens


def attend_masks(visible_NAKE: list[Tensor], masks_ALE: list[Tensor], places_NK: Tensor) -> Tensor | None:
    """Compute softmax(q k^T E^-0.5) v of the queries of mask tokens over all tokens of each image, (N, A, L, E).

    Args:
        visible_NAKE: q, k and v of visible tokens.
        masks_ALE: q, k and v of mask tokens at all places.
        places_NK: Places of the visible tokens, where mask tokens are no keys. Results are of no use there.

    Returns:
        The result; None if mask tokens have scores too far below those at other images' mask tokens.
    """
    _, k, v = visible_NAKE
    q_ALE, masks_k, masks_v = masks_ALE
    q_ALE = q_ALE * q_ALE.shape[-1] ** -0.5
    shared_ALL, own_NALK = q_ALE @ masks_k.transpose(1, 2), q_ALE @ k.transpose(2, 3)
    # A softmax over both in two parts, of which the first subtracts the largest score of any place.
    with torch.no_grad():
        shared_top_AL1 = shared_ALL.amax(-1, keepdim=True)
        top_NAL1 = torch.maximum(own_NALK.amax(-1, keepdim=True), shared_top_AL1)
    masked_NL = masks_v.new_ones(len(k), masks_v.shape[1]).scatter(1, places_NK, 0.0)
    # One product for all images: their values lie side by side, with zeros for the keys that they lack.
    values_ALNF = _append_one(masks_v).unsqueeze(2) * masked_NL.t().unsqueeze(-1)
    shared_ALNF = (shared_ALL.sub_(shared_top_AL1).exp_() @ values_ALNF.flatten(2)).view_as(values_ALNF)
    sums_NALF = shared_ALNF.permute(2, 0, 1, 3) * (shared_top_AL1 - top_NAL1).exp()
    sums_NALF = sums_NALF + own_NALK.sub_(top_NAL1).exp_() @ _append_one(v)
    total_NAL1 = sums_NALF[..., -1:]
    return None if (total_NAL1 < _SMALLEST).any() else sums_NALF[..., :-1] / total_NAL1


def _append_one(values: Tensor) -> Tensor:
    """Append a column of ones, whose weighted sum is the sum of the weights."""
    return torch.cat([values, torch.ones_like(values[..., :1])], -1)
