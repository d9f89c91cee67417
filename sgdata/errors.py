"""Everything that can go wrong and that the user can mend.

    SgdataError            printed as one line, exit code 2
    ├── SettingError       a recipe, option or argument is wrong
    ├── SourceError        a file, archive, sample or answer is not what it should be
    ├── ServiceError       a server cannot be reached, refuses or answers in part
    └── OutputError        an output cannot be written, is in use, or does not verify

Any other exception is a bug of ours: it keeps its traceback and exits 1.
"""


# Four leaves, not forty: they tell who can mend it (the user's recipe, data, a server, the disk); the sentence tells
# what broke.
class SgdataError(Exception):
    """What happened, the value at fault, what was expected and what to do, in one line."""


class SettingError(SgdataError):
    """A recipe, option or argument is wrong."""


class SourceError(SgdataError):
    """A file, archive, sample or answer is not what it should be."""


class ServiceError(SgdataError):
    """A server cannot be reached, refuses, or gave only part of an answer."""


class OutputError(SgdataError):
    """An output cannot be written, is in use by another process, or does not verify."""
