"""Samples of any size as windows of one size: how scenes of a city each are learned from and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgdata.errors import SettingError
from sgdata.types import Array
from sgmodel.data import loader


@dataclass(frozen=True, kw_only=True)
class WindowRecipe:
    """Windows of scenes on a regular grid from the top left corner.

    Attributes:
        px: Side of a window in pixels.
        stride: Distance between windows in pixels.
        remainder: Whether the rest at the right and bottom is dropped, as released, or covered by a last window.
        once: Whether pixels that an earlier window has are masked, so that each pixel counts once.
    """

    px: int
    stride: int
    remainder: Literal["dropped", "covered"]
    once: bool

    def __post_init__(self) -> None:
        """Raises SettingError."""
        if min(self.px, self.stride) < 1:
            raise SettingError(f"windows of {self.px} px every {self.stride}: expected 1 or more of both")


def starts(side: int, recipe: WindowRecipe) -> list[int]:
    """Where windows begin along one side of a sample."""
    found = list(range(0, side - recipe.px + 1, recipe.stride))
    if recipe.remainder == "covered" and found and found[-1] + recipe.px < side:
        found.append(side - recipe.px)
    return found


class Windows(loader.Samples):
    """The windows of a split, as samples of their own.

    A sample is decoded when the first of its windows is asked for, and kept: the 14 training cities of OSCD take
    340 MB.
    """

    def __init__(self, samples: loader.Samples, recipe: WindowRecipe) -> None:
        """Raises SettingError where a sample is smaller than a window."""
        # Not the constructor of Samples: nothing is opened, the arrays come from `samples`.
        self.folder, self.split, self.contract = samples.folder, samples.split, samples.contract
        self.samples, self.recipe = samples, recipe
        rows = []
        for number, (height, width) in enumerate(samples.valid_size(np.arange(len(samples))).tolist()):
            if min(height, width) < recipe.px:
                message = f"{samples.folder}: sample '{samples.keys[number]}' is {height} x {width} px"
                raise SettingError(f"{message}, a window {recipe.px}: choose smaller windows")
            across, down = starts(width, recipe), starts(height, recipe)
            for top, shown_down in zip(down, _shown(down, recipe), strict=True):
                rows += [
                    (number, top, left, shown_down, shown)
                    for left, shown in zip(across, _shown(across, recipe), strict=True)
                ]
        self.rows: NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 5)
        self.keys = [f"{samples.keys[number]}-r{top:05d}-c{left:05d}" for number, top, left, _, _ in rows]
        # Every window has the same sides, so a batch of them is never padded.
        square = np.full((len(rows), 2), recipe.px)
        self.members = {
            name: dataclasses.replace(
                member,
                shape=np.hstack([member.shape[self.rows[:, 0], :-2], square]),
                stored=member.stored[self.rows[:, 0]],
            )
            for name, member in samples.members.items()
        }
        self._kept: dict[tuple[int, str], Array] = {}

    def whole(self, number: int, name: str) -> Array:
        """One array of a sample, before it is cut. Raises SourceError."""
        if (number, name) not in self._kept:  # two threads may both decode it, to the same pixels
            self._kept[number, name] = self.samples.read(number, name)
        return self._kept[number, name]

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """As Samples.fill, of windows."""
        px, space = self.recipe.px, self.contract.label_space
        for i, (number, top, left, shown_down, shown_across) in enumerate(self.rows[list(samples)].tolist()):
            for name, arrays in targets.items():
                arrays[i][...] = self.whole(number, name)[..., top : top + px, left : left + px]
                # In place of counting by hand later: a pixel without label enters neither loss nor score.
                if name == "mask" and self.recipe.once:
                    arrays[i][:shown_down] = space.ignore_index
                    arrays[i][:, :shown_across] = space.ignore_index


def _shown(begins: Sequence[int], recipe: WindowRecipe) -> list[int]:
    """How many of the first pixels of each window along a side the one before it has shown."""
    ends = [0, *(begin + recipe.px for begin in begins[:-1])]
    return [max(0, end - begin) for end, begin in zip(ends, begins, strict=True)]
