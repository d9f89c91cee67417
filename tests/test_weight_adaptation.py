"""Adapt weights to other bands, patches and dates: values worked out by hand, and functions that are preserved."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_encoder import TINY

from sgmodel.checkpoints import load_weights
from sgmodel.models import encoder, mae, weight_adaptation


def test_shares_by_hand() -> None:
    assert weight_adaptation.shares(3, 2).tolist() == [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    assert weight_adaptation.shares(2, 4).tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]
    assert torch.equal(weight_adaptation.shares(5, 5), torch.eye(5))


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 8, 8), (1, 8, 8), (6, 16, 16), (4, 4, 4)])
def test_a_patch_of_one_value_gives_the_same_token(size: tuple[int, int, int]) -> None:
    weight = torch.randn(5, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    adapted = weight_adaptation.kernel(weight, torch.Size((5, 1, *size)))
    assert adapted.shape == (5, 1, *size)
    torch.testing.assert_close(adapted.flatten(1).sum(1), weight.flatten(1).sum(1), rtol=1e-5, atol=1e-5)


def test_an_enlarged_patch_gives_the_same_token() -> None:
    weight, patch = torch.randn(5, 1, 3, 4, 4), torch.rand(3, 4, 4)
    large = patch.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    adapted = weight_adaptation.kernel(weight, torch.Size((5, 1, 6, 8, 8)))
    torch.testing.assert_close(adapted.flatten(1) @ large.flatten(), weight.flatten(1) @ patch.flatten())


def test_spectral_tables_by_hand() -> None:
    table = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    assert weight_adaptation.spectral_table(table, 2, 1).flatten().tolist() == [0.5, 2.5]
    assert weight_adaptation.spectral_table(table, 8, 2).flatten().tolist() == [0.0, 1.0, 2.0, 3.0] * 2
    finer = weight_adaptation.spectral_table(table, 6, 1).flatten()
    assert (finer.diff() > 0).all()


@pytest.mark.parametrize(
    ("change", "resized"),
    [
        ({"bands": 10, "group_bands": 2}, {"pos_embed_temporal", "patch_embed.proj.weight"}),
        ({"bands": 9}, {"pos_embed_temporal"}),
        ({"timesteps": 3}, {"pos_embed_temporal"}),
        ({"patch_px": 4}, {"pos_embed_spatial", "patch_embed.proj.weight"}),
    ],
)
def test_weights_of_other_bands_are_made_to_fit_and_named(change: dict[str, int], resized: set[str]) -> None:
    source = mae.MaskedAutoencoder(encoder.Encoder(TINY), mae.DecoderConfig(width=16, depth=1, heads=2))
    config = dataclasses.replace(TINY, **change)
    target = encoder.Encoder(config)
    report = load_weights.fit(target, source.state_dict(), at_least=1.0)
    assert set(report.resized) == resized
    assert not report.missing

    # A patch of one value gives the token that it gave, and every position is between those that were learnt.
    def token(model: encoder.Encoder | mae.MaskedAutoencoder) -> torch.Tensor:
        return model.patch_embed(torch.full((1, 1, model.config.token_values), 0.7)).flatten()

    torch.testing.assert_close(token(target), token(source), rtol=1e-4, atol=1e-5)
    redrawn = encoder.Encoder(config)
    assert set(load_weights.fit(redrawn, source.state_dict(), at_least=0.0, tables="redraw").missing) == resized
