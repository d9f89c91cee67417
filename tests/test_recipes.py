"""Test that every training recipe is read strictly by its program and builds its model on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from sgdata import files, package_data
from sgdata.errors import SettingError
from sgmodel import recipe_files
from sgmodel.recipes import pretrain
from sgmodel.recipes.programs import PROGRAMS
from sgmodel.train import optim
from sgmodel.train.program import ProgramName

TRAIN = package_data.folder("recipes") / "train"
PARAMETERS = {
    "pretrain-fmow-base": 98_496_960,
    "pretrain-fmow-large": 315_970_752,
    "pretrain-fmow-huge": 643_558_336,
    "pretrain-progressive-base": 98_496_960,
    "pretrain-bigearthnet-large": 316_142_784,
    "pretrain-bigearthnet-huge": 643_759_040,
    "pretrain-bigearthnet-base": 98_640_320,
    "segment-segmunich-base": 109_244_946,
    "classify-eurosat-base-released_code": 85_998_346,
    "detect_change-oscd-base-released_code": 109_219_591,
    "segment-segmunich-base-released_code": 109_244_946,
    "segment-demo-linear": 13 * 13,
}


def model(path: Path) -> tuple[nn.Module, Any]:
    program = PROGRAMS[cast("ProgramName", path.stem.partition("-")[0])]()
    recipe = files.read(program.recipe, path)
    classes = 13 if program.name == "segment" else 10 if "eurosat" in path.stem else 19
    with torch.device("meta"):
        return program.model(recipe, classes), recipe


@pytest.mark.parametrize("path", sorted(TRAIN.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_loads_and_builds(path: Path) -> None:
    built, recipe = model(path)
    parameters = sum(p.numel() for p in built.parameters())
    assert parameters == PARAMETERS.get(path.stem, parameters)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in optim.groups(built, recipe.training.optimizer)) == len(trained)
    assert files.parse(type(recipe), files.to_plain(recipe), "itself") == recipe


def test_every_recipe_belongs_to_a_program_and_has_a_complete_header() -> None:
    listed = recipe_files.recipe_files()
    assert {file.program for file in listed} == {*PROGRAMS, "predict", "reproduce"}
    assert {file.path for file in listed} >= set(TRAIN.glob("*.toml"))
    assert not [file.path.name for file in listed if not (file.what and file.needs and file.cost)]
    assert len({file.path.stem for file in listed}) == len(listed)


def test_recipes_are_found_by_name_and_by_path() -> None:
    path = TRAIN / "segment-demo-tiny.toml"
    assert (
        recipe_files.find("segment-demo-tiny", "segment")
        == recipe_files.find("segment-demo-tiny.toml", "segment")
        == path
    )
    assert recipe_files.find(str(path), "segment") == path
    with pytest.raises(SettingError, match="did you mean 'segment-demo-tiny'"):
        recipe_files.find("segment-demo-tny", "segment")


def test_the_released_learning_rates() -> None:
    """Compare with base rate x batch / 256."""
    progressive = files.read(pretrain.PretrainRecipe, TRAIN / "pretrain-progressive-base.toml")
    for name, base in (("fmow", 2e-4), ("bigearthnet", 1e-4)):
        training = files.read(pretrain.PretrainRecipe, TRAIN / f"pretrain-{name}-base.toml").training
        (stage,) = (stage for stage in progressive.stages if stage.data == name)
        assert (stage.lr, stage.epochs) == (training.optimizer.lr, training.epochs)
        assert training.optimizer.lr == pytest.approx(base * training.batch / 256)
        assert training.batch % training.accumulate == 0
