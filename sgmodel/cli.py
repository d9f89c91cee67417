"""The `sgmodel` command: pretrain, fine-tune, predict, convert, and reproduce tables of results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from sgdata import terminal
from sgdata.public_commands import Outcome, as_command, as_function
from sgmodel import commands
from sgmodel.recipes.programs import PROGRAMS
from sgmodel.train.program import COMMANDS

app = commands.new_app(no_args_is_help=True)

EXAMPLES: dict[str, str] = {
    "recipes": "recipes",
    **{name: f"{name.replace('_', '-')} {facts.example}" for name, facts in COMMANDS.items()},
    "predict": "predict --input out/build --weights out/runs/segment-demo-tiny/checkpoint-best",
    "convert": "convert SpectralGPT+.pth --out out/weights/spectralgpt-plus",
    "sizes": "sizes base --px 128 --processes 8",
    "reproduce": "reproduce city --shards out/shards --shards out/pairs --out out/ledger",
}


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=commands.show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Pretrain, fine-tune and apply SpectralGPT and baseline models on Sentinel-2 shards."""


BODIES: dict[str, Callable[..., Outcome[Any]]] = {
    "recipes": commands.recipes,
    **{name: commands.training_command(name, load) for name, load in PROGRAMS.items()},
    "predict": commands.predict,
    "convert": commands.convert,
    "sizes": commands.sizes,
    "reproduce": commands.reproduce_command(PROGRAMS),
}
FUNCTIONS = {name: as_function(body) for name, body in BODIES.items()}
"""The commands as functions of Python, which take the same arguments and return the result."""
for name, body in BODIES.items():
    app.command(name.replace("_", "-"), epilog=f"Example: sgmodel {EXAMPLES[name]}")(as_command(body))


def main() -> None:
    """Run the `sgmodel` script."""
    terminal.run(app, "sgmodel")


if __name__ == "__main__":
    main()
