"""Cut samples of any size into windows of one size, for training and scoring on whole scenes."""

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
    """Return the first pixel of each window along one side of a sample."""
    begins = list(range(0, side - recipe.px + 1, recipe.stride))
    if recipe.remainder == "covered" and begins and begins[-1] + recipe.px < side:
        begins.append(side - recipe.px)
    return begins


class Windows(loader.Samples):
    """The windows of a split, as samples of their own.

    A sample is decoded when the first of its windows is requested, and cached: the 14 training cities of OSCD take
    340 MB.
    """

    def __init__(self, samples: loader.Samples, recipe: WindowRecipe) -> None:
        """Cut `samples`. Raises SettingError if a sample is smaller than a window."""
        # The constructor of Samples is not called: no file is opened, the arrays come from `samples`.
        self.folder, self.split, self.contract = samples.folder, samples.split, samples.contract
        self.samples, self.recipe = samples, recipe
        rows: list[tuple[int, int, int, int, int]] = []
        for number, (height, width) in enumerate(samples.valid_size(np.arange(len(samples))).tolist()):
            if min(height, width) < recipe.px:
                message = f"{samples.folder}: sample '{samples.keys[number]}' is {height} x {width} px"
                raise SettingError(f"{message}, a window {recipe.px}: choose smaller windows")
            across, down = starts(width, recipe), starts(height, recipe)
            for top, shown_down in zip(down, _shown(down, recipe), strict=True):
                for left, shown_across in zip(across, _shown(across, recipe), strict=True):
                    rows.append((number, top, left, shown_down, shown_across))
        self.rows: NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 5)
        self.keys = [f"{samples.keys[number]}-r{top:05d}-c{left:05d}" for number, top, left, _, _ in rows]
        # All windows have the same size, so that batches are never padded.
        square = np.full((len(rows), 2), recipe.px)
        self.members = {
            name: dataclasses.replace(
                member,
                shape=np.hstack([member.shape[self.rows[:, 0], :-2], square]),
                stored=member.stored[self.rows[:, 0]],
            )
            for name, member in samples.members.items()
        }
        self._decoded: dict[tuple[int, str], Array] = {}

    def whole(self, number: int, name: str) -> Array:
        """Return one array of a sample, before it is cut. Raises SourceError."""
        if (number, name) not in self._decoded:  # two threads may both decode it, to the same pixels
            self._decoded[number, name] = self.samples.read(number, name)
        return self._decoded[number, name]

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


def _shown(begins: Sequence[int], recipe: WindowRecipe) -> list[int]:
    """Return for each window along a side how many of its first pixels the previous window contains."""
    ends = [0, *(begin + recipe.px for begin in begins[:-1])]
    return [max(0, end - begin) for end, begin in zip(ends, begins, strict=True)]
