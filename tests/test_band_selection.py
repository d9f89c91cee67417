"""Test data with fewer bands than the model: substitutes for missing bands, and their record in the checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_shards import contract, sample, write
from test_pretrain import recipe, run_paths_for

from sgdata import files, package_data, sentinel2
from sgdata.errors import ExitCode, SettingError
from sgdata.shards import write_shards
from sgdata.types import BandStatistics, Contract
from sgmodel.checkpoints import cards
from sgmodel.data import band_selection, normalise
from sgmodel.models import encoder, mae, specs
from sgmodel.recipes import classify, pretrain

TEN = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12")
NO_LAST_GROUP = tuple(name for name in sentinel2.L2A_BANDS if name not in {"B08", "B09", "B11", "B12"})


def fewer(out: Path, names: tuple[str, ...]) -> Path:
    """Return the toy shards with some of the bands."""
    kept = [sentinel2.L2A_BANDS.index(name) for name in names]
    made = []
    for number in range(6):
        one = sample(number, "train" if number < 4 else "val", 32, 32)
        arrays = one.arrays | {"image": np.ascontiguousarray(one.arrays["image"][kept])}
        made.append(dataclasses.replace(one, arrays=arrays))
    narrow = dataclasses.replace(contract(32), bands=sentinel2.bands(names), shape=(len(names), 32, 32))
    write_shards.write(made, out, contract=narrow)
    return out


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fewer(tmp_path_factory.mktemp("missing") / "ten", TEN)


def of_ten(px: int) -> Contract:
    flat = {"count": 1, "min": 0.0, "max": 0.0, "p1": 0.0, "p2": 0.0, "p50": 0.0, "p98": 0.0, "p99": 0.0}
    known = {name: BandStatistics(mean=10.0 * i, std=1.0 + i, **flat) for i, name in enumerate(TEN)}  # type: ignore[arg-type]
    return dataclasses.replace(contract(px), bands=sentinel2.bands(TEN), statistics=known)


def test_missing_bands_are_filled_as_configured() -> None:
    ours = dataclasses.replace(contract(32), bands=sentinel2.bands(TEN))
    assert band_selection.find_indices(ours, TEN) is None
    assert band_selection.find_indices(ours, sentinel2.L2A_BANDS, "nearest") == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9]
    band_indices = band_selection.find_indices(ours, sentinel2.L2A_BANDS, "mean")
    assert band_indices == [0, 1, 2, 3, 4, 5, 6, band_selection.MEAN, 7, band_selection.MEAN, 8, 9]
    images = torch.rand(2, 10, 3, 3)
    assert torch.equal(band_selection.select(images, band_indices)[:, 7], images.mean(dim=1))
    # Of the bands that the recipe names, not of all that are stored.
    few = band_selection.find_indices(ours, ("B02", "B08", "B04"), "mean")
    assert torch.equal(band_selection.select(images, few)[:, 1], images[:, [1, 3]].mean(dim=1))


def test_bands_without_a_substitute_are_refused() -> None:
    ours = dataclasses.replace(contract(32), bands=sentinel2.bands(TEN))
    with pytest.raises(
        SettingError, match="bands: B08 B09 not in the shards.*normalise.missing to 'mean', 'nearest' or"
    ):
        band_selection.narrow(ours, sentinel2.L2A_BANDS)
    with pytest.raises(SettingError, match="bands: B99 not in the shards, which have B01"):
        band_selection.narrow(ours, (*TEN, "B99"), "mean")
    with pytest.raises(SettingError, match="bands: B10 not in the shards"):
        band_selection.narrow(ours, ("B10",), "nearest")


def test_constants_are_those_of_the_substitutes() -> None:
    ours = of_ten(32)
    for policy, mean, std in (("mean", 45.0, 5.5), ("nearest", 70.0, 8.0)):
        own = normalise.NormaliseRecipe(scheme="zscore", missing=policy)  # type: ignore[arg-type]
        how = normalise.resolve(own, band_selection.narrow(ours, sentinel2.L2A_BANDS, own.missing))
        assert how.absent == ("B08", "B09")
        assert (how.mean[7], how.std[7]) == (mean, std)
        assert (how.mean[8], how.std[8]) == (70.0, 8.0)


def test_the_mean_is_the_released_one(parity: Path) -> None:
    """Compare with the released reader: ten bands, twice their mean at the end, min-max scaling with eps 1e-9."""
    with np.load(parity / "preprocess.npz", allow_pickle=False) as arrays:
        raw, expected = (torch.from_numpy(arrays[f"segmunich/{name}"]) for name in ("raw", "out"))
    raw, ours = raw.permute(2, 0, 1), of_ten(len(raw))
    names = (*TEN, "B08", "B09")
    how = normalise.resolve(
        normalise.NormaliseRecipe(scheme="minmax", eps=1e-9, missing="mean"),
        band_selection.narrow(ours, names, "mean"),
    )
    valid_size = torch.tensor([raw.shape[-2:]])
    out = normalise.apply(how, raw[None], valid_size, band_selection.find_indices(ours, names, "mean"))
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", ["mean", "nearest"])
def test_a_twelve_band_model_trains_on_ten_bands_and_its_card_records_how(
    ten: Path, tmp_path: Path, policy: str
) -> None:
    made = recipe(f"normalise.missing={policy}", "training.epochs=2")
    assert pretrain.main(made, run_paths_for(ten, tmp_path)) == 0
    card = cards.read(tmp_path / "checkpoint-last")
    assert card.normalisation is not None
    assert (card.normalisation.missing, card.normalisation.absent) == (policy, ("B08", "B09"))
    assert card.model.encoder == made.model
    start = run_paths_for(ten, tmp_path / "next", weights=tmp_path / "checkpoint-last", stop_after=1)
    assert pretrain.main(made, start) == ExitCode.FINDINGS
    other = "nearest" if policy == "mean" else "mean"
    with pytest.raises(SettingError, match=f"missing is '{other}', was '{policy}'"):
        pretrain.main(recipe(f"normalise.missing={other}"), dataclasses.replace(start, out=tmp_path / "other"))


def test_weights_that_saw_all_bands_go_to_data_with_fewer(ten: Path, tmp_path: Path) -> None:
    every = write(tmp_path / "every", train=4, val=2)
    same = ("normalise.scheme=minmax", "normalise.eps=1e-9")
    pretrain.main(recipe(*same, "training.epochs=1"), run_paths_for(every, tmp_path / "first"))
    start = run_paths_for(ten, tmp_path / "run", weights=tmp_path / "first" / "checkpoint-last", stop_after=1)
    with pytest.raises(SettingError, match="bands: B08 B09 not in the shards"):
        pretrain.main(recipe(*same), start)
    assert pretrain.main(recipe(*same, "normalise.missing=mean"), start) == ExitCode.FINDINGS


def test_groups_without_data_have_no_tokens(tmp_path: Path) -> None:
    folder = fewer(tmp_path / "eight", NO_LAST_GROUP)
    every = write(tmp_path / "every", train=4, val=2)
    same = ("normalise.scheme=minmax", "normalise.eps=1e-9", "training.epochs=2")
    pretrain.main(recipe(*same), run_paths_for(every, tmp_path / "first"))
    weights = tmp_path / "first" / "checkpoint-last"
    made = recipe(*same, "normalise.missing=drop-group", "training.ema_decay=0.9")
    assert (
        pretrain.main(made, run_paths_for(folder, tmp_path / "run", weights=weights, stop_after=1)) == ExitCode.FINDINGS
    )
    assert pretrain.main(made, run_paths_for(folder, tmp_path / "run", weights=weights)) == 0
    last = cards.read(tmp_path / "run" / "checkpoint-last")
    assert last.model.encoder is not None
    assert last.contract is not None
    assert last.normalisation is not None
    assert last.model.encoder.dropped_groups == (3,)
    assert [band.name for band in last.contract.bands] == [*sentinel2.L2A_BANDS[:9]]
    assert (last.normalisation.missing, last.normalisation.absent) == ("drop-group", ("B08",))
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {name for name in logged if name.startswith("loss_B")} == {f"loss_{n}" for n in sentinel2.L2A_BANDS[:9]}
    model = cards.load(tmp_path / "run" / "checkpoint-last")
    assert model.state_dict().keys() == cards.load(weights).state_dict().keys()
    assert model.pos_embed_temporal.shape[1] == 4


def test_remaining_groups_are_encoded_as_before() -> None:
    """Dropping a group gives the tokens that the whole model computes when only the other groups are kept."""
    for positions in ("separate", "joint"):
        config = encoder.EncoderConfig(image_px=16, width=24, depth=2, heads=2, pos_embed=positions)  # type: ignore[arg-type]
        whole = mae.MaskedAutoencoder(encoder.Encoder(config))
        left = mae.MaskedAutoencoder(encoder.Encoder(dataclasses.replace(config, dropped_groups=(1,))))
        left.load_state_dict(whole.state_dict())
        images = torch.rand(2, 12, 16, 16)
        kept = torch.tensor([*range(4), *range(8, 16)]).expand(2, -1)
        ours = encoder.tokens(left, images[:, [0, 1, 2, 6, 7, 8, 9, 10, 11]])
        torch.testing.assert_close(ours, encoder.tokens(whole, images, kept))


@pytest.mark.parametrize("policy", ["mean", "drop-group"])
def test_a_classifier_trains_on_fewer_bands(tmp_path: Path, policy: str) -> None:
    folder = fewer(tmp_path / "eight", NO_LAST_GROUP)
    tiny = ("bands=12", "image_px=32", "patch_px=8", "group_bands=3", "width=16", "depth=1", "heads=1", "mlp_ratio=2.0")
    settings = [f"model.encoder.{text}" for text in tiny]
    path = package_data.folder("recipes") / "train" / "classify-demo-tiny.toml"
    made = files.read(classify.ClassifyRecipe, path, (*settings, "training.epochs=1", f"normalise.missing={policy}"))
    assert classify.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    card = cards.read(tmp_path / "run" / "checkpoint-last")
    assert isinstance(card.model, specs.TaskSpec)
    assert card.model.recipe.encoder is not None
    assert card.model.recipe.encoder.dropped_groups == (() if policy == "mean" else (3,))
