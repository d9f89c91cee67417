"""The table of training programs, which the command line, the ledger and the tests use."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, get_args

from sgmodel.train.program import Loaders, Program, ProgramName


def _load(name: str) -> Program[Any]:
    program: Program[Any] = import_module(f"sgmodel.recipes.{name}").PROGRAM
    return program


PROGRAMS: Loaders = {name: partial(_load, name) for name in get_args(ProgramName)}
