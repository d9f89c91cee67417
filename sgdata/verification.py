"""Compare an output folder with its SHA256SUMS."""

from __future__ import annotations

from pathlib import Path

from sgdata import files


def verify(folder: Path) -> list[str]:
    """Compare every file of an output with its SHA256SUMS.

    Hidden files and those that contain times (`files.TIMED`) are ignored, except in a release.

    Returns:
        One line per file that is missing, changed, unreadable or not listed; empty if there are no differences.

    Raises:
        OutputError: There is no SHA256SUMS, or it is malformed.
    """
    expected = files.read_sums(folder)
    differences = []
    for name, digest in expected.items():
        path = folder / name
        try:
            if not path.is_file():
                differences.append(f"{name}: missing")
                continue
            actual = files.sha256_file(path)
        except OSError as error:  # no permission, a bad sector, a name that is too long
            differences.append(f"{name}: cannot be read: {error.strerror}")
            continue
        if actual != digest:
            differences.append(f"{name}: changed, SHA-256 is {actual[:16]}..., expected {digest[:16]}...")
    # In a release even hidden files must be listed.
    present = files.covered(folder, everything=files.CROISSANT in expected)
    return differences + [f"{name}: not listed" for name in present if name not in expected]
