"""Test scores by distance: scored samples with their nearest training sample, bands, and where they are shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from synthetic_shards import contract as mask_contract
from synthetic_shards import pair, pair_contract, sample, scene, scene_contract
from test_classify import TRAIN, results, run_paths_for
from test_classify import recipe as classification
from test_detect_change import recipe as change
from test_segment import TINY
from test_segment import recipe as segmentation

from sgdata import files, output_names
from sgdata.errors import SettingError, SourceError
from sgdata.pages import run
from sgdata.results import other_split, scores_by_distance
from sgdata.shards import write_shards
from sgdata.types import Sample
from sgmodel.data import loader
from sgmodel.data.subset import within_budget
from sgmodel.models.image_statistics import ImageStatistics
from sgmodel.recipes import classify, detect_change, segment
from sgmodel.train import frozen_classifiers, metrics, training_distance

# Degrees of longitude at 48 degrees north that are a metre.
METRE = 1 / 74_630


def placed(made: Sample, metres: float, px: int = 16) -> Sample:
    """Return a sample `metres` east of 11 degrees, of `px` pixels of 10 m in UTM."""
    west, side = 11 + metres * METRE, px * 10
    bounds = [west, 48.0, west + side * METRE, 48.0 + side / 111_190]
    return dataclasses.replace(made, meta={**made.meta, "bounds": bounds, "crs": "EPSG:32632"})


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 12 training scenes in a row, and 8 to score at known distances east of the last one."""
    out = tmp_path_factory.mktemp("line") / "shards"
    gaps = (0, 50, 500, 1_500, 3_000, 9_000, 30_000, 90_000)
    made = [placed(scene(n, "train", 16), -160 * n) for n in range(12)]
    made += [placed(scene(12 + n, "val", 16), 160 + gap) for n, gap in enumerate(gaps)]
    write_shards.write(made, out, contract=scene_contract(16))
    return out


def test_each_sample_is_stored_with_its_nearest_training_sample(line: Path, tmp_path: Path) -> None:
    made = classification("mode=knn", "neighbours=3")
    assert classify.main(made, run_paths_for(line, tmp_path / "run")) == 0
    rows = pq.read_table(tmp_path / "run" / output_names.SCORED).to_pylist()
    assert [row["key"] for row in rows] == [f"scene-{n:05d}" for n in range(12, 20)]
    assert [row["distance_m"] for row in rows] == pytest.approx(
        [0, 50, 500, 1_500, 3_000, 9_000, 30_000, 90_000], rel=2e-3, abs=2
    )
    assert {row["nearest"] for row in rows} == {"scene-00000"}
    assert [row["labels"] for row in rows] == [[n % 4] for n in range(12, 20)]
    assert all(row["right"] == (row["labels"] == row["predicted"]) for row in rows)
    assert {row["likeness"] for row in rows} == {None}
    assert output_names.SCORED in files.read_sums(tmp_path / "run")
    # The figures of all bands together are those of the run.
    bands = results(tmp_path / "run")["by_distance"]
    assert [(band["band"], band["samples"]) for band in bands] == [  # type: ignore[attr-defined]
        ("under 100 m", 2), ("100 m to 2 km", 2), ("2 to 5 km", 1), ("5 to 20 km", 1), ("20 km and more", 2),
    ]  # fmt: skip
    total = sum(band["samples"] * band["top1"] for band in bands)  # type: ignore[attr-defined]
    assert total / 8 == pytest.approx(results(tmp_path / "run")["top1"])
    for band in bands:  # type: ignore[attr-defined]
        limits = band["top1_interval"]
        assert limits is None if band["samples"] == 1 else limits[0] <= band["top1"] <= limits[1]
    card = (tmp_path / "run" / "card.md").read_text()
    assert "## Score by distance to the nearest training sample" in card
    assert "| 20 km and more | 2 |" in card
    assert classify.main(made, run_paths_for(line, tmp_path / "again")) == 0
    assert (tmp_path / "again" / output_names.SCORED).read_bytes() == (
        tmp_path / "run" / output_names.SCORED
    ).read_bytes()


