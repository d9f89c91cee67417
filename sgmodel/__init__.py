"""SpectralGPT: the encoder, its pretraining, its downstream heads, and the programs that train them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(path: str | Path) -> nn.Module:
    """The model saved in a checkpoint folder, in evaluation mode. Raises SourceError."""
    from sgmodel.checkpoints.cards import load as load_checkpoint

    return load_checkpoint(Path(path))


def from_pretrained(name: str | Path) -> nn.Module:
    """As `load`; `name` may also be a published file, or OWNER/NAME on the HuggingFace hub. Raises SgdataError."""
    from sgmodel.checkpoints.cards import load as load_checkpoint
    from sgmodel.checkpoints.hub import found

    return load_checkpoint(found(name))
