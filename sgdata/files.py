"""Read and write documents and outputs: strict TOML and JSON, atomic writes, SHA256SUMS."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sgdata import output_names
from sgdata.errors import OutputError, SettingError, SourceError, escape_hidden

T = TypeVar("T")

LOG = ".log"
# Errors of file systems that cannot flush a folder, or have no locks.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
# One encoder, since a new one for each sample takes longer than encoding it.
_CANONICAL = json.JSONEncoder(sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


# --- strict documents ----------------------------------------------------------------------


def read(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read the TOML or JSON document at `path` as a frozen dataclass.

    Args:
        kind: The dataclass; nested dataclasses are parsed too.
        path: File whose suffix is `.json` for JSON; anything else is TOML.
        overrides: `a.b=value` texts that replace settings; the value is TOML, or a bare word for a string.

    Raises:
        SettingError: The file is missing or malformed, a key is unknown or missing, or a value has the wrong type.
    """
    document = read_plain(path)
    for text in overrides:
        override(document, text)
    return parse(kind, document, str(path))


def parse_json(content: bytes) -> Any:
    """Parse a JSON document of UTF-8 whose numbers are finite and whose keys are unique.

    Raises:
        ValueError: `content` is no such document, or nests too deeply for Python's parser.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text:.40} is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r:.80} occurs twice")
    return members


def read_plain(path: Path) -> dict[str, Any]:
    """Read the TOML or JSON document at `path` as plain dicts. Raises SettingError."""
    try:
        content = Path(path).read_bytes()
        document = parse_json(content) if path.suffix == ".json" else tomllib.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{path}: no such file; give the path of an existing document") from None
    except (OSError, ValueError, RecursionError) as error:  # tomllib lets nested arrays recurse
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingError(
            f"{path}: cannot be read as {kind}: {' '.join(str(error).split()):.300}; correct it"
        ) from None
    if not isinstance(document, dict):
        raise SettingError(f"{path}: top level is a {type(document).__name__}, expected a table")
    return document


def parse(kind: type[T], document: dict[str, Any], origin: str) -> T:
    """Convert a plain document to the dataclass `kind`; `origin` names it in messages. Raises SettingError."""
    from pydantic import ValidationError

    from sgdata import recipe_settings

    try:
        # JSON mode: types are strict, but arrays may become tuples and integers floats.
        model: Any = _model(kind)  # type: ignore[arg-type]  # a dataclass type is hashable
        value: T = model.model_validate_json(json.dumps({"it": document}, default=str)).it
    except ValidationError as error:
        raise SettingError(f"{origin}: {recipe_settings.explain(kind, error.errors(include_url=False))}") from None
    if wrong := recipe_settings.find_out_of_range(value):
        raise SettingError(f"{origin}: {wrong}")
    return value


@cache
def _model(kind: type[Any]) -> type[Any]:
    """Wrap a dataclass in a pydantic model, whose strict configuration applies to nested dataclasses too."""
    from pydantic import ConfigDict, create_model

    return create_model("Document", __config__=ConfigDict(extra="forbid", strict=True), it=(kind, ...))


def override(document: dict[str, Any], text: str) -> None:
    """Apply `a.b=value` to a plain document in place. Raises SettingError."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted:
        raise SettingError(f"--set {text!r}: expected KEY=VALUE such as composite.method=median")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        if raw.startswith(("[", "{")):
            raise SettingError(
                f'--set {text!r}: expected TOML; quote its strings, as in \'{dotted}=["a", "b"]\''
            ) from None
        # A bare word, so that `--set composite.method=median` needs no quotes.
        value = raw
    *tables, last = dotted.split(".")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise SettingError(f"--set {text!r}: '{table}' is {document!r:.60}, expected a table; set '{table}' itself")
    document[last] = value


