"""Exit codes, and the exceptions that report what the user can correct.

    SgdataError            printed as one line, exit code 2
    ├── SettingError       a recipe, option or argument is wrong
    ├── SourceError        a file, archive, sample or server response is not as expected
    ├── ServiceError       a server is unreachable, refuses, or answers in part
    ├── OutputError        an output cannot be written, is in use, or does not verify
    ├── pool.WorkerLostError   a process or a worker of a cluster was killed
    └── sgmodel.train.loop.NotFiniteError   the loss or a gradient of a step of training is not finite

Exceptions of the system and of libraries, where no caller names their cause, become such a line too
(`describe_library_error`). Any other exception is a bug in this project: Python prints its traceback and exits with
code 1.
"""

import errno
import re
import traceback
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command of `sgdata` and every program of `sgmodel`."""

    DONE = 0
    """The command did what it was asked to do, and has nothing to report."""
    BUG = 1
    """An unexpected exception; Python itself exits with this code."""
    REFUSED = 2
    """Invalid input, or an operation that was refused. One line on stderr says why."""
    FINDINGS = 3
    """The command ended without an error, but its result differs from what was expected, has findings or is incomplete.

    Examples: `verify`, `drift` and `audit` list what they found; a build has pixels without a clear observation;
    samples were quarantined; `--stop-after` ended a training. Scripts may continue with the result.
    """
    INTERRUPTED = 130
    """Stopped by Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP (128 + SIGINT, as shells report the first). What is finished is
    kept, a training saves a checkpoint, and the same command continues."""


# C0 and C1 controls but newline and tab; marks that change the direction of text; invisible line ends.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LONGEST_WORD, _LONGEST_MESSAGE = 500, 4000


def escape_hidden(text: str) -> str:
    """Return a text in which characters that terminals and pages obey, rather than show, are escaped.

    Escapes are such that JSON, which escapes the other controls itself, stays JSON.
    """
    return _HIDDEN.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


def one_line(text: object) -> str:
    """Return a text for a list of one entry a line, which a name with line breaks could add entries to."""
    return str(text).replace("\n", "\\n")


def _shorten(text: str) -> str:
    """Return a message without the middle of words, such as foreign names, that are too long for a line."""
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda found: f"{found[0][:200]}[...]{found[0][-100:]}", text)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 400]}[...]{text[-400:]}"


# Four kinds, by what the user must correct (settings, data, connection, disk); the message says what is wrong.
class SgdataError(Exception):
    """Base class: a one-line message with what is wrong, the value, what was expected and what to do.

    Line breaks and other control characters, which come with names and messages of foreign files and libraries, are
    replaced: a message is one line of bounded length, and cannot move the cursor of a terminal. Secrets in addresses
    are removed, since messages also go to logs, quarantine lists and locks.
    """

    def __init__(self, message: object = "") -> None:
        """Take a message on one line or several."""
        from sgdata import urls

        text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", urls.redact(str(message))).strip()
        super().__init__(_shorten(escape_hidden(text).replace("\t", "\\t")))


class SettingError(SgdataError):
    """A recipe, option or argument is wrong."""


class SourceError(SgdataError):
    """A file, archive, sample or server response is not as expected."""


class ServiceError(SgdataError):
    """A server is unreachable, refuses, or gave only part of a response."""


class OutputError(SgdataError):
    """An output cannot be written, is in use by another process, or does not verify."""


LIBRARIES = frozenset(
    {
        "PIL", "botocore", "fsspec", "imagecodecs", "json", "lzma", "numcodecs", "osmium", "pyarrow",
        "pyogrio", "pyproj", "rasterio", "requests", "safetensors", "shapely", "struct", "tarfile", "tifffile",
        "tomllib", "xml", "zipfile", "zlib",
    }
)  # fmt: skip
"""Modules that raise exceptions of their own where they read damaged files."""
NETWORK = frozenset({"aiohttp", "http", "obstore", "pystac", "pystac_client", "urllib3"})
"""Modules that raise exceptions of their own where a server ends an answer early or gives a wrong one."""


def describe_library_error(error: BaseException) -> str:
    """Return a line about an exception of the system or of a library; "" for one that is a bug of this project."""
    modules = {kind.__module__.partition(".")[0].lstrip("_") for kind in type(error).__mro__}
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"not enough memory ({text:.200}); use fewer --workers, or smaller batches, tiles or areas"
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        what = error.filename or type(error).__name__
        return f"{what}: {error.strerror or text:.300}; check the path, its disk and the network"
    if modules & NETWORK:
        return f"{type(error).__name__}: {text:.300}; check the address and the network, or try again later"
    if type(error).__name__ == "BrokenProcessPool":
        return f"a worker process ended early ({text:.200}); use fewer --workers if memory is short, and try again"
    if isinstance(error, EOFError | RecursionError | UnicodeError) or modules & LIBRARIES:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/sgdata/" in frame.filename or "/sgmodel/" in frame.filename]
        where = f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else "a library"
        return f"{type(error).__name__} in {where}: {text:.300}; an input is damaged: try sgdata verify on its folder"
    return ""
