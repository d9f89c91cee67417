"""Turn the values of masks into indices of classes, which losses and metrics count from 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgdata.errors import SourceError
from sgdata.types import LabelSpace


def ignored_index(space: LabelSpace) -> int:
    """Return the class index of ignored pixels: outside 0..K-1, whatever value the files use.

    Args:
        space: Label space of the masks.
    """
    return max(255, len(space.ids))


def checked(space: LabelSpace, masks: Tensor, keys: Sequence[str]) -> Tensor:
    """Return masks (N, H, W) as class indices 0..K-1, or `ignored_index`.

    Args:
        space: Label space of the masks.
        masks: Masks of N samples.
        keys: Keys of the samples, for messages.

    Raises:
        SourceError: A value is not a class; the message names the samples.
    """
    indices = class_indices(space, masks)
    # Checked on the host: a device would fail later, with a message that names neither value nor sample.
    invalid = indices == UNKNOWN
    if invalid.any():
        keys = [keys[row] for row in torch.nonzero(invalid.flatten(1).any(dim=1)).flatten().tolist()]
        values = sorted(set(_signed(masks)[invalid].tolist()))[:8]
        expected = _ranges(space.ids)
        raise SourceError(
            f"masks of {', '.join(keys[:8])} hold {values}, expected classes {expected} or {space.ignore_index}; "
            "shard them again"
        )
    return indices


# Class index of a mask value that the label space does not list.
UNKNOWN = -1


def class_indices(space: LabelSpace, masks: Tensor) -> Tensor:
    """Return the position of each mask value among the ids of `space`, of any integer type: the same shape, int32.

    The value to ignore becomes `ignored_index`, every other value that is not an id becomes UNKNOWN.

    Args:
        space: Label space of the masks.
        masks: Masks of any shape.
    """
    values = _signed(masks)
    ids = torch.tensor([*space.ids, space.ignore_index], dtype=torch.int32, device=values.device)
    position = [*range(len(space.ids)), ignored_index(space)]
    ordered, order = ids.sort()
    at = torch.searchsorted(ordered, values).clamp(max=len(ids) - 1)
    indices = torch.tensor(position, dtype=torch.int32, device=values.device)[order][at]
    return torch.where(ordered[at] == values, indices, UNKNOWN)


def _signed(masks: Tensor) -> Tensor:
    """Return masks as int32, since torch has few operations for uint16."""
    return masks.to(torch.int32)


def _ranges(ids: tuple[int, ...]) -> str:
    """Return ids in words: "0 to 9" where none is left out."""
    whole = ids == tuple(range(ids[0], ids[-1] + 1)) if ids else False
    return f"{ids[0]} to {ids[-1]}" if whole else ", ".join(map(str, ids))
