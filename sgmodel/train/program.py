"""The type of a training program: a recipe class, an entry point and the model that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from sgmodel.train.run_paths import RunPaths

R = TypeVar("R")

ProgramName = Literal["pretrain", "contrast", "classify", "segment", "detect_change"]
"""Modules of `sgmodel.recipes` with a `PROGRAM`, each a command of `sgmodel`."""
Mode = Literal["finetune", "frozen", "linear-probe"]
"""Train all weights; train the head on a frozen backbone; or train one linear layer after a normalisation without
weights, on a frozen backbone."""


@dataclass(frozen=True, kw_only=True)
class Program(Generic[R]):
    """A training program.

    Attributes:
        name: Name of the module in `sgmodel.recipes` and prefix of its recipe files.
        recipe: Class of its recipes.
        main: Runs a recipe and returns the exit code.
        model: Builds the model of a recipe for a number of classes.
        images: Number of images that one forward pass takes per sample.
    """

    name: ProgramName
    recipe: type[R]
    main: Callable[[R, RunPaths], int]
    model: Callable[[R, int], nn.Module]
    images: int = 1


Loaders = Mapping[ProgramName, Callable[[], Program[Any]]]
"""Functions that import a program: importing torch takes seconds, so `--help` must not."""
