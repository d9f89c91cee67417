"""Test the models for scene classification and change detection."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from baselines import BASELINES, build, spectralgpt
from test_encoder import TINY, images
from test_upernet import NARROW

from sgdata import package_data
from sgmodel.models import encoder, heads, upernet


def test_the_released_classifier_has_the_published_keys() -> None:
    with torch.device("meta"):
        config = dataclasses.replace(encoder.base(), pos_embed="joint")
        model = build("classifier", spectralgpt(config, pooling="released"), 12, 10)
    rows = package_data.table("spectralgpt_base_classify_keys")
    assert {k: "x".join(map(str, v.shape)) for k, v in model.state_dict().items()} == {
        row["key"]: row["shape"] for row in rows
    }
    assert sum(p.numel() for p in model.parameters()) == 85_998_346


def test_pooling_skips_the_first_token_only_where_released_and_norms_afterwards() -> None:
    x = images(TINY)
    for pooling, first in (("mean", 0), ("released", 1)):
        model = build("classifier", spectralgpt(TINY, pooling=pooling), 12, 7)
        part = model.backbone.encoder
        encoder.initialise(part)
        tokens = part.tokens(x)
        torch.testing.assert_close(model.features(x), part.norm(tokens[:, first:].mean(dim=1)))
        assert model(x).shape == (2, 7)


def test_change_is_scored_in_log_probabilities_of_the_signed_difference() -> None:
    torch.manual_seed(0)
    model = build("change", spectralgpt(TINY, head=NARROW), 12).eval()
    before, after = images(TINY), images(TINY)
    out = model(before, after)
    assert out.shape == (2, 2, 16, 16)
    torch.testing.assert_close(out.exp().sum(dim=1), torch.ones(2, 16, 16))
    # equal dates: the merged difference is 0 everywhere, so is every image's answer
    torch.testing.assert_close(model(before, before), model(after, after))
    assert not torch.allclose(out, model(after, before))


@pytest.mark.parametrize(("layers", "dilations", "reach"), [(1, (), 1), (3, (), 3), (1, (1, 2), 4)])
def test_the_shortcut_of_change_sees_a_few_pixels_of_both_dates(
    layers: int, dilations: tuple[int, ...], reach: int
) -> None:
    torch.manual_seed(0)
    head = dataclasses.replace(NARROW, skip=8, skip_layers=layers, skip_dilations=dilations)
    model = build("change", spectralgpt(TINY, head=head), 12).eval()
    for layer in [layer for layer in model.modules() if isinstance(layer, upernet.DilatedResidual)]:
        layer.add_module("norm", torch.nn.Identity())  # its statistics are of the whole image
    torch.nn.init.zeros_(model.head.classify.weight)  # leaves the shortcut alone
    before, after = images(TINY), images(TINY)
    out = model(before, after)
    for number in range(2):
        dates = [before.clone(), after.clone()]
        dates[number][:, :, 5, 9] += 3.0  # one pixel of a token of several
        seen = (model(*dates) - out).abs().amax(dim=(0, 1)) > 0
        expected = torch.zeros_like(seen)
        expected[max(5 - reach, 0) : 6 + reach, 9 - reach : 10 + reach] = True
        assert torch.equal(seen, expected)


def test_the_bias_of_the_merge_cancels_in_change_detection() -> None:
    model = build("change", spectralgpt(TINY, head=NARROW), 12).eval()
    before, after = images(TINY), images(TINY)
    out = model(before, after)
    with torch.no_grad():
        model.backbone.merge.linear.bias += 3.0
    torch.testing.assert_close(model(before, after), out, rtol=0, atol=1e-5)


def test_change_detection_drops_nothing_in_levels_by_default() -> None:
    with torch.device("meta"):
        model = build("change", spectralgpt(encoder.base()), 12)
    assert model.head_config.dropout_levels == 0.0
    assert model.head_config.dropout == 0.5


def test_every_kind_builds_its_model_which_encodes_as_it_states() -> None:
    for kind, model in heads.MODELS.items():
        built = build(kind, BASELINES["resnet"])
        assert (type(built), built.kind) == (model, kind)
        assert built.encode(torch.rand(2, 12, 32, 32)).parts[0].ndim == (4 if model.dense else 2)
