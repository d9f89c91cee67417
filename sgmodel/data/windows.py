"""Cut samples of any size into windows of one size, for training and scoring on whole scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgdata.errors import SettingError
from sgdata.types import Array, Contract
from sgmodel.data import loader, member_layout

CACHE_BYTES = 2**30
"""Memory for decoded samples, whose windows are read in any order."""

ANY_PX = 128
"""Side of the images for a model that takes any size and was trained on samples of several sizes."""


@dataclass(frozen=True, kw_only=True)
class WindowRecipe:
    """Windows of scenes on a regular grid from the top left corner.

    Attributes:
        px: Side of a window in pixels.
        stride: Distance between windows in pixels.
        remainder: Whether the rest at the right and bottom is dropped, as released, or covered by a last window.
        once: Whether pixels that an earlier window contains are masked, so that each pixel counts once.
    """

    px: int
    stride: int
    remainder: Literal["dropped", "covered"]
    once: bool

    def __post_init__(self) -> None:
        """Refuse sizes below 1. Raises SettingError."""
        if min(self.px, self.stride) < 1:
            raise SettingError(f"windows of {self.px} px every {self.stride}: expected 1 or more of both")


def starts(side: int, recipe: WindowRecipe) -> list[int]:
    """Return the first pixel of each window along one side of a sample; a smaller side is one smaller window."""
    begins = list(range(0, max(side - recipe.px, 0) + 1, recipe.stride))
    if recipe.remainder == "covered" and begins and begins[-1] + recipe.px < side:
        begins.append(side - recipe.px)
    return begins


class WindowedSamples(loader.Samples):
    """The windows of a split, as samples of their own.

    A sample is decoded when the first of its windows is requested, and cached: the 14 training cities of OSCD take
    340 MB. Windows of smaller samples are smaller, and padded on the device like those.
    """

    def __init__(self, samples: loader.Samples, recipe: WindowRecipe) -> None:
        """Cut `samples`. Raises SettingError if they are stored in groups of bands."""
        if "image" not in samples.members and "image_before" not in samples.members:
            message = f"{samples.folder}: native shards of samples of other sizes than {recipe.px} px"
            raise SettingError(f"{message}; pack them with --layout resampled, or set augment.crop_area")
        # The constructor of Samples is not called: no file is opened, the arrays come from `samples`.
        self.folder, self.split, self.contract = samples.folder, samples.split, samples.contract
        self.samples, self.recipe, self.verify = samples, recipe, samples.verify
        rows: list[tuple[int, int, int, int, int]] = []
        for number, (height, width) in enumerate(samples.valid_size(np.arange(len(samples))).tolist()):
            across, down = starts(width, recipe), starts(height, recipe)
            for top, shown_down in zip(down, _shown(down, recipe), strict=True):
                for left, shown_across in zip(across, _shown(across, recipe), strict=True):
                    rows.append((number, top, left, shown_down, shown_across))
        self.rows: NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 5)
        self.keys = [f"{samples.keys[number]}-r{top:05d}-c{left:05d}" for number, top, left, _, _ in rows]
        self.members = {name: self._member(name, member) for name, member in samples.members.items()}
        self._decoded: dict[tuple[int, str], Array] = {}

    def _member(self, name: str, member: member_layout.MemberLayout) -> member_layout.MemberLayout:
        """Return the member of the windows of an array; that of masks can hold the value to ignore."""
        of_sample = self.rows[:, 0]
        size = np.minimum(member.shape[of_sample, -2:], self.recipe.px)
        shape, stored, dtype = np.hstack([member.shape[of_sample, :-2], size]), member.stored[of_sample], member.dtype
        if name == "mask" and self.recipe.once:
            dtype = np.promote_types(dtype, np.min_scalar_type(self.contract.label_space.ignore_index)).name
            stored = np.full(len(stored), dtype)
        return dataclasses.replace(member, shape=shape, stored=stored, dtype=dtype)

    def size(self) -> dict[str, int]:
        """Return the number of samples and of their windows."""
        return {"samples": len(self.samples), "windows": len(self)}

    def whole(self, number: int, name: str) -> Array:
        """Return one array of a sample, before it is cut. Raises SourceError."""
        array = self._decoded.get((number, name))
        if array is None:  # two threads may both decode it, to the same pixels
            array = self._decoded[number, name] = self.samples.read(number, name)
            while sum(kept.nbytes for kept in list(self._decoded.values())) > CACHE_BYTES and len(self._decoded) > 1:
                self._decoded.pop(next(iter(self._decoded)), None)
        return array

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """Copy windows into arrays, as `loader.Samples.fill` decodes samples."""
        px, space = self.recipe.px, self.contract.label_space
        for i, (number, top, left, shown_down, shown_across) in enumerate(self.rows[list(samples)].tolist()):
            for name, arrays in targets.items():
                arrays[i][...] = self.whole(number, name)[..., top : top + px, left : left + px]
                # Masked rather than counted later: an unlabelled pixel enters neither the loss nor the score.
                if name == "mask" and self.recipe.once:
                    arrays[i][:shown_down] = space.ignore_index
                    arrays[i][:, :shown_across] = space.ignore_index


def image_side(px: int, contract: Contract) -> int:
    """Return the side of the images of a model: its own `px`, or for 0 (any) that of the samples, else `ANY_PX`."""
    return px or (contract.shape[1] if contract.shape else ANY_PX)


def fit_to_windows(samples: loader.Samples, px: int) -> loader.Samples:
    """Return samples of which none is larger than `px`: as they are, or cut into windows at their own resolution."""
    if (samples.valid_size(np.arange(len(samples))) <= px).all():
        return samples
    return WindowedSamples(samples, WindowRecipe(px=px, stride=px, remainder="covered", once=False))


def _shown(begins: Sequence[int], recipe: WindowRecipe) -> list[int]:
    """Return for each window along a side how many of its first pixels the previous window contains."""
    ends = [0, *(begin + recipe.px for begin in begins[:-1])]
    return [max(0, end - begin) for end, begin in zip(ends, begins, strict=True)]
