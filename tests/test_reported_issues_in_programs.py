"""Test problems that users of the original and related models reported as GitHub issues, with the programs here.

These tests cover fine-tuning. Others are elsewhere: fused query, key and value (issue 17) in test_checkpoint, bands
missing in the data (13) in test_band_selection, how a tenth was drawn (30) in test_loader.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines import build
from synthetic_shards import contract, pair, pair_contract, sample, scene, scene_contract, write_scenes

from sgdata import files, package_data
from sgdata.errors import ExitCode, SettingError, SgdataError
from sgdata.shards import write_shards
from sgdata.types import Contract, Sample
from sgmodel.checkpoints import cards, checkpoint_folder, load_weights
from sgmodel.data import normalise
from sgmodel.recipes import classify, detect_change, pretrain, segment
from sgmodel.train import run_paths

TRAIN = package_data.folder("recipes") / "train"
SIZES = ("model.encoder.image_px=16", "model.encoder.width=32", "model.encoder.depth=2", "training.batch=4")
WINDOWS = ("windows.px=16", "accept=[]")


@dataclasses.dataclass(frozen=True)
class Program:
    """A program with matching samples: its recipe with changes, its `main`, its data."""

    main: Callable[[Any, run_paths.RunPaths], int]
    kind: type[Any]
    name: str
    settings: tuple[str, ...]
    contract: Contract
    make: Callable[[int, str], Sample]

    def recipe(self, *overrides: str) -> Any:
        settings = (*SIZES, "training.epochs=1", *self.settings, *overrides)
        return files.read(self.kind, TRAIN / f"{self.name}-demo-tiny.toml", settings)

    def shards(self, out: Path, contract: Contract | None = None) -> Path:
        made = [self.make(number, "train" if number < 4 else "val") for number in range(6)]
        write_shards.write(made, out, contract=contract or self.contract)
        return out

    def weights(self, out: Path, contract: Contract, how: normalise.Normalisation) -> Path:
        """Save a checkpoint of the program's model whose card records training on data of `contract`."""
        torch.manual_seed(1)
        made = self.recipe().model
        classes = len(contract.label_space.ids)
        model = {
            "classify": lambda: build("classifier", made, bands=12, classes=classes),
            "segment": lambda: build("segmenter", made, bands=12, classes=classes),
            "detect_change": lambda: build("change", made, bands=12),
        }[self.name]()
        checkpoint_folder.save(out, model, cards.make_card(model, contract, how, {}))
        return out


PROGRAMS = {
    "classify": Program(
        classify.main, classify.ClassifyRecipe, "classify", ("labels_from=labels",), scene_contract(16),
        lambda number, split: scene(number, split, 16),
    ),
    "segment": Program(
        segment.main, segment.SegmentRecipe, "segment",
        ("model.head.skip=0", "evaluate_every=0", "augment.crop_area=[1.0, 1.0]"), contract(16),
        lambda number, split: sample(number, split, 16, 16),
    ),
    "detect_change": Program(
        detect_change.main, detect_change.ChangeRecipe, "detect_change", WINDOWS, pair_contract(),
        lambda number, split: pair(f"city-{number}", split, 20, 24, seed=number),
    ),
}  # fmt: skip


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    return dataclasses.replace(run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1), **others)  # type: ignore[arg-type]


def settled(program: Program, folder: Path) -> tuple[Contract, normalise.Normalisation]:
    """Return the contract of the shards and the normalisation that the recipe derives from it."""
    held = files.read(Contract, folder / "contract.json")
    return held, normalise.resolve(program.recipe().normalise, held)


# --- wrong pairings ------------------------------------------------------------------------


def ten_bands(held: Contract) -> Contract:
    return dataclasses.replace(held, bands=tuple(band for band in held.bands if band.name not in ("B01", "B09")))


def of_43(held: Contract) -> Contract:
    names = tuple(f"class {n}" for n in range(43))
    return dataclasses.replace(
        held,
        label_space=dataclasses.replace(held.label_space, name="v1-43", ids=tuple(range(43)), names=names, colours=()),
    )


