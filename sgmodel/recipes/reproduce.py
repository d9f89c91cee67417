"""Reproduce tables of results: the same as `sgmodel reproduce`.

python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards DIR --shards DIR --out DIR [--plan]
"""

from __future__ import annotations

if __name__ == "__main__":
    from sgmodel import commands
    from sgmodel.recipes.programs import PROGRAMS

    commands.run_module(commands.reproduce_command(PROGRAMS), "reproduce")
