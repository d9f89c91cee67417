"""Versions of one release: which comes before which, and what changed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sgdata import files, output_names, verification
from sgdata.errors import OutputError, SettingError
from sgdata.releases import difference
from sgdata.releases.release_content import ReleaseRequest

CHANGES = "changes.json"


def read_title(folder: Path) -> str:
    """Return `NAME-VERSION` of a release. Raises SettingError, SourceError."""
    return "-".join(_name_and_version(folder))


def _name_and_version(folder: Path) -> tuple[str, str]:
    path = files.require_file(folder / output_names.CROISSANT, "the folder of a release, such as out/release/town-1.0")
    document = files.read_plain(path)
    title, version = document.get("name"), document.get("version")
    if not isinstance(title, str) or not isinstance(version, str) or not title.endswith(f"-{version}"):
        raise SettingError(f"{path}: has no name and version of a release of sgdata; give the folder of one")
    return title.removesuffix(f"-{version}"), version


def check_previous(folder: Path, order: ReleaseRequest) -> None:
    """Check the release that an order follows, before anything is written.

    Raises:
        SettingError: It has another name, or is not of an earlier version.
        OutputError: It does not verify.
    """
    name, version = _name_and_version(folder)
    if name != order.name:
        raise SettingError(f"--previous {folder}: is a release of '{name:.90}', expected '{order.name}'")
    if not _numbers(version) < _numbers(order.version):
        raise SettingError(f"--previous {folder}: is version {version:.90}, expected one before {order.version}")
    if differences := verification.verify(folder):
        raise OutputError(
            f"{folder}: {len(differences)} files differ from its SHA256SUMS ({differences[0]}); give a good copy"
        )


def _numbers(version: str) -> tuple[tuple[int, ...], str]:
    """Return a version for comparison: `1.10` is after `1.9`, and `1.0rc1` is before `1.0`."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    numbers = match[0] if match else ""
    parts = [int(part) for part in numbers.split(".") if part]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts), version[len(numbers) :] or "~"


def describe_changes(order: ReleaseRequest, folder: Path) -> difference.OutputDifference:
    """Write `changes.json` into the folder of a release: how its data differ from the release before."""
    assert order.previous
    changes = difference.compare(order.previous, folder)
    changes = replace(changes, before=replace(changes.before, name=read_title(order.previous)))
    changes = replace(changes, after=replace(changes.after, name=order.title))
    files.write(folder / CHANGES, files.pretty_json(changes))
    return changes
