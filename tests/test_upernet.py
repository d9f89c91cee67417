"""Test the segmentation head: published shapes, the merge, other patch sizes, used and unused parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from baselines import build, spectralgpt
from test_encoder import TINY, images
from torch import nn
from torch.nn import functional

from sgdata import package_data
from sgdata.errors import SettingError
from sgmodel.checkpoints import weight_files
from sgmodel.models import encoder, upernet
from sgmodel.models.spectralgpt import TokenMerge

NARROW = upernet.HeadConfig(
    levels=(8, 16, 16, 32), hidden=(16, 16, 16), width=8, groups_levels=8, groups=4, dropout_levels=0.0, dropout=0.0
)


def shapes(model: nn.Module, kind: str) -> list[tuple[str, str]]:
    named = ((weight_files.released_name(k, kind), v) for k, v in model.state_dict().items())
    return sorted((name, "x".join(map(str, v.shape))) for name, v in named)


@pytest.mark.parametrize(
    ("kind", "table", "count"), [("segmenter", "segment", 109_244_946), ("change", "change", 109_219_591)]
)
def test_our_names_and_the_published_ones_map_one_to_one(kind: str, table: str, count: int) -> None:
    with torch.device("meta"):
        recipe = spectralgpt(encoder.base())
        model = build("segmenter", recipe, 12, 13) if kind == "segmenter" else build("change", recipe, 12)
    rows = package_data.table(f"spectralgpt_base_{table}_keys")
    assert shapes(model, kind) == sorted((row["key"], row["shape"]) for row in rows)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    "change", [{}, {"patch_px": 4}, {"patch_px": 16, "image_px": 32}, {"bands": 10, "group_bands": 2}]
)
def test_logits_have_the_size_of_the_image(change: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, **change)
    model = build("segmenter", spectralgpt(config, head=NARROW), config.bands, 5)
    logits = model(images(config))
    assert logits.shape == (2, 5, config.image_px, config.image_px)
    logits.sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {"backbone.encoder.norm.weight", "backbone.encoder.norm.bias"}


def test_merge_weighs_the_groups_of_each_place() -> None:
    merge = TokenMerge(TINY)
    tokens = torch.rand(2, TINY.tokens, TINY.width)
    merged = merge(tokens)
    assert merged.shape == (2, TINY.width, 2, 2)
    weight, bias = merge.linear.weight[0], merge.linear.bias[0]
    for row in range(2):
        for col in range(2):
            by_hand = sum(weight[g] * tokens[:, g * 4 + row * 2 + col] for g in range(4)) + bias
            torch.testing.assert_close(merged[:, :, row, col], by_hand)


def test_merge_accepts_several_times() -> None:
    config = dataclasses.replace(TINY, timesteps=2)
    assert TokenMerge(config).linear.weight.shape == (1, 8)
    model = build("segmenter", spectralgpt(config, head=NARROW), 12, 3)
    assert model(images(config)).shape == (2, 3, 16, 16)


def test_pooling_takes_the_maximum_of_each_part() -> None:
    pooling = upernet.PyramidPooling(NARROW)
    x = torch.rand(1, 32, 6, 6)
    seen = pooling.branches[1][0](x)
    assert seen.shape == (1, 32, 2, 2)
    torch.testing.assert_close(seen[..., 0, 1], x[..., :3, 3:].amax((-2, -1)))


def test_dropout_is_where_it_was_released() -> None:
    for config, in_levels in ((upernet.HeadConfig(), 0.5), (upernet.HeadConfig(dropout_levels=0.0), 0.0)):
        with torch.device("meta"):
            head = upernet.UperHead([64] * 4, 2, config)
        rates = {n: m.p for n, m in head.named_modules() if isinstance(m, nn.Dropout)}
        assert len(rates) == 12
        assert {rate for name, rate in rates.items() if name.startswith(("levels", "pooling"))} == {in_levels}
        assert {rate for name, rate in rates.items() if name.startswith(("lateral", "smooth", "fuse"))} == {0.5}


def test_it_learns_a_picture() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 12, 16, 16)
    target = (x[:, 0] > 0.5).long()
    x[:, :3] = target[:, None].float()
    model = build("segmenter", spectralgpt(TINY, head=NARROW), 12, 2)
    encoder.initialise(model.backbone.encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_four_equal_maps_without_scales_are_refused() -> None:
    head = upernet.UperHead((8, 8, 8, 8), 3, NARROW, scales=(1, 1, 1, 1))
    with pytest.raises(SettingError, match="set its `scales`"):
        head([torch.zeros(2, 8, 4, 4)] * 4)
