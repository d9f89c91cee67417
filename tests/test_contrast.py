"""Test MoCo and SimCLR: losses worked out by hand, the queue, exact resume; run every row of the city's ledger."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from baselines import BASELINES, build
from synthetic_shards import write
from torch.nn import functional

from sgdata import files, package_data
from sgdata.errors import ExitCode, SettingError
from sgmodel.checkpoints import cards, checkpoint_folder, load_weights
from sgmodel.data import loader
from sgmodel.ledger import experiments
from sgmodel.models import contrastive, specs
from sgmodel.recipes import contrast
from sgmodel.recipes.programs import PROGRAMS
from sgmodel.train import run_paths, training

RECIPES = package_data.folder("recipes")
QUICK = ("training.batch=4", "training.epochs=3", "model.image_px=32", "contrast.projection=8")
ROWS = [
    pytest.param(table, row, id=f"{table.program}-{row.name}".replace(" ", "-"))
    for table in files.read(experiments.LedgerRecipe, RECIPES / "ledger" / "city.toml").tables
    if table.program in {"segment", "classify"}
    for row in table.rows
]


def moco(**others: object) -> contrastive.ContrastiveModel:
    torch.manual_seed(0)
    objective = contrastive.ContrastiveObjective(method="moco", temperature=0.2, projection=8, queue=6, momentum=0.9)
    changed = dataclasses.replace(objective, **others)  # type: ignore[arg-type]
    return specs.ContrastSpec(recipe=BASELINES["vit"], bands=12, objective=changed).build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("contrast") / "shards", train=6, val=4, px=64)


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    known = run_paths.RunPaths(shards=folder, named={"toy": folder}, out=out, device="cpu", threads=1)
    return dataclasses.replace(known, **others)  # type: ignore[arg-type]


def recipe(method: str, *changes: str) -> contrast.ContrastRecipe:
    return files.read(contrast.ContrastRecipe, RECIPES / "train" / f"contrast-demo-{method}.toml", (*QUICK, *changes))


def test_moco_compares_with_the_other_view_and_the_queue() -> None:
    model, (first, second) = moco(), torch.rand(2, 3, 12, 32, 32)
    queue = model.queue.clone()  # type: ignore[operator]
    loss, _ = model(first, second)
    query, key = (functional.normalize(model.head(model.backbone.pooled(x)), dim=1) for x in (first, second))
    total = 0.0
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(q, other, strict=True)) / 0.2 for other in (k, *queue.tolist())]
        total += math.log(sum(map(math.exp, scores))) - scores[0]
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    model.follow(torch.zeros(()))
    # First in, first out: three old answers have left at the front.
    torch.testing.assert_close(model.queue, torch.cat([queue[3:], key.detach()]))


def test_invalid_contrast_settings_are_refused() -> None:
    for wrong in ("temperature=0.0", "queue=0", "momentum=2.0"):
        with pytest.raises(SettingError, match="expected a temperature above 0"):
            recipe("moco", f"contrast.{wrong}")


def test_the_copy_follows_slowly_and_learns_nothing_itself() -> None:
    model = moco()
    loss, _ = model(*torch.rand(2, 3, 12, 32, 32))
    loss.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("slow"))
    with torch.no_grad():
        model.head[0].weight += 1.0  # type: ignore[operator]
    before = model.slow_head[0].weight.clone()  # type: ignore[operator]
    model.follow(torch.zeros(()))
    torch.testing.assert_close(model.slow_head[0].weight, before + 0.1)  # type: ignore[arg-type]
    model.eval()
    model(*torch.rand(2, 3, 12, 32, 32))
    assert not model.waiting


def test_simclr_compares_with_all_other_views() -> None:
    model, views = moco(method="simclr"), torch.rand(2, 3, 12, 32, 32)
    loss, _ = model(*views)
    z = functional.normalize(model.head(model.backbone.pooled(views.flatten(0, 1))), dim=1)
    scores = ((z @ z.T) / 0.2).exp()
    by_hand = [-torch.log(scores[i, (i + 3) % 6] / (scores[i].sum() - scores[i, i])) for i in range(6)]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_interrupted_equals_uninterrupted_and_the_backbone_is_reused(method: str, folder: Path, tmp_path: Path) -> None:
    made = recipe(method, *(["contrast.queue=16"] if method == "moco" else []))
    assert contrast.main(made, run_paths_for(folder, tmp_path / "whole")) == 0
    assert contrast.main(made, run_paths_for(folder, tmp_path / "cut", stop_after=2)) == ExitCode.FINDINGS
    assert contrast.main(made, run_paths_for(folder, tmp_path / "cut", workers=3)) == 0
    sums = [(tmp_path / name / "SHA256SUMS").read_bytes() for name in ("whole", "cut")]
    assert sums[0] == sums[1]
    figures = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert 0 <= figures["val_top1"] <= 1
    weights = tmp_path / "whole" / "checkpoint-last"
    again = cards.load(weights)
    assert isinstance(again, contrastive.ContrastiveModel)
    report = load_weights.fit(build("segmenter", made.model, bands=12, classes=4), load_weights.read_weights(weights))
    assert report.encoder_share == 1.0
    assert all(name.startswith(("slow", "queue", "head")) or "slow" in name for name in report.unexpected)


def test_the_follower_of_a_checkpoint_is_not_taken_for_the_model(tmp_path: Path) -> None:
    source = moco()
    with torch.no_grad():
        for parameter in source.slow_backbone.parameters():  # type: ignore[union-attr]
            parameter += 1.0
    checkpoint_folder.save(tmp_path, source, cards.ModelCard(model=specs.describe(source)))
    model = build("classifier", BASELINES["vit"], bands=12, classes=2)
    load_weights.fit(model, load_weights.read_weights(tmp_path))
    ours, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("backbone."))


def test_spectralgpt_is_pretrained_by_contrast_and_its_encoder_reused(folder: Path, tmp_path: Path) -> None:
    table = files.to_plain(BASELINES["spectralgpt"])["encoder"]
    model = f"model={{ backbone = 'spectralgpt', encoder = {toml_table(table)} }}"
    made = recipe("moco", "contrast.queue=16", "training.epochs=1", model, "model.image_px=0")
    assert contrast.main(made, run_paths_for(folder, tmp_path)) == 0
    weights = tmp_path / "checkpoint-last"
    trained = cards.load(weights)
    assert isinstance(trained, contrastive.ContrastiveModel)
    fresh = build("classifier", BASELINES["spectralgpt"], bands=12, classes=2)
    report = load_weights.fit(fresh, load_weights.read_weights(weights))
    assert report.encoder_share == 1.0
    ours, theirs = (each.backbone.state_dict() for each in (fresh, trained))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def toml_table(table: dict[str, object]) -> str:
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in table.items()) + " }"


def test_views_differ_and_repeat(folder: Path) -> None:
    made = recipe("simclr")
    other = dataclasses.replace(made, training=dataclasses.replace(made.training, seed=2))
    seen = []
    for one in (made, made, other):
        source = training.open_samples(folder, one.training, ("image",))
        setting = training.resolve(one, source.contract, run_paths_for(folder, Path("unused")))
        (batch,) = loader.load(source, loader.in_order(6, 6), threads=1)
        seen.append([contrast.view(setting, batch, training.normalised_pixels(setting, batch), n) for n in (0, 1)])
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][0], seen[0][1])
    assert not torch.equal(seen[0][1], seen[2][0])  # a neighbouring seed's first view is not this one's second


def test_it_learns_to_distinguish_images(folder: Path, tmp_path: Path) -> None:
    easy = ("augment.crop_area=[1.0, 1.0]", "augment.quarter_turns=false", "training.log_every=39")
    made = recipe("simclr", "training.batch=6", "training.epochs=40", *easy)
    assert contrast.main(made, run_paths_for(folder, tmp_path)) == 0
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["loss_last"] < 0.75 * figures["loss_first"]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "row"), ROWS)
def test_every_row_of_the_ledger_runs_two_steps(
    table: experiments.LedgerTable, row: experiments.LedgerRow, folder: Path, tmp_path: Path
) -> None:
    program = PROGRAMS[table.program]()
    changes = (*table.set, *row.set, "training.fraction=1.0", "training.batch=4", "training.epochs=2")
    changes = (*changes, "training.accumulate=1")
    made = files.read(program.recipe, RECIPES / (row.recipe or table.recipe), changes)
    weights = None
    for before in row.before:
        first = PROGRAMS[before.program]()
        quick = [*before.set, "training.batch=4", "training.epochs=0.5", "training.log_every=1"]
        assert (
            first.main(files.read(first.recipe, RECIPES / before.recipe, quick), run_paths_for(folder, tmp_path / "a"))
            == 0
        )
        weights = tmp_path / "a" / "checkpoint-last"
    # Published weights are not here; their models are built all the same, and say what they are.
    dry = bool(row.weights)
    if made.model.encoder is not None and made.model.px > 64:
        # SpectralGPT base as published; the city's patches have 128 px, these shards 64.
        encoder = dataclasses.replace(made.model.encoder, image_px=64)
        made = dataclasses.replace(made, model=dataclasses.replace(made.model, encoder=encoder))
    code = program.main(made, run_paths_for(folder, tmp_path / "b", weights=weights, stop_after=2, dry_run=dry))
    assert code == (0 if dry else ExitCode.FINDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_two_ranks_give_the_curve_of_one(method: str, folder: Path, tmp_path: Path) -> None:
    # A ViT has no BatchNorm, whose statistics would be those of one rank.
    vit = "model.options={ patch_size = 8, embed_dim = 16, depth = 2, num_heads = 2 }"
    settings = [*QUICK, "model.backbone=timm:vit_base_patch16_224", vit, "training.epochs=6"]
    curves = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks == 2 else []
        words = [str(RECIPES / "train" / f"contrast-demo-{method}.toml"), "--shards", str(folder), "--out", str(out)]
        more = ["--device=cpu", "--threads=1", "-q", *(f"--set={text}" for text in settings)]
        subprocess.run([sys.executable, *start, "-m", "sgmodel.recipes.contrast", *words, *more], check=True)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