def test_a_card_shows_the_score_on_another_split(line: Path, tmp_path: Path) -> None:
    made = classification("mode=knn", "neighbours=3")
    published, ours = tmp_path / "published", tmp_path / "ours"
    assert (
        classify.main(classification("mode=knn", "neighbours=3", "val_split=train"), run_paths_for(line, published))
        == 0
    )
    assert classify.main(made, run_paths_for(line, ours, beside=published)) == 0
    theirs, mine = results(published), results(ours)
    assert mine["beside"] == {
        "run": "published", "figure": "top1", "top1": theirs["top1"], "top1_interval": theirs["top1_interval"],
        "split": "train", "samples": 12, "train_samples": 12,
    }  # fmt: skip
    assert (theirs["samples"], mine["samples"]) == (12, 8)
    card = (ours / "card.md").read_text()
    assert f"| this run | 12 | 8 | {mine['top1']:.4f} |" in card
    assert f"| published | 12 | 12 | {theirs['top1']:.4f} |" in card
    (block,) = (each for each in run._results(ours) if each.title == other_split.TITLE)
    assert [row[0] for row in block.rows] == ["this run", "published"]
    # Nothing is compared with a run that is unfinished, or of another kind.
    for folder, said in ((line, "no finished run"), (tmp_path / "none", "no finished run")):
        with pytest.raises(SettingError, match=said):
            classify.main(made, run_paths_for(line, tmp_path / "bad", beside=folder))
    other = classification("mode=logistic")
    with pytest.raises(SettingError, match="its mode is 'knn'"):
        classify.main(other, run_paths_for(line, tmp_path / "bad", beside=published, fresh=True))
    with pytest.raises(SourceError, match="expected the score of a run"):
        other_split.rows({**mine, "beside": {"figure": "top1"}})


def test_only_the_samples_trained_on_count(line: Path, tmp_path: Path) -> None:
    made = classification("mode=knn", "neighbours=1", "shots=1", "training.fraction_seed=3")
    assert classify.main(made, run_paths_for(line, tmp_path / "run")) == 0
    source = loader.Samples(line, "train", ("image",))
    chosen = classify.select_shots(source, classify.targets(source, made), made)
    nearest = min(chosen)  # the easternmost
    rows = pq.read_table(tmp_path / "run" / output_names.SCORED).to_pylist()
    assert {row["nearest"] for row in rows} == {source.keys[nearest]}
    assert rows[0]["distance_m"] == pytest.approx(160 * nearest, abs=3)


def test_a_model_that_remembers_scores_better_nearby(tmp_path: Path) -> None:
    """Neighbours share a tint that training cannot learn elsewhere: known truth of a leak."""
    made, rng = [], np.random.default_rng(0)
    for n in range(160):
        # Each place has a tint and a class that go together only there; every second sample is for scoring.
        place, held_out = n // 2, n % 2 == 1
        tint = np.random.default_rng(place).integers(500, 4_000, (12, 1, 1))
        far = held_out and place >= 40
        if far:
            tint = rng.integers(500, 4_000, (12, 1, 1))
        image = (tint + rng.integers(0, 20, (12, 16, 16))).astype(np.uint16)
        label = int(np.random.default_rng(1_000 + place).integers(0, 4))
        split = "val" if held_out else "train"
        one = Sample(key=f"it-{n}", split=split, arrays={"image": image}, meta={"labels": [label]})
        made.append(placed(one, 2_000 * place + (160 if held_out else 0) + (400_000 if far else 0)))
    write_shards.write(made, tmp_path / "shards", contract=scene_contract(16))
    recipe = classification(
        "mode=knn", "neighbours=1", "votes=equal", "model={ backbone = 'linear' }", 'normalise.scheme="zscore"'
    )
    assert classify.main(recipe, run_paths_for(tmp_path / "shards", tmp_path / "run")) == 0
    bands = {band["band"]: band for band in results(tmp_path / "run")["by_distance"]}  # type: ignore[attr-defined]
    near, far_off = bands["under 100 m"], bands["20 km and more"]
    assert near["top1"] > 0.95
    assert far_off["top1_interval"][1] < near["top1_interval"][0]


