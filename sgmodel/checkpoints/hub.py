"""Weights by name: a path on this machine, or a repository on the HuggingFace hub."""

from __future__ import annotations

import re
from pathlib import Path

from sgdata.errors import SettingError, SourceError


def found(name: str | Path) -> Path:
    """The checkpoint folder or file `name`; OWNER/NAME[@REVISION] is fetched from the hub where no such path exists.

    Raises SettingError, SourceError.
    """
    path = Path(name)
    # Both may be of use; which of them is meant, a run's folder does not tell.
    for held in (path / "checkpoint-best", path / "checkpoint-last"):
        if held.is_dir():
            raise SettingError(f"{name}: is the folder of a run; give the checkpoint in it, such as {held}")
    if path.exists():
        return path
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", str(name))
    if match is None:
        raise SourceError(f"{name}: no such file or folder, and not a name on the hub (OWNER/NAME)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingError(f"{name}: no such file or folder; to look on the hub, pip install huggingface_hub") from None
    try:
        # Only what `cards.load` reads: a repository may hold pickles, which nothing here would open.
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # the hub's client lets many libraries' exceptions through
        why = " ".join(str(error).split())
        raise SourceError(f"{name}: no such file or folder, and the hub gives none ({why:.120})") from None
