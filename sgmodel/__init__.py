"""SpectralGPT: the encoder, its pretraining, its downstream heads, and the programs that train them.

Every command of `sgmodel` is a function of the same name and arguments: `sgmodel.pretrain`, `sgmodel.predict`, ...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sgmodel.train.program import ProgramName

if TYPE_CHECKING:
    from torch import nn

# Read when torch is loaded. Threads that wait for others in every operator otherwise spin, and where other processes
# have their cores, spinning took more CPU seconds than the step.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Public name: command.
_COMMANDS = {
    **{name: name for name in get_args(ProgramName)},
    "convert": "convert",
    "list_recipes": "recipes",  # `recipes` is the package with the programs
    "predict": "predict",
    "reproduce": "reproduce",
    "sizes": "sizes",
}
__all__ = [*_COMMANDS, "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    if name not in _COMMANDS:
        raise AttributeError(f"module 'sgmodel' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    from importlib import import_module

    return import_module("sgmodel.cli").FUNCTIONS[_COMMANDS[name]]


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__all__"])


def load(path: str | Path) -> nn.Module:
    """Load a model on the CPU in evaluation mode.

    Args:
        path: A checkpoint folder, a `.safetensors` file beside a card, or a released file of SpectralGPT.

    Returns:
        The model that the card describes: `models.encoder.Encoder`, `models.mae.MaskedAutoencoder`,
        `models.contrastive.ContrastiveModel`, or one of the task models of `models.heads`.

    Raises:
        SourceError: The files are missing, damaged, or do not fit together.
    """
    from sgmodel.checkpoints.cards import load as load_checkpoint

    return load_checkpoint(Path(path))


def from_pretrained(name: str | Path) -> nn.Module:
    """Load a model by path as `load` does, or from the Hugging Face hub.

    Args:
        name: A path, or hf:OWNER/NAME[@REVISION] on the hub.

    Returns:
        The model on the CPU in evaluation mode.

    Raises:
        SettingError: `name` is the folder of a whole run, or the hub's client is not installed.
        SourceError: There is no such path or repository, or its files cannot be read.
    """
    from sgmodel.checkpoints.cards import load as load_checkpoint
    from sgmodel.checkpoints.hub import resolve

    return load_checkpoint(resolve(name))
