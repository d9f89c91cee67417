"""Exit codes, and the exceptions that report what the user can correct.

    SgdataError            printed as one line, exit code 2
    ├── SettingError       a recipe, option or argument is wrong
    ├── SourceError        a file, archive, sample or server response is not as expected
    ├── ServiceError       a server is unreachable, refuses, or answers in part
    └── OutputError        an output cannot be written, is in use, or does not verify

Any other exception is a bug in this project: Python prints its traceback and exits with code 1.
"""

import re
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
    samples were quarantined; a training run was stopped early. Scripts may continue with the result.
    """


# Four kinds, by what the user must correct (settings, data, connection, disk); the message says what is wrong.
class SgdataError(Exception):
    """Base class: a one-line message with what is wrong, the value, what was expected and what to do.

    Line breaks and other control characters, which come with names and messages of foreign files and libraries, are
    replaced: a message is one line, and cannot move the cursor of a terminal. Secrets in addresses are removed, since
    messages also go to logs, quarantine lists and locks.
    """

    def __init__(self, message: object = "") -> None:
        """Take a message on one line or several."""
        from sgdata import urls

        text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", urls.redact(str(message))).strip()
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: ascii(match[0])[1:-1], text))


class SettingError(SgdataError):
    """A recipe, option or argument is wrong."""


class SourceError(SgdataError):
    """A file, archive, sample or server response is not as expected."""


class ServiceError(SgdataError):
    """A server is unreachable, refuses, or gave only part of a response."""


class OutputError(SgdataError):
    """An output cannot be written, is in use by another process, or does not verify."""
