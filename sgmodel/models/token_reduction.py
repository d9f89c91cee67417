"""Fewer tokens in the deeper blocks of the encoder: merge or drop those that resemble others of their spectral group.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023: tokens are split in two halves, each token of the first
is matched with the most similar one of the second, and the most similar pairs are joined. Here similar tokens are
searched for within one spectral group at one time, and tokens themselves are compared instead of attention keys.
Attention does not weigh tokens by their size, which the authors advise against for models that are trained with
merging, and for those pretrained as masked autoencoders.

For dense heads all tokens are restored: each one adds the change that its representative went through since the
reduction to its own value before it. Without a change this is the identity.

Shape suffixes as in `encoder`; Q planes (times x spectral groups), M tokens of a plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class TokenReduction:
    """Settings of token reduction: method, kept share, and the blocks after which it happens.

    Attributes:
        method: "merge" replaces joined tokens by their mean, "drop" by the one that they resemble.
        keep: Share of the tokens of each spectral group that remains after each reduction, 0.5 to 1.
        after: Number of blocks before each reduction; 0 reduces the embedded patches.
    """

    method: Literal["merge", "drop"] = "merge"
    keep: float = 0.5
    after: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        """Check ranges. Raises SettingError."""
        if not 0.5 <= self.keep < 1:
            raise SettingError(
                f"'model.reduction.keep' is {self.keep}: expected at least 0.5 and less than 1; correct it"
            )
        if not self.after or list(self.after) != sorted(set(self.after)) or self.after[0] < 0:
            raise SettingError(
                f"'model.reduction.after' is {list(self.after)}: expected increasing numbers of blocks; correct it"
            )


def removed(tokens: int, keep: float) -> int:
    """Return how many of `tokens` tokens a reduction removes."""
    return tokens - math.ceil(round(tokens * keep, 6))


def plane_tokens(tokens: int, depth: int, reduction: TokenReduction | None) -> list[int]:
    """Return the number of tokens of a plane in each of `depth` blocks, with `tokens` before the first."""
    counts = []
    for number in range(depth):
        if reduction is not None and number in reduction.after:
            tokens -= removed(tokens, reduction.keep)
        counts.append(tokens)
    return counts


def check(reduction: TokenReduction, *, depth: int, tokens: int) -> None:
    """Refuse a reduction that an encoder of `depth` blocks and `tokens` tokens a plane cannot do.

    Raises:
        SettingError: There is no such block, or no token is removed.
    """
    if reduction.after[-1] >= depth:
        raise SettingError(
            f"'model.reduction.after' is {list(reduction.after)}: expected less than the {depth} blocks; correct it"
        )
    if plane_tokens(tokens, depth, reduction)[-1] == tokens:
        raise SettingError(
            f"model.reduction.keep is {reduction.keep}: removes none of {tokens} tokens of a group; lower it"
        )


@dataclass(frozen=True, kw_only=True)
class _Reduced:
    """A reduction that was done.

    Attributes:
        before: Tokens (N, Q, M, D) before it.
        after: Tokens (N, Q, K, D) after it.
        representative: The row of `after` that represents each row of `before`, (N, Q, M).
    """

    before: Tensor
    after: Tensor
    representative: Tensor


def run_blocks(
    blocks: Iterable[nn.Module], x_NLD: Tensor, reduction: TokenReduction, *, planes: int, class_token: bool
) -> Tensor:
    """Pass tokens through blocks, the later ones on fewer tokens, and restore all of them.

    Args:
        blocks: Transformer blocks.
        x_NLD: Tokens (N, L, D) in the order of the encoder, behind the class token if there is one, which is kept.
        reduction: Where and how far to reduce.
        planes: Number of planes, Q.
        class_token: Whether there is a class token.

    Returns:
        Tokens (N, L, D).
    """
    first, done = int(class_token), []
    shape = (len(x_NLD), planes, -1, x_NLD.shape[2])
    size_NQM = x_NLD.new_ones(len(x_NLD), planes, (x_NLD.shape[1] - first) // planes)
    for number, block in enumerate(blocks):
        if number in reduction.after:
            step, size_NQM = _reduce(x_NLD[:, first:].reshape(shape), size_NQM, reduction)
            done.append(step)
            x_NLD = torch.cat([x_NLD[:, :first], step.after.flatten(1, 2)], dim=1)
        x_NLD = block(x_NLD)
    tokens_NQMD = x_NLD[:, first:].reshape(shape)
    for step in reversed(done):
        tokens_NQMD = step.before + _rows(tokens_NQMD - step.after, step.representative)
    return torch.cat([x_NLD[:, :first], tokens_NQMD.flatten(1, 2)], dim=1)


def _reduce(x_NQMD: Tensor, size_NQM: Tensor, reduction: TokenReduction) -> tuple[_Reduced, Tensor]:
    """Join the most similar tokens of each plane; return the result and the number of tokens in each new one."""
    count = removed(x_NQMD.shape[2], reduction.keep)
    joined, rest, partner = _match(x_NQMD.detach(), count)
    (even, odd), (even_size, odd_size) = ((x[:, :, ::2], x[:, :, 1::2]) for x in (x_NQMD, size_NQM))
    # Sums over the tokens that join one of the second half, whose number may be 0 or more than 1.
    size = odd_size.scatter_add(2, partner, even_size.gather(2, joined))
    if reduction.method == "merge":
        total = _add_rows(odd * odd_size[..., None], partner, _rows(even * even_size[..., None], joined))
        odd = total / size[..., None]
    after = torch.cat([_rows(even, rest), odd], dim=2)
    left = rest.shape[2]
    # Where each token has gone: an even one by its rank among the rest, or with its partner.
    ranks = torch.arange(left, device=rest.device).expand_as(rest)
    even_rows = torch.zeros_like(even_size, dtype=torch.long)
    even_rows = even_rows.scatter(2, rest, ranks).scatter(2, joined, left + partner)
    representative = torch.empty_like(size_NQM, dtype=torch.long)
    representative[:, :, ::2] = even_rows
    representative[:, :, 1::2] = left + torch.arange(odd.shape[2], device=rest.device)
    sizes = torch.cat([even_size.gather(2, rest), size], dim=2)
    return _Reduced(before=x_NQMD, after=after, representative=representative), sizes


@torch.no_grad()
def _match(x_NQMD: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Match tokens of even place with tokens of odd place by the cosine of their difference from the plane's mean.

    Returns:
        The `count` even tokens with the most similar partners, the other even tokens, and the partners of the former.
    """
    # The mean is what all tokens have in common; with it, all are alike.
    x_NQMD = functional.normalize(x_NQMD - x_NQMD.mean(dim=2, keepdim=True), dim=-1)
    similarity, partner = (x_NQMD[:, :, ::2] @ x_NQMD[:, :, 1::2].transpose(2, 3)).max(dim=3)
    order = similarity.argsort(dim=2, descending=True, stable=True)
    joined, rest = order[:, :, :count], order[:, :, count:].sort(dim=2).values
    return joined, rest, partner.gather(2, joined)


def _flat(index_NQK: Tensor, rows: int) -> Tensor:
    """Return indices of rows within planes of `rows` rows as indices of rows of all planes."""
    planes = torch.arange(index_NQK.shape[0] * index_NQK.shape[1], device=index_NQK.device)
    return (planes.view(*index_NQK.shape[:2], 1) * rows + index_NQK).flatten()


# Whole rows are selected, since indices of single values, as `gather` takes them, cost more than a row's copy.
def _rows(x_NQMD: Tensor, index_NQK: Tensor) -> Tensor:
    """Return the rows `index_NQK` of each plane, (N, Q, K, D)."""
    n, q, m, d = x_NQMD.shape
    return x_NQMD.reshape(-1, d).index_select(0, _flat(index_NQK, m)).view(n, q, -1, d)


def _add_rows(x_NQMD: Tensor, index_NQK: Tensor, rows_NQKD: Tensor) -> Tensor:
    """Return tokens with each of `rows_NQKD` added to the row of its index."""
    n, q, m, d = x_NQMD.shape
    flat = x_NQMD.reshape(-1, d).index_add(0, _flat(index_NQK, m), rows_NQKD.reshape(-1, d))
    return flat.view(n, q, m, d)
