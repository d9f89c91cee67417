"""The table of training programs, which the command line, the ledger and the tests use."""

from __future__ import annotations

from typing import Any

from sgmodel.train.program import Loaders, Program


def _pretrain() -> Program[Any]:
    from sgmodel.recipes import pretrain

    return pretrain.PROGRAM


def _contrast() -> Program[Any]:
    from sgmodel.recipes import contrast

    return contrast.PROGRAM


def _classify() -> Program[Any]:
    from sgmodel.recipes import classify

    return classify.PROGRAM


def _segment() -> Program[Any]:
    from sgmodel.recipes import segment

    return segment.PROGRAM


def _detect_change() -> Program[Any]:
    from sgmodel.recipes import detect_change

    return detect_change.PROGRAM


PROGRAMS: Loaders = {
    "pretrain": _pretrain,
    "contrast": _contrast,
    "classify": _classify,
    "segment": _segment,
    "detect_change": _detect_change,
}
