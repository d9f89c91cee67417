"""Every training recipe is read strictly by its program and builds its model, without memory for the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sgdata import catalog, files
from sgmodel.models import factory
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import cli, optim

TRAIN = catalog.folder("recipes") / "train"
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


AnyRecipe = pretrain.Recipe | segment.Recipe | classify.Recipe | detect_change.Recipe | contrast.Recipe


def model(path: Path) -> tuple[nn.Module, AnyRecipe]:
    with torch.device("meta"):
        if path.stem.startswith("pretrain-"):
            pretraining = files.read(pretrain.Recipe, path)
            return pretrain.build(pretraining), pretraining
        if path.stem.startswith("contrast-"):
            contrasting = files.read(contrast.Recipe, path)
            bands = len(contrasting.bands)
            return factory.contrast(contrasting.model, contrasting.contrast, bands=bands), contrasting
        if path.stem.startswith("classify-"):
            classifying = files.read(classify.Recipe, path)
            bands, classes = len(classifying.bands), 10 if "eurosat" in path.stem else 19
            return factory.classifier(classifying.model, bands=bands, classes=classes), classifying
        if path.stem.startswith("detect_change-"):
            detecting = files.read(detect_change.Recipe, path)
            return factory.detector(detecting.model, bands=len(detecting.bands)), detecting
        segmenting = files.read(segment.Recipe, path)
        return factory.segmenter(segmenting.model, bands=len(segmenting.bands), classes=13), segmenting


@pytest.mark.parametrize("path", sorted(TRAIN.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_loads_and_builds(path: Path) -> None:
    built, recipe = model(path)
    parameters = sum(p.numel() for p in built.parameters())
    assert parameters == PARAMETERS.get(path.stem, parameters)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in optim.groups(built, recipe.training.optimizer)) == len(trained)
    assert files.parse(type(recipe), files.plain(recipe), "itself") == recipe


def test_every_recipe_belongs_to_a_program() -> None:
    listed = {
        path
        for program in ("pretrain", "segment", "classify", "detect_change", "contrast")
        for path in cli.recipes(program)
    }
    assert listed == set(TRAIN.glob("*.toml"))


def test_the_released_learning_rates() -> None:
    """Base rate x batch / 256 (spec section 6)."""
    progressive = files.read(pretrain.Recipe, TRAIN / "pretrain-progressive-base.toml")
    for name, base in (("fmow", 2e-4), ("bigearthnet", 1e-4)):
        training = files.read(pretrain.Recipe, TRAIN / f"pretrain-{name}-base.toml").training
        (stage,) = (stage for stage in progressive.stages if stage.data == name)
        assert (stage.lr, stage.epochs) == (training.optimizer.lr, training.epochs)
        assert training.optimizer.lr == pytest.approx(base * training.batch / 256)
        assert training.batch % training.accumulate == 0
