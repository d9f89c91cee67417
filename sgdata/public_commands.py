"""Make a command of the terminal and a function of Python from one body, so that both take the same arguments.

The body returns an `Outcome`. The function returns its value; the command prints it for people, or as JSON (`--json`),
and ends with its exit code.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, ParamSpec, TypeVar

import typer

from sgdata import files, log_lines
from sgdata.errors import ExitCode, SettingError, one_line

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("sgdata")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LogFormat = Annotated[
    log_lines.LogFormat, typer.Option("--log-format", help="Format of progress and messages on stderr.")
]


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """The result of a command.

    Attributes:
        value: What the function of Python returns.
        show: Prints the result for people; None: `value` on one line.
        document: What `--json` prints; None: `value`.
        findings: Lines about what differs from what was expected.
        code: Exit code where there are no findings.
        refusal: Why the result is refused after all; the command prints it first.
        silent: Whether to print nothing, as on all ranks of a training but the first.
        prints: Whether parts of the body print text, which `--json` gives as member `printed`.
    """

    value: T
    show: Callable[[], None] | None = None
    document: Any = None
    findings: tuple[str, ...] = ()
    code: ExitCode = ExitCode.DONE
    refusal: str = ""
    silent: bool = False
    prints: bool = False


def command(
    app: typer.Typer, name: str | None = None, **options: Any
) -> Callable[[Callable[P, Outcome[T]]], Callable[P, T]]:
    """Add the decorated body to an app as a command, and return the function of Python.

    Args:
        app: The app.
        name: Name of the command; default that of the body.
        options: Further arguments of `typer.Typer.command`.
    """

    def register(body: Callable[P, Outcome[T]]) -> Callable[P, T]:
        app.command(name, **options)(as_command(body))
        return as_function(body)

    return register


# --- the command ---------------------------------------------------------------------------


def as_command(body: Callable[..., Outcome[Any]]) -> Callable[..., None]:
    """Return the body as typer takes it, with `--json` and `--log-format` after its own options."""

    def command(*, as_json: bool, log_format: log_lines.LogFormat, **arguments: Any) -> None:
        log_lines.configure(log_format)
        printed = io.StringIO()
        # What parts of the body print is text; with --json it is a member of the document.
        with contextlib.redirect_stdout(printed) if as_json else contextlib.nullcontext():
            outcome = body(**arguments)
        if not outcome.silent:
            _print(outcome, printed.getvalue().splitlines() if as_json else None)
        if outcome.refusal:
            raise SettingError(outcome.refusal)
        raise SystemExit(ExitCode.FINDINGS if outcome.findings else outcome.code)

    own = inspect.signature(body).parameters.values()
    hints = _hints(body) | {"as_json": AsJson, "log_format": LogFormat}
    extra = [("as_json", False), ("log_format", "text")]
    both = [(each.name, each.default) for each in own] + extra
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(n, keyword, default=value, annotation=hints[n]) for n, value in both]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    command.__name__, command.__doc__ = body.__name__, body.__doc__
    return command


def _print(outcome: Outcome[Any], printed: list[str] | None) -> None:
    """Print the result for people, or as JSON with the lines that were printed meanwhile."""
    if printed is not None:
        document = outcome.value if outcome.document is None else outcome.document
        document = files.to_plain(document)
        if not isinstance(document, dict):
            document = {"result": document}
        document |= {"findings": list(outcome.findings)} if "findings" not in document else {}
        document |= {"printed": printed} if outcome.prints else {}
        print(files.pretty_json(document).decode(), end="")
    elif outcome.show:
        outcome.show()
    elif outcome.value is not None:
        print(outcome.value)


def _hints(body: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of the parameters; that of the result may name what is imported for type checkers only."""
    names = {name: text for name, text in body.__annotations__.items() if name != "return"}
    bare: Any = types.SimpleNamespace(__annotations__=names)
    return typing.get_type_hints(bare, globalns=body.__globals__, include_extras=True)


# --- the function --------------------------------------------------------------------------


def as_function(body: Callable[P, Outcome[T]]) -> Callable[P, T]:
    """Return the body as a function, which takes paths as texts and a single item where several are allowed."""
    signature, hints = inspect.signature(body), _hints(body)

    @functools.wraps(body)
    def function(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.arguments = {name: _as_declared(value, hints[name]) for name, value in bound.arguments.items()}
        outcome = body(*bound.args, **bound.kwargs)
        if outcome.refusal:
            raise SettingError(outcome.refusal)
        for text in outcome.findings:
            log.warning("%s", one_line(text))
        return outcome.value

    plain = [each.replace(annotation=_shown(hints[each.name])) for each in signature.parameters.values()]
    result = str(signature.return_annotation).removeprefix("Outcome[").removesuffix("]")
    function.__signature__ = signature.replace(parameters=plain, return_annotation=result)  # type: ignore[attr-defined]
    return function


def _as_declared(value: Any, hint: Any) -> Any:
    """Return an argument in the declared type: a path of a text, a text of a path, a list of a single item."""
    kinds = list(_kinds(hint))
    many = [kind for kind in kinds if typing.get_origin(kind) is list]
    if many:
        items = [value] if isinstance(value, str | Path) else value
        return items if items is None else [_as_declared(item, typing.get_args(many[0])[0]) for item in items]
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    return str(value) if isinstance(value, Path) and str in kinds and Path not in kinds else value


def _kinds(hint: Any) -> Iterable[Any]:
    """Yield the types of a hint: the arms of a union, without the annotations of typer."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for arm in typing.get_args(hint):
            yield from _kinds(arm)
    else:
        yield hint


def _shown(hint: Any) -> Any:
    """Return a hint as `help` shows it: without the annotations of typer, and with texts where paths are taken."""
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return plain | str if Path in set(_kinds(hint)) else plain
