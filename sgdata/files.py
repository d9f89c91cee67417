"""Documents and bytes on disk: strict TOML and JSON, write-then-rename, hashes, one writer per output."""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sgdata.errors import OutputError, SettingError, SourceError

T = TypeVar("T")

SUMS = "SHA256SUMS"
# Names of files and folders that hold times: they stand outside SHA256SUMS, or no run could repeat another.
TIMED = ("summary.json", "timings.jsonl", "tensorboard")
# By which file an output is known.
KINDS = {
    "simulation.json": "a simulated archive",
    "image.tif": "a build",
    "index.parquet": "shards",
    "metrics.jsonl": "a training run",
    "audit.json": "an audit",
    "croissant.json": "a release",
}


# --- strict documents ----------------------------------------------------------------------


def read(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """The TOML or JSON document at `path` as a frozen dataclass `kind`.

    `overrides` are `a.b=value` texts, the value in TOML spelling (a bare word is a string).
    Raises SettingError: file missing, unreadable, an unknown key (nearest name given), a wrong type.
    """
    document = read_plain(path)
    for text in overrides:
        override(document, text)
    return parse(kind, document, str(path))


def read_plain(path: Path) -> dict[str, Any]:
    """The TOML or JSON document at `path` as plain dicts. Raises SettingError."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise SettingError(f"{path}: no such file; give the path of an existing document") from None
    except (OSError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingError(f"{path}: cannot be read as {kind}: {error}") from None
    if not isinstance(document, dict):
        raise SettingError(f"{path}: holds a {type(document).__name__} at the top, expected a table")
    return document


def parse(kind: type[T], document: dict[str, Any], where: str) -> T:
    """A plain document as a `kind`; `where` names it in messages. Raises SettingError."""
    from pydantic import ValidationError

    try:
        # JSON mode: strict types, but an array may fill a tuple and a whole number a float.
        model: Any = _model(kind)  # type: ignore[arg-type]  # a dataclass type is hashable
        value: T = model.model_validate_json(json.dumps({"it": document}, default=str)).it
    except ValidationError as error:
        raise SettingError(f"{where}: {_told(kind, error.errors(include_url=False))}") from None
    return value


def _told(kind: type[Any], errors: Sequence[Any]) -> str:
    """The first error as a sentence; an unknown key goes before a missing one, which it often misspells."""
    # pydantic names these two differently for models and for dataclasses.
    unknown = [error for error in errors if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}]
    first = (unknown or errors)[0]
    key = ".".join(str(part) for part in first["loc"][1:])
    if unknown:
        close = difflib.get_close_matches(key, list(_names(kind)), n=1, cutoff=0.5)
        return f"'{key}' is not a setting" + (f"; did you mean '{close[0]}'?" if close else "")
    if first["type"] in {"missing", "missing_argument"}:
        return f"'{key}' is missing; every setting of a recipe is written out"
    return f"'{key}' is {first['input']!r:.80}: {first['msg']}"


@cache
def _model(kind: type[Any]) -> type[Any]:
    """A pydantic model around a plain dataclass: nested dataclasses inherit its strict configuration."""
    from pydantic import ConfigDict, create_model

    return create_model("Document", __config__=ConfigDict(extra="forbid", strict=True), it=(kind, ...))


def _names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted name that a dataclass and those inside it know."""
    # `from __future__ import annotations` leaves the types as text; fields inside tuples and unions count too.
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        yield prefix + item.name
        for inner in (hints[item.name], *typing.get_args(hints[item.name])):
            if dataclasses.is_dataclass(inner):
                yield from _names(inner, f"{prefix}{item.name}.")


def override(document: dict[str, Any], text: str) -> None:
    """Lay `a.b=value` over a plain document. Raises SettingError."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted:
        raise SettingError(f"--set {text!r}: expected KEY=VALUE such as composite.method=median")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        # A bare word: `--set composite.method=median` needs no quotes within quotes of the shell.
        value = raw
    *tables, last = dotted.split(".")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise SettingError(f"--set {text!r}: '{table}' is not a table")
    document[last] = value


# --- plain and canonical forms -------------------------------------------------------------


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and numpy scalars as JSON-able dicts, lists and numbers."""
    if value is None or type(value) in (str, int, float, bool):  # nearly all, of millions of samples
        return value
    kind: Any = type(value)
    names = _field_names(kind)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # numpy scalars, whose repr is no JSON.
    return value.item() if hasattr(value, "item") else value


@cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass, None for any other type: asked 14 times for each patch of a dataset."""
    return tuple(item.name for item in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no NaN, no spaces, UTF-8, one final newline: equal values give equal bytes."""
    # NaN is no JSON, and other readers refuse it: better an error here than a file that only Python can read.
    text = json.dumps(plain(value), sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # A file name that is not UTF-8 comes from the disk as lone surrogates, which JSON can escape and UTF-8 cannot hold.
    return text.encode(errors="backslashreplace") + b"\n"


def pretty_json(value: Any) -> bytes:
    """As canonical_json, indented for people."""
    text = json.dumps(plain(value), sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1)
    return text.encode(errors="backslashreplace") + b"\n"


def toml(value: Any) -> bytes:
    """A dataclass or dict as TOML; settings that are None are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(plain(value))).encode()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        # TOML has no null.
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


# --- bytes on disk -------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary name beside `path`, renamed over it on success and removed on failure.

    Not `durable`: without waiting for the disk, for scratch need only survive the process, not the power.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made: {error.strerror}; choose another --out") from None
    # In the same folder, since a rename is atomic only within a file system; hidden, so that no glob of ours finds it;
    # with the process id, for two processes may write the same cache entry.
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as handle:
                # Before the rename: else a power cut may leave the new name with no bytes behind it.
                os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write-then-rename. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def covered(folder: Path, *, everything: bool = False) -> list[str]:
    """Relative POSIX names, sorted, of what a SHA256SUMS of `folder` should list: not itself, and, but for
    `everything`, no hidden files and folders (locks and journals are of the machine) and nothing TIMED."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        outside = not everything and any(part.startswith(".") or part in TIMED for part in parts)
        # What a link to a folder adds is nowhere listed; a link to a file is judged by its content, as hubs keep files.
        if (path.is_symlink() or not path.is_dir()) and not outside and parts != (SUMS,):
            found.append("/".join(parts))
    # As texts, not as paths: the order must not depend on the platform.
    return sorted(found)


def sums(folder: Path, known: Mapping[str, str] | None = None) -> bytes:
    """The SHA256SUMS text of `folder`: `<hash>  <relative path>` per file; those whose hash is `known` are not read."""
    names = [name for name in covered(folder) if (folder / name).is_file()]
    return "".join(f"{(known or {}).get(name) or sha256_file(folder / name)}  {name}\n" for name in names).encode()


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write `folder/SHA256SUMS`, the last file of every output."""
    write(folder / SUMS, sums(folder, known))


@contextmanager
def only_writer(folder: Path, mark: str | None = None) -> Iterator[None]:
    """Hold `folder/.lock`: a second process on the same output is refused with OutputError.

    `mark` is the file of KINDS that this kind of output has ("": none): a folder of another kind is refused as well.
    """
    # Both have a contract, a recipe and sums: the second would overwrite those of the first.
    for other in [name for name in KINDS if mark is not None and name != mark and (folder / name).exists()]:
        raise OutputError(f"{folder}: holds {KINDS[other]} ({other}); choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from None
    with handle:
        try:
            # The kernel drops this lock with the process: a killed run leaves nothing to clean up.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(
                f"{folder}: another process is writing here; wait for it or choose another --out"
            ) from None
        yield


def existing(path: Path, what: str) -> Path:
    """`path` itself if it exists. Raises SourceError naming `what` was expected there."""
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; expected {what}")
    return path
