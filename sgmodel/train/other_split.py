"""Read the score of a finished run on another split, which cards and pages show beside that of a run.

A score on a published split whose held-out samples lie beside training samples says how much of it is memory only next
to a score on ground of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgdata import files, output_names
from sgdata.errors import SettingError
from sgdata.results import other_split


def require_results(run: Path) -> Path:
    """Return the `results.json` of a finished run. Raises SettingError where there is none."""
    if not files.is_finished(run) or not (run / output_names.RESULTS).is_file():
        raise SettingError(f"--beside {run}: no finished run is there; give the folder of one that was scored")
    return run / output_names.RESULTS


def read(run: Path, ours: dict[str, Any], by: str) -> dict[str, Any]:
    """Return what `results.json` of a run records of a run on another split: its name, samples and main figure.

    Args:
        run: Folder of the finished run.
        ours: Results of this run.
        by: Name of the main figure.

    Raises:
        SettingError: The run is not finished, has no such figure, or is of another dataset or mode.
    """
    theirs = files.read_plain(require_results(run))
    for name in ("dataset", "mode"):
        if theirs.get(name) != ours[name]:
            raise SettingError(
                f"--beside {run}: its {name} is {theirs.get(name)!r:.60}, that of this run {ours[name]!r:.60}; "
                "give a run of the same kind on another split"
            )
    numbers = [theirs.get(name) for name in (by, "samples", "train_samples")]
    if not all(isinstance(number, int | float) for number in numbers):
        raise SettingError(f"--beside {run}: its results lack one of {by}, samples, train_samples; run it again")
    shared = (by, f"{by}_interval", "split", "samples", "train_samples")
    return {other_split.KEY: {"run": run.name, "figure": by, **{key: theirs[key] for key in shared if key in theirs}}}
