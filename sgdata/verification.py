"""Compare an output folder with its SHA256SUMS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sgdata import files, output_names, sidecar_files
from sgdata.errors import SettingError

# Files that every finished output of a kind has, by the file that identifies the kind; special kinds come first.
REQUIRED = {
    output_names.CROISSANT: (
        output_names.INDEX,
        output_names.CONTRACT,
        output_names.AUDIT,
        "CARD.md",
        "README.md",
        "LICENSES/files.tsv",
        "stac/collection.json",
    ),
    output_names.LEDGER: ("ledger.md",),
    output_names.METRICS: (
        *(
            output_names.RECIPE,
            output_names.CONTRACT,
            output_names.RESULTS,
            "card.md",
            "checkpoint-last/model.safetensors",
            "checkpoint-last/card.json",
        ),
        *("checkpoint-last/training.json", "checkpoint-last/training.safetensors"),
    ),
    output_names.SIMULATION: ("catalog.json",),
    output_names.IMAGE: (output_names.PATCHES, output_names.CONTRACT, output_names.RECIPE, output_names.LOCK),
    output_names.INDEX: (output_names.CONTRACT, output_names.QUARANTINE),
    "card.json": ("model.safetensors",),
}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of comparing an output with its SHA256SUMS.

    Attributes:
        differences: A line per file that is not as it was written.
        remarks: A line per file of another program, such as statistics of GIS programs, that changes nothing.
    """

    differences: tuple[str, ...]
    remarks: tuple[str, ...]


def verify(folder: Path) -> list[str]:
    """Compare every file of an output with its SHA256SUMS.

    Hidden files and those that contain times (`output_names.TIMED`) are ignored, except in a release. Files that other
    programs write beside the outputs that they open are no differences, see `inspect`.

    Args:
        folder: Folder with a SHA256SUMS, such as a build, shards, a release or a checkpoint.

    Returns:
        One line per file that is missing, changed, unreadable, not listed, or required (`REQUIRED`) and not
        listed; empty if there are no differences.

    Raises:
        OutputError: There is no SHA256SUMS, or it is malformed.
    """
    return list(inspect(folder).differences)


def inspect(folder: Path) -> Inspection:
    """Compare an output with its SHA256SUMS as `verify` does, and name the files of other programs too.

    Args:
        folder: Folder with a SHA256SUMS.

    Returns:
        Differences and remarks.

    Raises:
        OutputError: There is no SHA256SUMS, or it is malformed.
    """
    expected = files.read_sums(folder)
    differences, remarks = [], []
    for name, digest in expected.items():
        if difference := _difference(folder / name, name, digest):
            if name.endswith(sidecar_files.PAM) and sidecar_files.has_document(folder / name, digest):
                remarks.append(f"{name}: statistics of GDAL added, class names as written")
            else:
                differences.append(difference)
    # In a release even hidden files must be listed.
    present = files.list_covered(folder, everything=output_names.CROISSANT in expected)
    for name in (name for name in present if name not in expected):
        remark = sidecar_files.describe(folder / name, name)
        if remark:
            remarks.append(remark)
        else:
            added = sidecar_files.describe_changes(folder / name) if name.endswith(sidecar_files.PAM) else ""
            differences.append(f"{name}: not listed" + (f"; it changes what GDAL reads ({added})" if added else ""))
    return Inspection(differences=(*differences, *_lacking(expected, set(present))), remarks=tuple(remarks))


def _difference(path: Path, name: str, digest: str) -> str:
    """Describe how a listed file differs from its hash; "" if it does not."""
    try:
        if not path.is_file():
            return f"{name}: missing"
        actual = files.sha256_file(path)
    except OSError as error:  # no permission, a bad sector, a name that is too long
        return f"{name}: cannot be read: {error.strerror}"
    return "" if actual == digest else f"{name}: changed, SHA-256 is {actual[:16]}..., expected {digest[:16]}..."


def _lacking(listed: Mapping[str, str], present: set[str]) -> list[str]:
    """Return a line per file that the kind of output requires and SHA256SUMS does not list."""
    if not listed:
        return [f"{output_names.SUMS}: lists no file"]
    required = _required(listed.keys() | present)
    missing = [name for name in required if name not in listed]
    return [f"{name}: missing from {output_names.SUMS}, required beside {required[0]}" for name in missing]


def _required(names: set[str]) -> tuple[str, ...]:
    """Return the files that an output with the files `names` must have; none for a kind without such files."""
    kinds = [(mark, *others) for mark, others in REQUIRED.items()]
    uses = Counter(name for kind in kinds for name in kind)
    for kind in kinds:
        # By any file that only this kind has, since the file that identifies it may be the one that is missing.
        own = {kind[0], *(name for name in kind if uses[name] == 1)}
        if own & names:
            return kind
    return ()


def compare(folder: Path, trusted: str) -> list[str]:
    """Compare the SHA256SUMS of an output with a copy from a source that the user trusts.

    A change of the files and of SHA256SUMS together can only be detected with a value from elsewhere.

    Args:
        folder: The output.
        trusted: SHA-256 of its SHA256SUMS, as 64 hexadecimal digits; or the path of a registered release
            (`catalogs/releases/NAME-VERSION.json`), of a SHA256SUMS, or of another copy of the output.

    Returns:
        One line per difference; empty if there are none.

    Raises:
        OutputError: A list is missing or malformed.
        SettingError: `trusted` has another form.
    """
    expected = files.read_sums(folder)
    path = Path(trusted)
    if re.fullmatch(r"[0-9a-fA-F]{64}", trusted):
        return _compare_digest(folder, trusted.lower(), "the given SHA-256")
    if path.suffix == ".json" and path.is_file():
        digest = files.read_plain(path).get("sha256")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise SettingError(f"{path}: has no 'sha256'; expected the document of a registered release")
        return _compare_digest(folder, digest, str(path))
    if path.is_dir():
        other = files.read_sums(path)
    elif path.is_file():
        other = files.parse_sums(path.read_bytes(), str(path))
    else:
        raise SettingError(f"--against {trusted}: expected a SHA-256, a release document, a SHA256SUMS or a folder")
    names = sorted(expected.keys() | other.keys())
    return [
        f"{name}: {expected.get(name, 'not listed'):.16}, in {path}: {other.get(name, 'not listed'):.16}"
        for name in names
        if expected.get(name) != other.get(name)
    ]


def _compare_digest(folder: Path, digest: str, source: str) -> list[str]:
    actual = files.sha256_file(folder / output_names.SUMS)
    return [] if actual == digest else [f"{output_names.SUMS}: SHA-256 is {actual}, {source} says {digest}"]
