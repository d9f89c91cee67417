"""Find weights by name: a path on this machine, or `hf:OWNER/NAME` for a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from sgdata import files, local_paths
from sgdata.errors import SettingError, SourceError

PREFIX = "hf:"
"""Begins the name of a repository: without it a mistyped path would be fetched from the owner of that name."""


def resolve(name: str | Path) -> Path:
    """Return the path of a checkpoint folder or file; one on the hub is fetched.

    Args:
        name: A path, or hf:OWNER/NAME[@REVISION] on the Hugging Face hub.

    Raises:
        SettingError: `name` is the folder of a whole run, or the hub's client is not installed.
        SourceError: There is neither such a path nor such a repository, or the folder is unfinished.
    """
    if not str(name):
        raise SettingError(f"weights {name!r}: expected a path or {PREFIX}OWNER/NAME; leave the option out for none")
    local_paths.require_local(str(name), "weights", writes=False)
    path = Path(name)
    # A run has several checkpoints; choosing one is left to the user.
    for checkpoint in (path / "checkpoint-best", path / "checkpoint-last"):
        if checkpoint.is_dir():
            raise SettingError(f"{name}: is the folder of a run; give the checkpoint in it, such as {checkpoint}")
    if path.exists():
        if (path / "card.json").is_file():
            files.require_finished(path)
        return path
    if not str(name).startswith(PREFIX):
        raise SourceError(f"{name}: no such file or folder; give a checkpoint, or {PREFIX}OWNER/NAME of the hub")
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?", str(name).removeprefix(PREFIX))
    if match is None:
        raise SourceError(f"{name}: not a name on the hub; give {PREFIX}OWNER/NAME[@REVISION]")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingError(f"{name}: the hub needs its client; pip install huggingface_hub") from None
    try:
        # Only what `cards.load` reads, so no pickles.
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # the client passes on exceptions of several libraries
        why = " ".join(str(error).split())
        raise SourceError(f"{name}: cannot be fetched from the hub ({why:.120}); check the name") from None