# --- plain and canonical forms -------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Convert dataclasses, tuples, paths and numpy scalars to JSON-compatible dicts, lists and numbers."""
    if value is None or type(value) in (str, int, float, bool):  # by far the most common case
        return value
    kind: Any = type(value)
    names = _field_names(kind)
    if names is not None:
        return {name: to_plain(getattr(value, name)) for name in names if not _is_omitted(value, kind, name)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # numpy scalars
    return value.item() if hasattr(value, "item") else value


@cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the field names of a dataclass, or None for any other type. Cached: called 14 times per patch."""
    return tuple(item.name for item in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def _is_omitted(value: Any, kind: Any, name: str) -> bool:
    omitted = _omitted_defaults(kind)
    return name in omitted and getattr(value, name) == omitted[name]


@cache
def _omitted_defaults(kind: Any) -> dict[str, Any]:
    """Return the defaults of fields with the metadata `omit_default`: later additions, so that documents keep bytes."""
    return {item.name: item.default for item in dataclasses.fields(kind) if item.metadata.get("omit_default")}


def canonical_json(value: Any) -> bytes:
    """Encode as JSON with sorted keys, no NaN, no spaces and one final newline: equal values give equal bytes."""
    # JSON has no NaN; fail here rather than write a file that only Python can read.
    return _encoded(_CANONICAL.encode(to_plain(value)))


def pretty_json(value: Any) -> bytes:
    """Encode as `canonical_json` does, but indented."""
    return _encoded(json.dumps(to_plain(value), sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1))


def _encoded(text: str) -> bytes:
    """Encode a JSON document; controls in foreign names, which a terminal would obey, are escaped."""
    # Python represents file names that are not UTF-8 by lone surrogates, which JSON can escape but UTF-8 cannot encode.
    return escape_hidden(text).encode(errors="backslashreplace") + b"\n"


def checked_json(value: Any) -> bytes:
    """Serialise `value` with the hash of its content, for notes to a later run; see `read_checked_json`."""
    content = canonical_json(value)
    # Put together as text: a journal of a shard has a thousand rows, which need not be encoded twice.
    return b'{"content":%s,"sha256":"%s"}\n' % (content.rstrip(b"\n"), sha256(content).encode())


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of `checked_json`; None if it is missing, damaged, altered or no table."""
    try:
        document = parse_json(path.read_bytes())
        content = document["content"]
        if isinstance(content, dict) and sha256(canonical_json(content)) == document["sha256"]:
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def toml(value: Any) -> bytes:
    """Encode a dataclass or dict as TOML; None values are omitted."""
    import tomli_w

    return tomli_w.dumps(_without_none(to_plain(value))).encode()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        # TOML has no null.
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


# --- bytes on disk -------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which is renamed to `path` on success and removed on failure.

    Args:
        path: The file to write; missing parent folders are created.
        durable: Flush to the disk before renaming. Scratch files need not survive a power failure.

    Raises:
        OutputError: The folder cannot be created or the file cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within a file system; hidden, so that globs do not match it;
    # with process and thread, since two may write the same cache entry.
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_native_id()}")
    try:
        with writing(path):
            yield temporary
            if durable:
                with temporary.open("rb+") as handle:
                    # Before the rename, or a power failure could leave an empty file under the final name.
                    os.fsync(handle.fileno())
            temporary.replace(path)
            if durable:
                sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some network file systems cannot
            raise
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OutputError in place of any OSError, which concerns the file or folder `path`."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: BaseException) -> OutputError:
    """Return the exception about a file or folder that cannot be written, with the space left on its disk."""
    disk = next(folder for folder in path.absolute().parents if folder.is_dir())
    reason = getattr(error, "strerror", None) or error.__cause__ or error
    free = f"{shutil.disk_usage(disk).free / 1e6:,.1f} MB are free on the disk of {disk}"
    return OutputError(
        f"{path}: cannot be written: {reason!s:.200}; {free}: free some or choose another --out, then run it again"
    )


