"""Lock an output folder, so that one process writes it at a time and no other kind of output is overwritten."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgdata import files, heartbeat, local_paths, output_names
from sgdata.errors import OutputError

log = logging.getLogger("sgdata")


@contextmanager
def only_writer(folder: Path, mark: str | None = None) -> Iterator[None]:
    """Lock `folder` (created if missing) for this process while the context is open.

    Args:
        folder: Output folder; the lock is `.lock` inside.
        mark: Key of `output_names.KINDS` for this kind of output, or "" for a kind without one. None: do not check the
            kind.

    Raises:
        OutputError: Another process holds the lock, the folder contains another kind of output, or it is not writable.
        SettingError: The folder is a URL.
    """
    local_paths.require_local(str(folder), "--out", writes=True)
    # Every kind has a contract, a recipe and sums: the new output would overwrite those of the old one.
    for name, kind in output_names.KINDS.items():
        if mark is not None and name != mark and (folder / name).exists():
            raise OutputError(f"{folder}: holds {kind} ({name}); choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise files.write_error(folder, error) from None
    with handle:
        try:
            # The kernel releases this lock when the process ends, so that a killed run leaves nothing to clean up.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in files.UNSUPPORTED:
                raise OutputError(
                    f"{folder}: another process is writing here; wait for it or choose another --out"
                ) from None
            log.warning("%s: its file system has no locks (%s); let one process write here", folder, error.strerror)
        with heartbeat.beating(folder):
            yield