def test_likeness_replaces_metres_where_samples_have_no_place(tmp_path: Path) -> None:
    made = [scene(n, "train", 16) for n in range(8)] + [scene(n, "val", 16) for n in range(8, 12)]
    made.append(dataclasses.replace(made[3], key="copy", split="val"))
    made.append(dataclasses.replace(made[3], key="noise", split="val", arrays={
        "image": np.random.default_rng(0).integers(1, 4_000, (12, 16, 16)).astype(np.uint16)}))  # fmt: skip
    write_shards.write(made, tmp_path / "shards", contract=scene_contract(16))
    train, held_out = (loader.Samples(tmp_path / "shards", split, ("image",)) for split in ("train", "val"))
    near = training_distance.measure(train, held_out)
    assert near.metres is None
    assert near.likeness is not None
    found = dict(zip(held_out.keys, zip(near.likeness, near.nearest, strict=True), strict=True))
    assert found["copy"] == (pytest.approx(1, abs=1e-5), made[3].key)
    assert found["noise"][0] < 0.5

    # By hand: the correlation of the means of 2 x 2 pixels.
    def cells(one: Sample) -> np.ndarray:
        return one.arrays["image"].reshape(12, 8, 2, 8, 2).mean(axis=(2, 4)).ravel()

    true = max(np.corrcoef(cells(made[8]), cells(each))[0, 1] for each in made[:8])
    assert found[made[8].key][0] == pytest.approx(true, abs=1e-4)
    assert classify.main(classification("mode=knn"), run_paths_for(tmp_path / "shards", tmp_path / "run")) == 0
    bands = results(tmp_path / "run")["by_distance"]
    assert {band["band"] for band in bands} <= {name for _, name in scores_by_distance.LIKENESS}  # type: ignore[attr-defined]
    assert sum(band["samples"] for band in bands) == 6  # type: ignore[attr-defined]


def test_pixels_and_change_are_scored_by_distance(tmp_path: Path) -> None:
    made = [placed(sample(n, "train" if n < 6 else "val", 32, 32), 320 * n, 32) for n in range(8)]
    write_shards.write(made, tmp_path / "masks", contract=mask_contract(32))
    recipe = segmentation("tiny", *TINY, "training.epochs=1")
    assert segment.main(recipe, run_paths_for(tmp_path / "masks", tmp_path / "segment")) == 0
    bands = [(band["band"], band["samples"]) for band in results(tmp_path / "segment")["by_distance"]]  # type: ignore[attr-defined]
    assert bands == [("under 100 m", 1), ("100 m to 2 km", 1)]
    rows = pq.read_table(tmp_path / "segment" / output_names.SCORED).to_pylist()
    assert all(0 <= row["right_pixels"] <= row["pixels"] == 32 * 32 - 4 for row in rows)
    cities = [placed(pair(f"city-{n}", "train" if n < 3 else "val", 32, 32, seed=n), 30_000 * n, 32) for n in range(5)]
    write_shards.write(cities, tmp_path / "pairs", contract=pair_contract())
    recipe = change("val_split=val", "test_split=", "training.epochs=1")
    assert detect_change.main(recipe, run_paths_for(tmp_path / "pairs", tmp_path / "change")) == 0
    (band,) = results(tmp_path / "change")["by_distance"]  # type: ignore[misc]
    assert (band["band"], band["samples"]) == ("20 km and more", 2)
    assert band["f1"] == pytest.approx(results(tmp_path / "change")["f1"])


def test_bands_cover_every_distance_once() -> None:
    metres = np.array([0, 99.9, 100, 1_999, 2_000, 4_999, 5_000, 19_999, 20_000, 1e7])
    near = training_distance.TrainingDistance(metres=metres, likeness=None, nearest=("a",) * 10)
    assert [rows.tolist() for _, rows in near.bands] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    likeness = np.array([1, 0.9, 0.89, 0.7, 0.5, 0.49, -1])
    near = training_distance.TrainingDistance(metres=None, likeness=likeness, nearest=("a",) * 7)
    assert [rows.tolist() for _, rows in near.bands] == [[0, 1], [2, 3], [4], [5, 6]]


def test_damaged_bands_are_refused_by_the_page() -> None:
    for bands in ([1], [{"band": "x"}], "text", [{"band": "x", "samples": 2, "top1": 0.5}]):
        with pytest.raises(SourceError, match="expected a list of bands"):
            scores_by_distance.rows({"by_distance": bands})
    assert scores_by_distance.rows({}) == ()


# --- statistics, votes, logistic regression ------------------------------------------------


def test_statistics_are_those_of_numpy() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 20, 24)).astype(np.float32))
    found = ImageStatistics(3).pooled(images).numpy()
    assert found.shape == (3, 30)
    for image, row in zip(images.numpy(), found, strict=True):
        flat = image.reshape(3, -1).astype(float)
        slope = np.hypot(*np.gradient(image.astype(float), axis=(1, 2))).reshape(3, -1)
        percentiles = np.percentile(flat, (10, 25, 50, 75, 90), axis=1)
        pairs = [(flat[i] - flat[j]).std() for i, j in ((0, 1), (0, 2), (1, 2))]
        true = [flat.mean(1), flat.std(1), *percentiles, slope.mean(1), slope.std(1), pairs]
        np.testing.assert_allclose(row, np.concatenate(true), rtol=1e-4)
    assert ImageStatistics(13).width == 9 * 13 + 78


