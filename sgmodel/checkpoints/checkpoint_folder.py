"""Write a checkpoint folder and read its tensors: `model.safetensors` beside `card.json`.

Nothing here imports a model, so that programs that only save need not import them all.
"""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sgdata import files
from sgdata.errors import SourceError
from sgmodel import distributed

if TYPE_CHECKING:
    from sgmodel.models.weight_adaptation import State

WEIGHTS = "model.safetensors"
CARD = "card.json"


def save(folder: Path, model: nn.Module, card: object) -> None:
    """Write weights and card; equal weights and cards give equal bytes.

    Args:
        folder: Folder to write to.
        model: The model; in shards, all ranks must call.
        card: The card, a frozen dataclass (`cards.ModelCard`).

    Raises:
        OutputError: The folder cannot be written.
    """
    write(folder, distributed.collect(model.state_dict()), card)
    files.write_sums(folder)


def write(folder: Path, weights: State, card: object) -> None:
    """Write weights that are already gathered, and their card; the caller adds its files and then SHA256SUMS."""
    # Safetensors orders by type and name and stores no time, so the bytes depend on the weights alone.
    write_tensors(folder / WEIGHTS, weights)
    files.write(folder / CARD, files.pretty_json(card))


def write_tensors(path: Path, tensors: State) -> None:
    """Write a safetensors file with the permissions that any new file of the user has. Raises OutputError."""
    with files.replacing(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # such as a full disk, which the library does not report as an OSError
            raise OSError(" ".join(str(error).split())) from error
        temporary.chmod(mode)  # the library makes files that only their owner can read


def read_tensors(path: Path) -> State:
    """Read every tensor of a safetensors file. Raises SourceError if it is damaged or a value is not finite."""
    try:
        return finite(load_file(files.require_file(path, "a safetensors file")), path)
    except SafetensorError as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: not a whole safetensors file ({why:.200}); fetch or save it again") from None


def finite(state: State, path: Path) -> State:
    """Return weights. Raises SourceError with the name of the first that is not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            bad = int((~tensor.float().isfinite()).sum())
            raise SourceError(f"{path}: {name} has {bad} values that are NaN or infinite; take another checkpoint")
    return state


def commit() -> str | None:
    """Return the git commit of the checkout that this package runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    # Without this test git would climb further and name the commit of some other repository.
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
