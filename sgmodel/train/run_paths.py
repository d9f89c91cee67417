"""Paths and machine settings of a training run, resolved from command-line options."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from sgdata import output_names
from sgdata.errors import SettingError
from sgdata.shards import contracts, join_shards
from sgmodel.data import tar_source


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Paths and machine settings of a training run; of these only `threads` changes the numbers.

    Attributes:
        shards: The first folder of shards given; programs read `joined`, or `named` by stages and shares.
        out: Folder of the run.
        named: All folders of shards by name.
        weights: Checkpoint folder or weight file to start from.
        beside: Finished run on another split, whose score the card shows beside that of this run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        parallel: "ddp" keeps a whole model on each process, "fsdp" shards it.
        threads: CPU threads of one operation.
        workers: Threads that decode samples.
        save_minutes: Minutes between two checkpoints.
        stop_after: Number of steps after which to stop, None for all.
        fresh: Whether to remove an existing run in `out`.
        dry_run: Whether to print the size of the run and exit.
        measure_peak: Whether to measure the rate of the device by a matrix product, in place of the table of GPUs.
    """

    shards: Path
    out: Path
    named: dict[str, Path] = field(default_factory=dict)
    weights: Path | None = None
    beside: Path | None = None
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    threads: int = 2
    workers: int = 2
    save_minutes: float = 10.0
    stop_after: int | None = None
    fresh: bool = False
    dry_run: bool = False
    measure_peak: bool = False

    @cached_property
    def joined(self) -> Path:
        """Folder with the samples of all folders of shards, see `join`."""
        return join(self.named or {"": self.shards})


def shard_folders(texts: Sequence[str], cache: Path, cache_gb: float, retry_s: float) -> dict[str, Path]:
    """Resolve `--shards` options to local folders by dataset name.

    Args:
        texts: `DIR` or `NAME=DIR`, where DIR may be a URL.
        cache: Folder that caches what is read from URLs.
        cache_gb: Maximum size of the cache per process.
        retry_s: Seconds for which a failed read of a URL is repeated.

    Several folders of one dataset have names of their own: NAME, or that of the folder.

    Raises:
        SettingError: No folder was given, a folder holds another dataset than NAME, or one was given twice.
        SourceError: A URL cannot be read.
    """
    if not texts:
        raise SettingError("--shards is missing: give the folder that 'sgdata shard' wrote")
    folders = [_folder(text, cache.expanduser(), cache_gb, retry_s) for text in texts]
    datasets = [dataset for _, dataset, _ in folders]
    folder_of: dict[str, Path] = {}
    for text, (option_name, dataset, folder) in zip(texts, folders, strict=True):
        several = datasets.count(dataset) > 1
        if option_name and option_name != dataset and not several:
            raise SettingError(f"--shards {text}: the folder holds '{dataset}', expected '{option_name}'")
        name = (option_name or folder.resolve().name) if several else dataset
        if name in folder_of or folder.resolve() in {earlier.resolve() for earlier in folder_of.values()}:
            raise SettingError(
                f"--shards gives '{name}' twice ({folder_of.get(name, folder)}, {folder}); give each once"
            )
        folder_of[name] = folder
    return folder_of


def join(folder_of: Mapping[str, Path]) -> Path:
    """Return one folder with the samples of all folders of shards, a temporary one of links where they are several.

    Raises:
        SettingError: Bands, labels or members differ, a sample is in two of them, or one is at a URL.
        SourceError: A folder is damaged.
    """
    folders = list(folder_of.values())
    if len(folders) == 1:
        return folders[0]
    if remote := [name for name, folder in folder_of.items() if (folder / tar_source.MARK).is_file()]:
        raise SettingError(f"--shards {remote[0]}: is at a URL, which cannot be joined with others; copy it here first")
    joined = tempfile.mkdtemp(prefix="sgmodel-shards-")
    atexit.register(shutil.rmtree, joined, ignore_errors=True)
    join_shards.join(folders, Path(joined))
    return Path(joined)


def _folder(text: str, cache: Path, cache_gb: float, retry_s: float) -> tuple[str, str, Path]:
    """Return the name given ("" for none), the dataset in the contract and the local folder of `DIR` or `NAME=DIR`."""
    match = re.fullmatch(r"(?:([\w-]+)=)?(.*)", text)
    name, path = match.groups() if match else (None, text)
    is_remote = "://" in path
    if not is_remote and not (Path(path) / output_names.INDEX).exists():
        raise SettingError(
            f"--shards {text}: no {output_names.INDEX} there; give a folder that 'sgdata shard' wrote, or its URL"
        )
    folder = tar_source.mirror(path, cache, cache_gb=cache_gb, retry_s=retry_s) if is_remote else Path(path)
    return name or "", contracts.read(folder).dataset, folder
