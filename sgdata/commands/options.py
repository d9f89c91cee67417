"""Options shared by several commands, each defined once so that it means the same everywhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

# --- places --------------------------------------------------------------------------------

Out = Annotated[Path, typer.Option("--out", help="Output folder.")]
OutOrRecipe = Annotated[Path | None, typer.Option("--out", help="Output folder (default: from the recipe).")]

# --- how to run ----------------------------------------------------------------------------

Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Number of processes; the output does not depend on it.")
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="ADDRESS", help="Run on the Dask scheduler at this address.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the cost estimate and exit.")]

AllowPrivateHosts = Annotated[
    bool,
    typer.Option(
        "--allow-private-hosts", help="Follow links of a remote catalogue to hosts of this machine or its network."
    ),
]

# --- what to print -------------------------------------------------------------------------

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print warnings and results only, no progress.")]

# --- datasets and recipes ------------------------------------------------------------------

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; repeatable.")
]
Dataset = Annotated[str, typer.Argument(help="Name of a dataset, as `sgdata catalog` lists them.")]
DatasetOfPath = Annotated[
    str | None, typer.Option("--dataset", help="Dataset in PATH (default: detected from its files).")
]
Edition = Annotated[
    str | None, typer.Option("--edition", help="Edition of the dataset, such as v1 or v2 of bigearthnet.")
]
Coordinates = Annotated[
    Path | None,
    typer.Option("--coordinates", metavar="FILE", help="Table of name, latitude, longitude: centres of the samples."),
]
SplitSet = Annotated[
    str | None, typer.Option("--split", help="Split set by name, such as official, random or ground-0.")
]
SplitsFolder = Annotated[
    Path | None,
    typer.Option("--splits", metavar="DIR", help="Folder of published split lists or of a split table of your own."),
]


def settings_of(module: str, name: str) -> Any:
    """Return the option `--settings` for the recipe class `name` of `module`, imported only when it is given."""

    def show(given: bool) -> None:
        from sgdata import recipe_settings

        if given:
            print("\n".join(recipe_settings.list_settings(getattr(importlib.import_module(module), name))))
            raise typer.Exit

    # Eager, so that arguments which a run needs may be absent.
    text = "Print every key of the recipe with type, default and meaning, and exit."
    return typer.Option("--settings", is_eager=True, callback=show, help=text)
