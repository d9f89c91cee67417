"""The score of a run beside that of a run on another split, such as the published one, as rows of text."""

from __future__ import annotations

from typing import Any

from sgdata.errors import SourceError
from sgdata.results import scores_by_distance

KEY = "beside"
"""Key of the other run's score in `results.json`."""
TITLE = "Score beside that on another split"
HERE = "this run"


def columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    return ("run", "training samples", "scored samples", str(results[KEY]["figure"]), "95 % interval")


def rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return a row for this run and one for the other, none for results without another run.

    Raises:
        SourceError: The other score is not as a run writes it.
    """
    if KEY not in results:
        return ()
    other = results[KEY]
    try:
        name = other["figure"]
        return (_row(HERE, results, name), _row(str(other["run"]), other, name))
    except (KeyError, TypeError, ValueError):
        raise SourceError(
            f"'{KEY}' of the results is {other!r:.80}, expected the score of a run; run the training again"
        ) from None


def _row(run: str, results: dict[str, Any], name: str) -> tuple[str, ...]:
    interval = scores_by_distance.text(results.get(f"{name}_interval") or "")
    value = scores_by_distance.text(results[name])
    return (run, f"{results['train_samples']:,}", f"{results['samples']:,}", value, interval)
