"""The commands of `sgmodel`, also run as `python -m sgmodel.recipes.<program>`.

Exit codes are those of `sgdata.errors.ExitCode`. Heavy imports are inside the commands.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from sgdata import files, local_paths, log_lines, output_names, recipe_settings, terminal
from sgdata.errors import ExitCode, SettingError, one_line
from sgdata.public_commands import Outcome, as_command
from sgmodel import recipe_files
from sgmodel.train.program import COMMANDS, Loaders, Program, ProgramName

if TYPE_CHECKING:
    from sgmodel.inference.predict_places import PlacePrediction

Shards = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]DIR|URL", help="Folder of shards; repeated: their samples together, or by stages or shares."
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="PATH|HUB", help="Checkpoint folder, file, or hf:OWNER/NAME on the hub.")
]
Verify = Annotated[
    str | None,
    typer.Option(metavar="first|always", help="When members of shards are checked (training.verify of the recipe)."),
]
Recipe = Annotated[str | None, typer.Argument(help="Recipe by name or path; without it, the list of recipes.")]
Settings = Annotated[bool, typer.Option("--settings", help="Print every key of a recipe, its type, default, meaning.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the recipe; repeatable.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one operation; they affect rounding.")]


def new_app(*, no_args_is_help: bool = False) -> typer.Typer:
    """Return an app with the conventions of the `sgdata` command."""
    return typer.Typer(
        no_args_is_help=no_args_is_help,
        add_completion=False,  # installing it would edit the user's shell files
        pretty_exceptions_enable=False,  # they print local variables, which may hold credentials
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_module(command: Callable[..., Outcome[Any]], module: str, argv: Sequence[str] | None = None) -> None:
    """Run one command as `python -m sgmodel.recipes.<module>`."""
    app = new_app()
    app.command()(as_command(command))
    terminal.run(app, "sgmodel", argv, f"python -m sgmodel.recipes.{module}")


def run_training(program: Program[Any], argv: Sequence[str] | None = None) -> None:
    """Run a training program as `python -m sgmodel.recipes.<program>`."""
    run_module(training_command(program.name, lambda: program), program.name, argv)


def show_version(wanted: bool) -> None:
    """Print the version and exit if `wanted`."""
    if wanted:
        print(f"sgmodel {metadata.version('sgdata')}")
        raise typer.Exit


def list_recipes(program: str | None = None) -> Outcome[Any]:
    """Return the recipes of the package, of all programs or of one, with what they need and cost."""
    recipes = {file.path.stem: file for file in recipe_files.recipe_files(program)}
    lines = [f"{name}: {file.what} Needs: {file.needs} Cost: {file.cost}" for name, file in recipes.items()]
    about = {name: {"what": file.what, "needs": file.needs, "cost": file.cost} for name, file in recipes.items()}
    return Outcome(value=about, show=lambda: print("\n".join(lines)))


def list_settings(kind: type[Any]) -> Outcome[Any]:
    """Return key, type, default and meaning of every setting of a recipe class."""
    lines = list(recipe_settings.list_settings(kind))
    return Outcome(value=lines, show=lambda: print("\n".join(lines)))


def recipes() -> Outcome[Any]:
    """List the recipes of the package: what each is for, what it needs and what it costs."""
    return list_recipes()


# --- training ------------------------------------------------------------------------------


def training_command(name: ProgramName, load: Callable[[], Program[Any]]) -> Callable[..., Outcome[Any]]:
    """Return the command of a training program, which calls `load` when it is run."""

    def command(
        recipe: Recipe = None,
        shards: Shards = None,
        cache: Annotated[Path, typer.Option(help="Folder that caches shards at a URL.")] = Path("~/.cache/sgdata"),
        cache_gb: Annotated[float, typer.Option(min=0, help="Maximum size of the cache, per process.")] = 20.0,
        out: Annotated[Path | None, typer.Option(help="Folder of the run (default: out/runs/<recipe>).")] = None,
        retry_minutes: Annotated[
            float, typer.Option(min=0, max=1440, help="Minutes for which a failed read of shards at a URL is repeated.")
        ] = 5.0,
        weights: Weights = None,
        beside: Annotated[
            Path | None, typer.Option(metavar="RUN", help="Finished run on another split, shown on the card.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out (the default).")] = False,
        fresh: Annotated[bool, typer.Option("--fresh", help="Remove the run in --out and start again.")] = False,
        device: Device = "auto",
        parallel: Annotated[str, typer.Option(help="Under torchrun: ddp (whole models) or fsdp (sharded).")] = "ddp",
        threads: Threads = 2,
        workers: Annotated[int, typer.Option(min=1, help="Threads that decode samples; they change no result.")] = 2,
        save_minutes: Annotated[float, typer.Option(min=0, help="Minutes between two checkpoints.")] = 10.0,
        stop_after: Annotated[
            int | None, typer.Option(min=1, metavar="STEPS", help="Stop after this many steps.")
        ] = None,
        verify: Verify = None,
        measure_peak: Annotated[
            bool, typer.Option("--measure-peak", help="MFU by a measured rate, not by the GPU's peak in the table.")
        ] = False,
        changes: Changes = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the size of the run and exit.")] = False,
        settings: Settings = False,
        quiet: Quiet = False,
    ) -> Outcome[Any]:
        if settings:
            return list_settings(load().recipe)
        if recipe is None:
            return list_recipes(name)
        path = recipe_files.find(recipe, name)
        if resume and fresh:
            raise SettingError("--resume and --fresh exclude each other; give one of them")
        if beside is not None:
            _require_scored(beside, name)
        if parallel not in ("ddp", "fsdp"):
            raise SettingError(f"--parallel {parallel!r}: expected ddp or fsdp")
        log_lines.listen(quiet)
        from sgmodel import distributed
        from sgmodel.checkpoints import hub
        from sgmodel.train import run_paths

        program = load()
        own = [f"training.verify={verify}"] if verify else []
        chosen = files.read(program.recipe, path, [*(changes or ()), *own])  # in this order: the named option wins
        named = run_paths.shard_folders(shards or (), cache, cache_gb, 60 * retry_minutes)
        paths = run_paths.RunPaths(
            shards=next(iter(named.values())),
            named=named,
            out=out or Path("out/runs") / path.stem,
            weights=None if weights is None else hub.resolve(weights),
            beside=beside,
            device=device,
            parallel=cast(Literal["ddp", "fsdp"], parallel),
            threads=threads,
            workers=workers,
            save_minutes=save_minutes,
            stop_after=stop_after,
            fresh=fresh,
            dry_run=dry_run,
            measure_peak=measure_peak,
        )
        code = program.main(chosen, paths)
        # All ranks end together: a transport thread that frees a tensor while Python exits aborts the process, and
        # torchrun then ends the other ranks, rank 0 perhaps while it writes a file (pytorch/pytorch#179291).
        distributed.wait()
        return _trained(paths.out, ExitCode(code), finished=code == ExitCode.DONE and not dry_run)

    command.__name__, command.__doc__ = name, COMMANDS[name].summary
    return command


def _require_scored(beside: Path, name: ProgramName) -> None:
    """Refuse a run beside which a run of a program cannot be shown. Raises SettingError."""
    from sgmodel.train import other_split

    if not COMMANDS[name].scored:
        raise SettingError(f"--beside {beside}: {name} scores no labels; leave the option out")
    other_split.require_results(beside)


def _trained(out: Path, code: ExitCode, *, finished: bool) -> Outcome[Any]:
    """Return the folder of a run with its results; the program itself prints the folder, or what was asked for."""
    from sgmodel import distributed

    about: dict[str, Any] = {"folder": out, "finished": finished}
    if finished and (out / output_names.RESULTS).is_file():
        about["results"] = files.read_plain(out / output_names.RESULTS)
    silent = not distributed.is_main_process()
    return Outcome(value=out, show=lambda: None, document=about, code=code, silent=silent, prints=True)


# --- using checkpoints ---------------------------------------------------------------------


def predict(
    recipe: Annotated[str, typer.Argument(help="Recipe by name or path.")] = "default",
    source: Annotated[
        list[Path] | None,
        typer.Option("--input", metavar="PATH", help="GeoTIFF, build, shards; repeatable, or a folder of builds."),
    ] = None,
    after: Annotated[Path | None, typer.Option(metavar="PATH", help="The second date, for change detection.")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="DIR|HUB", help="Checkpoint folder, or hf:OWNER/NAME on the hub.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the predictions.")] = Path("out/predictions"),
    what: Annotated[str | None, typer.Option(help="classes, probabilities or embeddings.")] = None,
    bands: Annotated[
        str | None, typer.Option(metavar="B02,B03,...", help="Bands of a GeoTIFF without band names, in its order.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="L1C or L2A, of a GeoTIFF without a contract.json.")] = None,
    device: Device = "auto",
    threads: Threads = 2,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, which gets one task per input.")
    ] = None,
    changes: Changes = None,
    settings: Settings = False,
    quiet: Quiet = False,
) -> Outcome[Any]:
    """Predict maps of rasters without seams, or a row per patch or sample, with any checkpoint."""
    from sgmodel.checkpoints import hub
    from sgmodel.inference import predict as inference
    from sgmodel.inference import predict_places

    if settings:
        return list_settings(inference.PredictRecipe)
    if not source or weights is None:
        raise SettingError("--input and --weights are required: give the data and a checkpoint")
    log_lines.listen(quiet)
    options = {"what": what, "level": level, "bands": re.split(r"[\s,]+", bands) if bands else None}
    # As overrides, so that the recipe stored beside the predictions holds them.
    given = [f"{name}={json.dumps(value)}" for name, value in options.items() if value]
    chosen = files.read(inference.PredictRecipe, recipe_files.find(recipe, "predict"), [*(changes or ()), *given])
    several = predict_places.find_inputs(source)
    if after is not None and several:
        raise SettingError(f"--after {after}: {len(several)} inputs are given, expected one; give one --input")
    inputs = (source[0],) if after is None else (source[0], after)
    paths = inference.PredictPaths(inputs=inputs, weights=hub.resolve(weights), out=out, device=device, threads=threads)
    if several:
        return _predictions(predict_places.predict_each(chosen, several, paths, cluster=cluster), out)
    if cluster:
        raise SettingError(f"--cluster {cluster}: one input is predicted here; give several as --input")
    code = inference.main(chosen, paths)
    return Outcome(value=paths.out, show=lambda: None, document={"folder": paths.out}, code=ExitCode(code))


def _predictions(rows: Sequence[PlacePrediction], out: Path) -> Outcome[Any]:
    """Return the outcome of several predictions; it is refused where each of them is."""
    lines = [f"{one_line(one.name)}: {one_line(one.message or one.folder)}" for one in rows]
    failed = tuple(line for one, line in zip(rows, lines, strict=True) if one.message)
    refusal = f"no input could be predicted; the first: {failed[0]}" if len(failed) == len(rows) else ""
    show = partial(print, "\n".join(lines))
    return Outcome(value=out, show=show, document={"inputs": rows}, findings=failed, refusal=refusal)


def convert(
    source: Annotated[str, typer.Argument(help="Weight file, checkpoint folder, or hf:OWNER/NAME on the hub.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    at_least: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="Share of the encoder that must be filled; 0 takes parts."),
    ] = 0.9,
) -> Outcome[Any]:
    """Convert published weights to a checkpoint folder and report which tensors were used."""
    from sgmodel.checkpoints import convert as conversion
    from sgmodel.checkpoints import hub

    report = conversion.convert(hub.resolve(source), out, at_least=at_least)
    return Outcome(value=report, show=lambda: print(conversion.describe(report)))


def sizes(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[base|large|huge]...", help="Sizes of the model.")
    ] = None,
    px: Annotated[int, typer.Option(min=8, help="Side of the images in pixels, a multiple of 8.")] = 128,
    processes: Annotated[int, typer.Option(min=2, help="GPUs among which fsdp shards a model.")] = 8,
) -> Outcome[Any]:
    """Print how large a batch fits on GPUs of 24 to 141 GB, by size, step, precision and sharding."""
    from sgmodel.ledger import gpu_batch_sizes as table

    wanted = names or table.SIZES
    if unknown := [name for name in wanted if name not in table.SIZES]:
        raise SettingError(f"size {unknown[0]!r}: expected base, large or huge")
    lines = []
    for line in table.table(cast("list[table.Size]", wanted), px=px, processes=processes):
        print(line, flush=True)
        lines.append(line)
    note = (
        "Batches of one GPU; in brackets with training.recompute. Upper bounds of memory, counted on the meta device."
    )
    return Outcome(value=lines, show=lambda: print(f"\n{note}"), document={"lines": lines, "note": note})


# --- the ledger ----------------------------------------------------------------------------


def reproduce_command(programs: Loaders) -> Callable[..., Outcome[Any]]:
    """Return the `reproduce` command for a table of training programs."""

    def reproduce(
        recipe: Recipe = None,
        shards: Annotated[
            list[str] | None,
            typer.Option(metavar="[NAME=]DIR", help="Folder of shards, by a name of the ledger; repeatable."),
        ] = None,
        weights: Annotated[Path, typer.Option(help="Folder of published weights.")] = Path("weights"),
        out: Annotated[Path, typer.Option(help="Folder of the ledger.")] = Path("out/ledger"),
        plan: Annotated[bool, typer.Option("--plan", help="Print missing runs and their cost, and exit.")] = False,
        workers: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
        cluster: Annotated[
            str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, which gets one task per run.")
        ] = None,
        threads: Threads = 1,
        device: Device = "auto",
        launcher: Annotated[
            str, typer.Option(help="In place of 'python -m', such as 'torchrun --nproc-per-node 8 -m'.")
        ] = "",
        changes: Changes = None,
        settings: Settings = False,
    ) -> Outcome[Any]:
        """Train and score every missing run of a ledger, then write its tables."""
        from sgmodel.ledger import experiments
        from sgmodel.ledger import reproduce as ledger

        if settings:
            return list_settings(experiments.LedgerRecipe)
        if recipe is None:
            return list_recipes("reproduce")
        chosen = files.read(experiments.LedgerRecipe, recipe_files.find(recipe, "reproduce"), changes or ())
        if not shards and not plan:
            raise SettingError(f"{recipe}: no data given; add --shards DIR")
        paths = experiments.LedgerPaths(
            # Absolute, since workers on other machines have another working directory.
            data=_ledger_data(shards or ()),
            out=out.resolve(),
            programs=programs,
            weights=weights.resolve(),
            launcher=tuple(shlex.split(launcher)),
            options=("--threads", str(threads), "--device", device),
        )
        if plan:
            lines = list(map(one_line, ledger.plan(chosen, paths, workers)))
            return Outcome(value=lines, show=lambda: print("\n".join(lines)))
        code = ledger.main(chosen, paths, workers=workers, cluster=cluster)
        return Outcome(value=out / output_names.LEDGER, code=ExitCode(code))

    return reproduce


def _ledger_data(texts: Sequence[str]) -> dict[str, Path]:
    """Return finished folders of shards by the name given, or by their dataset. Raises SettingError, SourceError."""
    from sgdata.shards import contracts

    data: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.rpartition("=") if re.match(r"[\w-]+=", text) else ("", "", text)
        local_paths.require_local(path, "--shards", writes=False)
        folder = Path(path)
        files.require_finished(folder)
        name = name or contracts.read(folder).dataset
        if name in data:
            raise SettingError(
                f"--shards gives '{name}' twice: {data[name]} and {folder}; name them as in the ledger, NAME=DIR"
            )
        data[name] = folder.resolve()
    return data
