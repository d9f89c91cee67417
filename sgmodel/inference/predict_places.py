"""Predict several inputs, such as the builds of places, each into its own folder; one that fails stops no other."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sgdata import output_names, pool, progress, safe_names
from sgdata.errors import ExitCode, SettingError, SgdataError, describe_library_error
from sgmodel.inference import predict
from sgmodel.inference.predict import PredictPaths, PredictRecipe


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What became of one input.

    Attributes:
        name: Name of the input.
        folder: Folder of its predictions.
        code: Exit code that its prediction alone would have.
        message: Why it has no prediction; "" if it has.
    """

    name: str
    folder: Path
    code: int
    message: str = ""


def find(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return several inputs by name: the builds of a folder, or all that are given; none for a single one.

    Raises:
        SettingError: Two inputs have one name.
    """
    named: dict[str, Path] = {}
    for path in inputs:
        builds = [] if (path / output_names.IMAGE).exists() else sorted(path.glob(f"*/{output_names.IMAGE}"))
        for each in [build.parent for build in builds] or [path]:
            name = each.resolve().name if each.is_dir() else each.stem
            if name in named:
                raise SettingError(f"--input: {named[name]} and {each} are both named '{name}'; rename one")
            named[name] = each
    return named if len(named) > 1 or (inputs and named and next(iter(named.values())) != inputs[0]) else {}


def run(
    recipe: PredictRecipe, inputs: dict[str, Path], shared: PredictPaths, *, cluster: str | None
) -> list[Predicted]:
    """Predict each input into `shared.out/<name>`, one after the other or on the workers of a Dask cluster.

    Raises ServiceError if the cluster cannot be used.
    """
    jobs = [
        replace(shared, inputs=(path,), out=shared.out / safe_names.file_name(name)) for name, path in inputs.items()
    ]
    if cluster:
        jobs = [pool.absolute(job) for job in jobs]
    runs = pool.run(partial(_predict_one, recipe), jobs, workers=1, cluster=cluster, folder=shared.out)
    done = []
    for name, one in zip(inputs, progress.track(runs, label="inputs", total=len(jobs)), strict=True):
        done.append(replace(one, name=name))
    return done


def _predict_one(recipe: PredictRecipe, paths: PredictPaths) -> Predicted:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the folder, which the table has
            code = predict.main(recipe, paths)
    except Exception as error:  # of one input, and no reason to leave the others out
        message = str(error) if isinstance(error, SgdataError) else describe_library_error(error)
        if not message:
            raise
        return Predicted(name="", folder=paths.out, code=ExitCode.REFUSED, message=str(SgdataError(message)))
    return Predicted(name="", folder=paths.out, code=code)