def write(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file atomically, `durable` as in `replacing`. Raises OutputError."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, without reading it into memory at once."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- finished outputs and SHA256SUMS -------------------------------------------------------


def is_finished(folder: Path) -> bool:
    """Return whether `folder` is a finished output: every writer adds SHA256SUMS last."""
    return (folder / output_names.SUMS).is_file()


def require_finished(folder: Path) -> None:
    """Raise SourceError unless `folder` is a finished output: half of one would be read as if it were all."""
    if not is_finished(folder):
        raise SourceError(f"{folder}: is unfinished, without {output_names.SUMS}; run the command that writes it again")


def mark_unfinished(folder: Path) -> None:
    """Remove SHA256SUMS before changing an output, so that an interrupted run is not taken for a finished one."""
    (folder / output_names.SUMS).unlink(missing_ok=True)


def list_covered(folder: Path, *, everything: bool = False, own: bool = False) -> list[str]:
    """List the files that the SHA256SUMS of `folder` should have, as sorted relative POSIX paths.

    SHA256SUMS itself is never among them. Hidden files (locks, journals) and those of TIMED are, if `everything`;
    files of other programs are not, if `own`.
    """
    names = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        omitted = not everything and any(
            (part.startswith(".") and part not in output_names.ZARR_METADATA)
            or part in output_names.TIMED
            or part.endswith(LOG)
            for part in parts
        )
        # rglob does not follow links to folders, so the link itself is listed; links to files count by their content,
        # since caches of model hubs store files as links.
        if (path.is_symlink() or not path.is_dir()) and not omitted and parts != (output_names.SUMS,):
            names.append("/".join(parts))
    # Sorted as texts, not as paths: the order must not depend on the platform.
    return sorted(name for name in names if not own or (output_names.is_own(name) and (folder / name).is_file()))


def compute_sums(folder: Path, hashes: Mapping[str, str] | None = None) -> bytes:
    """Return the content of SHA256SUMS for `folder`; files whose hash is in `hashes` are not read."""
    return format_sums({n: (hashes or {}).get(n) or sha256_file(folder / n) for n in list_covered(folder, own=True)})


def format_sums(digests: Mapping[str, str]) -> bytes:
    """Format relative paths and their hashes as SHA256SUMS: one line `<hash>  <path>` each."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def write_sums(folder: Path, hashes: Mapping[str, str] | None = None) -> None:
    """Write `folder/SHA256SUMS`, the last file of every output."""
    content = compute_sums(folder, hashes)
    written = [folder / name for name in list_covered(folder, own=True)]
    for path in [*written, *{path.parent for path in written}]:  # before the list that says they are complete
        sync(path)
    write(folder / output_names.SUMS, content)


def read_sums(folder: Path) -> dict[str, str]:
    """Read `folder/SHA256SUMS` as relative path to hash. Raises OutputError if it is missing or malformed."""
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; give a finished output, which has {output_names.SUMS}")
    if not is_finished(folder):
        raise OutputError(
            f"{folder}: no {output_names.SUMS}; expected a finished output; run the command that writes it again"
        )
    return parse_sums((folder / output_names.SUMS).read_bytes(), str(folder / output_names.SUMS))


def parse_sums(content: bytes, origin: str) -> dict[str, str]:
    """Parse the content of a SHA256SUMS as relative path to hash; `origin` names it in messages.

    Raises:
        OutputError: A line is malformed, duplicates a path or leads out of the folder, or the last one is incomplete.
    """
    # Split at \n alone: splitlines also splits at \r and \x0b, which are a newline with one bit flipped.
    *lines, rest = content.decode(errors="replace").split("\n")
    if rest:
        raise OutputError(f"{origin}: ends with {rest!r:.90}, expected a complete line; copy or write it again")
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _SUMS_LINE.fullmatch(line)
        # The list may come from a download, so no path may lead out of the folder.
        if not match or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts or match[2] in digests:
            raise OutputError(
                f"{origin}: line {number} is {line!r:.90}, expected '<sha256>  <relative path>', once; copy it again"
            )
        digests[match[2]] = match[1]
    return digests


def require_file(path: Path, what: str) -> Path:
    """Return `path` if it exists; otherwise raise SourceError, with `what` as the expectation."""
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; expected {what}")
    return path
