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
class PlacePrediction:
    """Result of the prediction of one input.

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


def find_inputs(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return several inputs by name: the builds of a folder, or all that are given; none for a single one.

    Raises:
        SettingError: Two inputs have one name.
    """
    path_of: dict[str, Path] = {}
    for path in inputs:
        builds = [] if (path / output_names.IMAGE).exists() else sorted(path.glob(f"*/{output_names.IMAGE}"))
        for input_path in [build.parent for build in builds] or [path]:
            name = input_path.resolve().name if input_path.is_dir() else input_path.stem
            if name in path_of:
                raise SettingError(f"--input: {path_of[name]} and {input_path} are both named '{name}'; rename one")
            path_of[name] = input_path
    return path_of if len(path_of) > 1 or (inputs and path_of and next(iter(path_of.values())) != inputs[0]) else {}


def predict_each(
    recipe: PredictRecipe, inputs: dict[str, Path], shared: PredictPaths, *, cluster: str | None
) -> list[PlacePrediction]:
    """Predict each input into `shared.out/<name>`, one after the other or on the workers of a Dask cluster.

    Raises ServiceError if the cluster cannot be used.
    """
    jobs = [
        replace(shared, inputs=(path,), out=shared.out / safe_names.file_name(name)) for name, path in inputs.items()
    ]
    if cluster:
        jobs = [pool.absolute(job) for job in jobs]
    outcomes = pool.run(partial(_predict_input, recipe), jobs, workers=1, cluster=cluster, folder=shared.out)
    predicted = []
    for name, outcome in zip(inputs, progress.track(outcomes, label="inputs", total=len(jobs)), strict=True):
        predicted.append(replace(outcome, name=name))
    return predicted


def _predict_input(recipe: PredictRecipe, paths: PredictPaths) -> PlacePrediction:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the folder, which the table has
            code = predict.main(recipe, paths)
    except Exception as error:  # of one input, and no reason to leave the others out
        message = str(error) if isinstance(error, SgdataError) else describe_library_error(error)
        if not message:
            raise
        return PlacePrediction(name="", folder=paths.out, code=ExitCode.REFUSED, message=str(SgdataError(message)))
    return PlacePrediction(name="", folder=paths.out, code=code)