WRONG: dict[str, tuple[Callable[[Contract], Contract], str]] = {
    "bands": (ten_bands, r"bands is B01 B02 .* B12, expected B02 B03 .* B12; accept = \['bands'\]"),
    "level": (lambda held: dataclasses.replace(held, level="L1C"), r"level is 'L2A', expected 'L1C'; accept ="),
    "label_space": (of_43, r"the weights were trained for 'v1-43' \(43 classes\); accept = \['label_space'\]"),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("what", [*WRONG, "normalisation"])
def test_weights_of_other_data_are_refused_by_name_and_taken_on_demand(tmp_path: Path, name: str, what: str) -> None:
    program = PROGRAMS[name]
    folder = program.shards(tmp_path / "shards")
    held, how = settled(program, folder)
    change, message = WRONG.get(
        what, (lambda held: held, "scheme is 'zscore', was 'minmax'.*accept = .'normalisation'. waives")
    )
    if what == "normalisation":
        how = normalise.Normalisation(scheme="minmax", eps=1e-9, mean=(), std=())
    if what == "label_space" and name == "detect_change":
        pytest.skip("change has two classes whatever the data")
    weights = program.weights(tmp_path / "weights", change(held), how)
    start = run_paths_for(folder, tmp_path / "run", weights=weights, stop_after=1)
    with pytest.raises(SettingError, match=message):
        program.main(program.recipe(), start)
    assert program.main(program.recipe(f"accept=['{what}']"), start) in {0, ExitCode.FINDINGS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_data_that_lack_a_band_of_the_model_are_refused(tmp_path: Path, name: str) -> None:
    """Issue 37 of the original asks which of the 13 bands of OSCD is dropped; here bands are selected by name."""
    program = PROGRAMS[name]
    folder = program.shards(tmp_path / "shards")
    with pytest.raises(SettingError, match="bands: B10 not in the shards, which have B01 B02"):
        names = [*(band.name for band in program.contract.bands[:-1]), "B10"]
        program.main(program.recipe(f"bands={names}"), run_paths_for(folder, tmp_path / "run"))
    with pytest.raises(SettingError, match="the model takes 12 bands, the recipe names 3: change either"):
        program.main(program.recipe("bands=['B04', 'B03', 'B02']"), run_paths_for(folder, tmp_path / "run"))


# --- names, weights, classes ---------------------------------------------------------------


def test_an_unknown_model_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """Issue 7: the README's command names a model that the code lacks, and fails with a KeyError."""
    program = PROGRAMS["classify"]
    folder = program.shards(tmp_path / "shards")
    with pytest.raises(SettingError, match="model.backbone is 'mae_vit_base': expected .*'spectralgpt'"):
        program.main(program.recipe("model.backbone=mae_vit_base"), run_paths_for(folder, tmp_path / "run"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_misspelt_setting_is_refused_with_the_nearest_name(name: str) -> None:
    """The scripts of the original accept options that are never read, such as random erasing; here they are refused."""
    with pytest.raises(SgdataError, match="evaluate_every"):
        PROGRAMS[name].recipe("evaluate_evry=1")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("segment", "evaluate_every=-1", "'evaluate_every' is -1: expected 0 to"),
        ("segment", "smoothing=2.0", "'smoothing' is 2: expected 0 to 1"),
        ("segment", f"bands={['B01', 'B01', *(f'B{n:02d}' for n in range(3, 13))]}", "bands has B01 more than once"),
        ("classify", "min_share=2.0", "'min_share' is 2: expected"),
        ("classify", "zoom=0.0", "'zoom' is 0: expected"),
        ("detect_change", "windows.stride=0", "windows of 16 px every 0: expected 1 or more"),
    ],
)
def test_settings_that_would_silently_mean_something_else_are_refused(name: str, change: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PROGRAMS[name].recipe(change)


def test_random_erasing_is_applied_or_cannot_be_asked_for(tmp_path: Path) -> None:
    """The original accepts it on the command line and never applies it."""
    folder = write_scenes(tmp_path / "shards")
    curves = []
    for erase in (0.0, 1.0):
        out = tmp_path / f"{erase}"
        made = PROGRAMS["classify"].recipe(f"mix.erase={erase}", "training.log_every=1")
        assert classify.main(made, run_paths_for(folder, out)) == 0
        curves.append((out / "metrics.jsonl").read_text())
    assert curves[0] != curves[1]
    with pytest.raises(SgdataError, match="mix"):
        PROGRAMS["segment"].recipe("mix.erase=0.25")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a file as the original's pretraining does: model, epoch, and the arguments as a Namespace."""
    path = TRAIN / "pretrain-demo-tiny.toml"
    sizes = ("model.image_px=16", "model.width=32", "model.depth=2", "decoder.width=32")
    model = pretrain.build(files.read(pretrain.PretrainRecipe, path, sizes))
    out = tmp_path_factory.mktemp("published") / "SpectralGPT+.pth"
    arguments = argparse.Namespace(model="mae_vit", lr=2e-4)
    torch.save({"model": model.state_dict(), "epoch": 99, "args": arguments}, out)
    return out


@pytest.mark.parametrize("name", PROGRAMS)
def test_published_weights_start_a_run_on_ones_own_data(tmp_path: Path, name: str, published: Path) -> None:
    """Issue 32: a missing head, an unexpected decoder, and a Namespace that a weights-only load refuses."""
    program = PROGRAMS[name]
    start = run_paths_for(program.shards(tmp_path / "shards"), tmp_path / "run", weights=published)
    made = program.recipe("training.optimizer.lr=1e-12")
    assert program.main(made, start) == 0
    ours, theirs = load_weights.read_weights(tmp_path / "run" / "checkpoint-last"), load_weights.read_weights(published)
    for tensor in ("blocks.1.attn.q.weight", "patch_embed.proj.weight", "pos_embed_temporal"):
        torch.testing.assert_close(ours[tensor], theirs[tensor])


def test_weights_of_another_size_are_refused_with_the_tensor(tmp_path: Path, published: Path) -> None:
    """Issues 1 and 32: shapes differ after a change of the settings; the original prints a message and continues."""
    program = PROGRAMS["classify"]
    start = run_paths_for(program.shards(tmp_path / "shards"), tmp_path / "run", weights=published)
    with pytest.raises(SgdataError, match=r"only 0% of the encoder's parameters fit; first, .* the model has"):
        program.main(program.recipe("model.encoder.width=64"), start)


def test_the_head_has_the_classes_of_the_data(tmp_path: Path) -> None:
    """The README's commands give no class count, so EuroSAT would be trained with 62 outputs."""
    program = PROGRAMS["classify"]
    assert program.main(program.recipe(), run_paths_for(program.shards(tmp_path / "shards"), tmp_path / "run")) == 0
    assert cards.read(tmp_path / "run" / "checkpoint-last").model.classes == 4


# --- what a run says of itself -------------------------------------------------------------


@pytest.fixture(scope="module", params=list(PROGRAMS))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program, root = PROGRAMS[request.param], tmp_path_factory.mktemp(request.param)
    made = program.recipe("evaluate_every=1", "training.epochs=2")
    assert program.main(made, run_paths_for(program.shards(root / "shards"), root / "run")) == 0
    return root / "run"


def test_the_normalisation_travels_with_the_weights(done: Path) -> None:
    """Issue 2: the file has unused constants, and the answer differs from what the code does."""
    card = cards.read(done / "checkpoint-last")
    assert card.normalisation is not None
    assert card.normalisation.scheme == "zscore"
    assert len(card.normalisation.mean) == 12
    assert "normalisation: zscore" in (done / "card.md").read_text()


def test_results_name_data_split_and_subset(done: Path) -> None:
    """CROMA issue 7 asks for macro or micro averages, the images used, and validation or test split."""
    figures = json.loads((done / "results.json").read_text())
    assert {"dataset", "split", "samples", "train_split", "train_samples", "mode", "steps"} <= set(figures)
    names = set(figures) | set(figures["best_epoch"])
    assert not {"map", "accuracy", "iou", "score"} & names, "a name says which average it is"


def test_the_best_epoch_is_kept_beside_the_last(done: Path) -> None:
    """`epoch % 10 == 10` is never true: the original saves only the last epoch but reports the best."""
    assert cards.load(done / "checkpoint-best")
    assert cards.load(done / "checkpoint-last")
    best = json.loads((done / "checkpoint-best" / "figures.json").read_text())
    assert json.loads((done / "results.json").read_text())["best_epoch"] == best


def test_a_constant_band_does_not_divide_by_zero(tmp_path: Path) -> None:
    """The released change reader divides by max - min of each window, without an eps."""
    made = [pair(f"city-{n}", "train" if n < 4 else "val", 20, 24, seed=n) for n in range(6)]
    for one in made:
        one.arrays["image_before"][3] = 700
    write_shards.write(made, tmp_path / "shards", contract=pair_contract())
    recipe = PROGRAMS["detect_change"].recipe("normalise.scheme=minmax")
    assert detect_change.main(recipe, run_paths_for(tmp_path / "shards", tmp_path / "run")) == 0
