"""Run a program at the terminal: clean what it prints, and end it with one line and an exit code for every error.

Names and messages of others may contain control characters, which move the cursor, change colours or set the title of
a terminal, and addresses with secrets. Both are replaced in the streams themselves, so that no caller has to think of
it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, get_args, get_type_hints

from sgdata import local_paths, log_lines, stop_signals, urls
from sgdata.errors import ExitCode, SgdataError, describe_library_error, escape_hidden

if TYPE_CHECKING:
    import typer


log = logging.getLogger("sgdata")


def clean(text: str) -> str:
    """Return a text with control characters escaped and without the secrets of addresses."""
    return escape_hidden(urls.redact(text))


class CleanStream:
    """A text stream that cleans what is written to it. It is no terminal: libraries write no colours to it."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`; characters that its encoding lacks are escaped too."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, cleaned."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        # File names that are not UTF-8 have lone surrogates.
        self.stream.write(clean(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def isatty(self) -> bool:
        """Return False."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def clean_output() -> None:
    """Clean stdout and stderr of this process from now on, tracebacks included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))


def run(app: typer.Typer, program: str, argv: Sequence[str] | None = None, name: str | None = None) -> NoReturn:
    """Run an app and exit; what the user can correct, and foreign exceptions, become one line and exit code 2.

    Args:
        app: The commands.
        program: `sgdata` or `sgmodel`, for messages.
        argv: Arguments; default: those of the process.
        name: Name of the program in its help.
    """
    import typer
    from typer.main import get_command

    # The base class of errors of usage: typer has a click of its own by now, and does not export this class.
    usage_error: Any = typer.BadParameter.__base__
    clean_output()
    threading.excepthook = _failed_thread
    command = get_command(app)
    refuse_repeated_options(command)
    for each in (command, *getattr(command, "commands", {}).values()):
        _refuse_addresses(each)
    invoke = command.invoke

    def guarded(context: Any) -> Any:
        """Run the command, before the library makes "Aborted." of an EOFError or an interruption."""
        try:
            with stop_signals.raising():
                return invoke(context)
        except KeyboardInterrupt as stop:
            raise _InterruptedError(f"{stop}" or "Ctrl-C") from None
        except Exception as error:
            if message := describe_library_error(error):
                raise SgdataError(message) from None
            raise

    command.invoke = guarded  # type: ignore[method-assign, assignment]
    code = ExitCode.REFUSED
    try:
        raise SystemExit(command(args=argv, prog_name=name, standalone_mode=False) or ExitCode.DONE)
    except SgdataError as error:
        message = str(error)
    except usage_error as error:
        text = _usage(error)
        if not text or "\n" in text:  # of a program without a command: its help, which typer has shown or is the text
            raise SystemExit(ExitCode.REFUSED) from None
        path = error.ctx.command_path if error.ctx else program
        message = str(SgdataError(f"{text[0].lower()}{text[1:]}; '{path} --help' lists what it takes"))
    except (_InterruptedError, typer.Abort) as stop:
        code = ExitCode.INTERRUPTED
        message = f"stopped by {str(stop) or 'Ctrl-C'}; what is finished is kept: the same command continues"
    if log_lines.are_json():
        log.error("%s", message, extra={"exit_code": int(code)})
    else:
        print(f"{program}: {message}", file=sys.stderr)
    # `from None`: the message already names the cause.
    raise SystemExit(code) from None


class _InterruptedError(Exception):
    """Ctrl-C or a signal, in a form that the library passes on."""


def refuse_repeated_options(command: Any) -> None:
    """Let a command and those in it refuse an option of one value that is given twice, of which one would be ignored.

    Args:
        command: Command or group of typer.
    """
    import typer

    for inner in getattr(command, "commands", {}).values():
        refuse_repeated_options(inner)
    make_parser = command.make_parser

    def strict_parser(context: Any) -> Any:
        parser = make_parser(context)
        parse_args = parser.parse_args

        def parse(args: list[str]) -> Any:
            options, rest, order = parse_args(args=args)
            # The parser keeps the last value of an option, and names each option as often as it was given.
            for option in {id(each): each for each in order if each.param_type_name == "option"}.values():
                if order.count(option) > 1 and not (option.multiple or option.count):
                    message = f"Option '{option.opts[0]}' was given {order.count(option)} times, expected once"
                    raise typer.BadParameter.__base__(message, ctx=context)  # type: ignore[misc]
            return options, rest, order

        parser.parse_args = parse
        return parser

    command.make_parser = strict_parser


WRITTEN = frozenset({"out", "scratch", "register", "cache"})
"""Parameters of commands that name folders and files to write."""


def _refuse_addresses(command: Any) -> None:
    """Let the parameters of a command that are paths refuse URLs, before anything is read or written."""
    hints = get_type_hints(command.callback) if command.callback else {}
    for param in command.params:
        if _has_path(hints.get(param.name)):
            param.process_value = partial(_processed, param, param.process_value)


def _has_path(hint: Any) -> bool:
    return hint is Path or any(_has_path(part) for part in get_args(hint))


def _processed(param: Any, process: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    """Convert the value of a parameter that is a path. Raises SettingError for a URL."""
    option = param.opts[0] if param.opts[0].startswith("-") else param.name.upper()
    for text in value if isinstance(value, list | tuple) else (value,):
        if isinstance(text, str):
            local_paths.require_local(text, option, writes=param.name in WRITTEN)
    return process(context, value)


def _failed_thread(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of a foreign exception in a thread of a library, which raises it again where it is used."""
    if failure.exc_value is None or not describe_library_error(failure.exc_value):
        threading.__excepthook__(failure)


def _usage(error: Any) -> str:
    """Describe an error of usage with the value, which typer leaves out where pydantic converts it."""
    if not hasattr(error.__cause__, "errors"):
        return str(error.format_message()).rstrip(".")
    first, name = error.__cause__.errors()[0], error.param.opts[0]
    expected = str(first["msg"]).removeprefix("Input should be ").partition(", unable")[0]
    # Of a choice: "Value error, 'xml' is not one of 'text', 'json'."
    expected = expected.removeprefix("Value error, ").removeprefix(f"{first['input']!r} is not ").rstrip(".")
    return f"{name} {first['input']!r}: expected {expected}"