def test_equal_votes_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    bank, ours, labels = rng.normal(size=(300, 6)) * 7, rng.normal(size=(80, 6)) * 7, rng.integers(0, 4, 300)
    found = frozen_classifiers.equal_votes(torch.from_numpy(ours), torch.from_numpy(bank), torch.eye(4)[labels], 5)
    mean, spread = bank.mean(0), bank.std(0)
    theirs = KNeighborsClassifier(5).fit((bank - mean) / spread, labels).predict_proba((ours - mean) / spread)
    np.testing.assert_allclose(found.numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_separates_classes(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 400)
    features = torch.from_numpy(rng.normal(size=(400, 5)) + 6 * np.eye(classes, 5)[labels]).float()
    hot = torch.eye(classes)[labels]
    logits = frozen_classifiers.logistic(features[300:], features[:300], hot[:300], single=True, strength=1.0)
    assert (logits.argmax(1).numpy() == labels[300:]).mean() > 0.95
    several = frozen_classifiers.logistic(features[300:], features[:300], hot[:300], single=False, strength=1.0)
    assert (several.argmax(1).numpy() == labels[300:]).mean() > 0.95
    # A strong penalty leaves little of the weights.
    weak = frozen_classifiers.logistic(features[300:], features[:300], hot[:300], single=True, strength=1e4)
    assert weak.std() < 0.1 * logits.std()
    padded = torch.cat([hot, torch.zeros(400, 1)], dim=1)
    absent = frozen_classifiers.logistic(features[300:], features[:300], padded[:300], single=True, strength=1.0)
    assert (absent[:, classes] == frozen_classifiers.ABSENT).all()
    with pytest.raises(SettingError, match="of one class"):
        frozen_classifiers.logistic(features[:5], features[:5], torch.eye(4)[[1] * 5], single=True, strength=1.0)


def test_the_recipes_of_statistics_run_with_each_budget(tmp_path: Path) -> None:
    from sgdata.packing import pack, select_samples
    from tests import synthetic

    source = synthetic.eurosat_rgb(tmp_path / "source", each=12)
    shards = tmp_path / "shards"
    rgb = select_samples.recipe_for("eurosat", ["edition=rgb", "splits=ground-0"])
    pack.pack("eurosat", source=source, out=shards, recipe=rgb)
    figures = {}
    for name, budget in (("knn", ""), ("logistic", ""), ("knn", "10%")):
        changes = ["val_split=", "test_split=train", f"training.budget='{budget}'"]
        own = files.read(classify.ClassifyRecipe, TRAIN / f"classify-eurosat-rgb-{name}.toml", changes)
        assert classify.main(own, run_paths_for(shards, tmp_path / f"{name}{budget}")) == 0
        figures[name + budget] = results(tmp_path / f"{name}{budget}")
    assert figures["knn10%"]["train_samples"] == len(within_budget(shards, "train", "10%"))
    assert figures["knn10%"]["train_samples"] < figures["knn"]["train_samples"]  # type: ignore[operator]
    assert {each["steps"] for each in figures.values()} == {0}
    assert figures["logistic"]["mode"] == "logistic"
    with pytest.raises(SettingError, match="no samples of it, only of 10%, 100%; pack the data"):
        within_budget(shards, "train", "50")
    scenes = tmp_path / "scenes"
    write_shards.write([scene(n, "train", 16) for n in range(4)], scenes, contract=scene_contract(16))
    with pytest.raises(SettingError, match="only of none"):
        within_budget(scenes, "train", "5")


def test_figures_of_rows_have_intervals_of_these_rows() -> None:
    right = torch.tensor([True] * 50 + [False] * 50)
    known = training_distance.ScoredSamples(columns={}, figure=lambda rows: lambda w: metrics.top1(right[rows], w))
    band = training_distance._band("near", np.arange(50), known, "top1")
    assert (band["top1"], band["top1_interval"]) == (1.0, (1.0, 1.0))
    both = training_distance._band("all", np.arange(100), known, "top1")
    assert both["top1_interval"][0] < 0.45 < 0.55 < both["top1_interval"][1]
