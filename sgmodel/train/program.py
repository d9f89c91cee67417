"""The type of a training program: a recipe class, an entry point and the model that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from sgmodel.train.run_paths import RunPaths

R = TypeVar("R")

ProgramName = Literal["pretrain", "contrast", "classify", "segment", "detect_change"]
"""Modules of `sgmodel.recipes` with a `PROGRAM`, each a command of `sgmodel`."""
Mode = Literal["finetune", "frozen", "linear-probe"]
"""Train all weights; the head on a frozen backbone; or one linear layer after a normalisation without weights on it."""


@dataclass(frozen=True, kw_only=True)
class CommandFacts:
    """Facts about the command of a program that are needed without importing the program.

    Attributes:
        summary: One line for the command line.
        example: Arguments of an example.
        scored: Whether its runs have a score of labels.
    """

    summary: str
    example: str
    scored: bool = True


FROM_PRETRAINED = "--shards out/shards --weights out/runs/pretrain-demo-tiny/checkpoint-last"
COMMANDS: dict[ProgramName, CommandFacts] = {
    "pretrain": CommandFacts(
        summary="Pretrain SpectralGPT as a masked autoencoder.",
        example="pretrain-demo-tiny --shards out/shards",
        scored=False,
    ),
    "contrast": CommandFacts(
        summary="Pretrain a baseline backbone by MoCo or SimCLR.",
        example="contrast-demo-moco --shards out/shards",
        scored=False,
    ),
    "classify": CommandFacts(
        summary="Fine-tune and score a scene classifier, single-label or multi-label.",
        example=f"classify-demo-tiny {FROM_PRETRAINED}",
    ),
    "segment": CommandFacts(
        summary="Fine-tune and score a semantic segmentation model.", example=f"segment-demo-tiny {FROM_PRETRAINED}"
    ),
    "detect_change": CommandFacts(
        summary="Fine-tune and score a change detector on pairs of images.",
        example="detect_change-demo-tiny --shards out/pairs",
    ),
}

if set(COMMANDS) != set(get_args(ProgramName)):
    raise TypeError(f"COMMANDS has {sorted(COMMANDS)}, ProgramName {sorted(get_args(ProgramName))}; expected the same")


@dataclass(frozen=True, kw_only=True)
class Program(Generic[R]):
    """A training program.

    Attributes:
        name: Name of the module in `sgmodel.recipes` and prefix of its recipe files.
        recipe: Class of its recipes.
        main: Runs a recipe and returns the exit code.
        model: Builds the model of a recipe for a number of classes.
        images: Number of images that one forward pass takes per sample.
        count: Counts the training samples of a recipe in a folder of shards; None where they are those of its split.
    """

    name: ProgramName
    recipe: type[R]
    main: Callable[[R, RunPaths], int]
    model: Callable[[R, int], nn.Module]
    images: int = 1
    count: Callable[[R, Path], int] | None = None


Loaders = Mapping[ProgramName, Callable[[], Program[Any]]]
"""Functions that import a program: importing torch takes seconds, so `--help` must not."""
