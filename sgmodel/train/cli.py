"""The command line that all training programs share: a recipe says what, flags say where.

Exit codes are those of `sgdata.errors.ExitCode`; 3: stopped early, the same command continues the run.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from sgdata import catalog, files
from sgdata.errors import ExitCode, SettingError, SgdataError
from sgdata.shards import contracts
from sgmodel import distributed
from sgmodel.checkpoints import hub
from sgmodel.data import tar_source

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Where a program reads, writes and runs. Nothing here changes a number of the result, but for `threads`.

    `shards` is the first folder given, `named` are all of them by the name of their data set."""

    shards: Path
    out: Path
    named: dict[str, Path] = field(default_factory=dict)
    weights: Path | None = None
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    threads: int = 2
    workers: int = 2
    save_minutes: float = 10.0
    stop_after: int | None = None
    fresh: bool = False
    dry_run: bool = False


def run(program: str, kind: type[R], main: Callable[[R, RunPaths], int], argv: Sequence[str] | None = None) -> None:
    """Parse, read the recipe as a `kind`, call `main`, exit with its code."""
    options = _parser(program).parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("sgdata").setLevel(logging.WARNING if options.quiet else logging.INFO)
    # Without a recipe there is nothing to guess: what can be asked for helps more than a refusal.
    if options.recipe is None:
        print("\n".join(["Recipes of this program:", *map(str, recipes(program))]))
        raise SystemExit(ExitCode.DONE)
    try:
        recipe = files.read(kind, options.recipe, options.set)
        code = main(recipe, _places(options))
    except SgdataError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(ExitCode.REFUSED) from None
    # Together: a thread of the transport that lets go of a tensor while Python is ending aborts the process, and
    # torchrun then ends the others, the lead in the middle of a file perhaps (pytorch/pytorch#179291).
    distributed.wait()
    raise SystemExit(code)


def recipes(program: str) -> list[Path]:
    """The recipes that come with the package for `program`."""
    return sorted((catalog.folder("recipes") / "train").glob(f"{program}-*.toml"))


def _parser(program: str) -> argparse.ArgumentParser:
    # The demo recipe runs in minutes on shards that anybody can make.
    shown = next((path.name for path in recipes(program) if "demo" in path.stem), f"{program}.toml")
    example = f"Example: python -m sgmodel.recipes.{program} recipes/train/{shown} --shards out/shards"
    parser = argparse.ArgumentParser(prog=f"python -m sgmodel.recipes.{program}", epilog=example)
    add = parser.add_argument
    add("recipe", nargs="?", type=Path, help="TOML file; without it, the recipes that come with the package")
    add(
        "--shards",
        metavar="[NAME=]DIR|URL",
        action="append",
        help="folder of shards; repeatable where stages or a mixture name several",
    )
    add("--cache", type=Path, default=Path("~/.cache/sgdata"), help="where what is read of shards at a URL is kept")
    add("--cache-gb", type=float, default=20.0, help="of it at most, per process; an epoch that fits is fetched once")
    add("--out", type=Path, metavar="DIR", help="folder of the run (default: out/runs/<recipe>)")
    add("--weights", metavar="PATH|HUB", help="checkpoint folder, published file, or OWNER/NAME on the HuggingFace hub")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where the run in --out stopped (the default)")
    again.add_argument("--fresh", action="store_true", help="remove the run in --out and begin anew")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--parallel", default="ddp", choices=("ddp", "fsdp"), help="under torchrun: whole models, or sharded ones")
    add("--threads", type=int, default=2, help="threads of the CPU's arithmetic; part of what makes a run repeatable")
    add("--workers", type=int, default=2, help="threads that decode samples; changes no result")
    add("--save-minutes", type=float, default=10.0, help="between two checkpoints")
    add("--stop-after", type=int, metavar="STEPS", help="stop cleanly after so many steps of this call")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe; repeatable")
    add("--dry-run", action="store_true", help="say what would be done, and stop")
    add("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _places(options: argparse.Namespace) -> RunPaths:
    if options.shards is None:
        raise SettingError("--shards is missing: give the folder that 'sgdata shard' wrote")
    for name in ("threads", "workers"):
        if getattr(options, name) < 1:
            raise SettingError(f"--{name} {getattr(options, name)}: expected 1 or more")
    # By the name in the contract: what a folder is called says nothing of what it holds.
    folders = [_folder(text, options.cache.expanduser(), options.cache_gb) for text in options.shards]
    named = dict(folders)
    if len(named) < len(folders):
        told = ", ".join(f"{name} = {folder}" for name, folder in folders)
        raise SettingError(f"--shards gives one data set twice ({told}); give each once")
    return RunPaths(
        shards=next(iter(named.values())),
        named=named,
        out=options.out or Path("out/runs") / options.recipe.stem,
        weights=options.weights and hub.found(options.weights),
        device=options.device,
        parallel=options.parallel,
        threads=options.threads,
        workers=options.workers,
        save_minutes=options.save_minutes,
        stop_after=options.stop_after,
        fresh=options.fresh,
        dry_run=options.dry_run,
    )


def _folder(text: str, cache: Path, cache_gb: float) -> tuple[str, Path]:
    """`DIR` or `NAME=DIR`, the name being that in its contract; of a URL, the folder that stands for it.

    Raises SettingError, SourceError.
    """
    match = re.fullmatch(r"(?:([\w-]+)=)?(.*)", text)
    name, path = match.groups() if match else (None, text)
    folder = tar_source.mirror(path, cache, cache_gb=cache_gb) if "://" in path else Path(path)
    found = contracts.read(folder).dataset
    if name and name != found:
        raise SettingError(f"--shards {text}: the folder holds '{found}', expected '{name}'")
    return found, folder
