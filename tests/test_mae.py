"""Test masking and both terms of the loss, and that the model learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import TINY, configs, images
from torch import Tensor
from torch.nn import functional

from sgdata import package_data
from sgdata.errors import SettingError
from sgmodel.models import encoder, mae

SMALL_DECODER = mae.DecoderConfig(width=16, depth=1, heads=2)


def small(config: encoder.EncoderConfig = TINY, **objective: object) -> mae.MaskedAutoencoder:
    return mae.MaskedAutoencoder(encoder.Encoder(config), SMALL_DECODER, mae.MaskedObjective(**objective))


@pytest.mark.parametrize(
    ("make", "name", "parameters", "decoder"),
    [
        (encoder.base, "base", {128: 98_640_320, 96: 98_496_960}, 13_236_416),
        (encoder.large, "large", {128: 316_142_784, 96: 315_970_752}, 13_367_488),
        (encoder.huge, "huge", {128: 643_759_040, 96: 643_558_336}, 13_498_560),
    ],
)
def test_sizes_and_keys_are_the_published_ones(make, name: str, parameters: dict[int, int], decoder: int) -> None:  # type: ignore[no-untyped-def]
    for image_px, count in parameters.items():
        with torch.device("meta"):
            model = mae.MaskedAutoencoder(encoder.Encoder(make(image_px=image_px)))
        assert sum(p.numel() for p in model.parameters()) == count
        if image_px == 128:
            rows = package_data.table(f"spectralgpt_{name}_keys")
            assert {k: "x".join(map(str, v.shape)) for k, v in model.state_dict().items()} == {
                row["key"]: row["shape"] for row in rows
            }
            own = [p for n, p in model.named_parameters() if n.startswith(("decoder", "mask_token"))]
            assert sum(p.numel() for p in own) == decoder


# --- masking ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "ratio", "k"), [(576, 0.9, 57), (1024, 0.9, 102), (576, 0.75, 144), (1024, 0.75, 256), (40, 0.9, 3)]
)
def test_kept_is_truncated_with_the_float_error(tokens: int, ratio: float, k: int) -> None:
    assert mae.count_visible(tokens, ratio) == k


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_a_ratio_that_leaves_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(SettingError, match=f"mask ratio {ratio} keeps"):
        small()(images(TINY), noise=torch.rand(2, 16), ratio=ratio)


@given(
    planes=st.integers(2, 6),
    places=st.integers(2, 25),
    ratio=st.floats(0.1, 0.9),
    seed=st.integers(0, 999),
    masking=st.sampled_from(sorted(mae.MASKINGS)),
)
@settings(max_examples=80, deadline=None)
def test_masks_keep_the_right_number_of_distinct_tokens(
    planes: int, places: int, ratio: float, seed: int, masking: str
) -> None:
    noise = torch.rand(3, planes * places, generator=torch.Generator().manual_seed(seed))
    whole = {"random": planes * places, "tube": places, "spectral": planes}[masking]
    each = planes * places // whole
    if not 0 < int(whole * (1 - ratio)) < whole:
        with pytest.raises(SettingError):
            mae.MASKINGS[masking](noise, planes, ratio)
        return
    ids = mae.MASKINGS[masking](noise, planes, ratio)
    assert ids.shape == (3, int(whole * (1 - ratio)) * each)
    assert all(len(set(row.tolist())) == ids.shape[1] for row in ids)
    kept = torch.zeros(3, planes * places).scatter(1, ids, 1.0).reshape(3, planes, places)
    if masking == "tube":
        assert (kept == kept[:, :1]).all()
    if masking == "spectral":
        assert (kept == kept[:, :, :1]).all()


def test_every_place_is_masked_equally_often() -> None:
    noise = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0))
    share = torch.ones(4000, 16).scatter(1, mae.random_tokens(noise, 4, 0.75), 0.0).mean(dim=0)
    assert (share - 0.75).abs().max() < 0.03


# --- targets and losses ----------------------------------------------------------------------


@given(config=configs)
@settings(max_examples=30, deadline=None)
def test_unpatchify_is_the_inverse_of_patchify(config: encoder.EncoderConfig) -> None:
    x = images(config)
    torch.testing.assert_close(mae.unpatchify(encoder.patchify(x, config), config), x, rtol=0, atol=0)


def losses_in_bands(pred: Tensor, target: Tensor, mask: Tensor, config: encoder.EncoderConfig) -> dict[str, Tensor]:
    """Compute both terms from whole images, with loops over bands instead of tokens."""
    shape = (len(pred), config.timesteps, config.bands, config.image_px, config.image_px)
    pixels = mask.unsqueeze(-1).expand(-1, -1, config.token_values)
    p, t, m = (mae.unpatchify(x, config).reshape(shape) for x in (pred, target, pixels))
    sums = []
    for u in range(config.group_bands):
        bands = range(u, config.bands, config.group_bands)
        sums.append((sum(p[:, :, b] for b in bands) - sum(t[:, :, b] for b in bands)) ** 2)
    per_band = [((p - t) ** 2 * m)[:, :, b].sum() / m[:, :, b].sum() for b in range(config.bands)]
    return {
        "token": ((p - t) ** 2 * m).sum() / m.sum(),
        "spectral": torch.stack(sums).mean(),
        "band": torch.stack(per_band),
    }


@given(config=configs, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_losses_agree_with_the_same_written_in_bands(config: encoder.EncoderConfig, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shape = (2, config.tokens, config.token_values)
    pred, target = torch.rand(shape, generator=random), torch.rand(shape, generator=random)
    mask = (torch.rand(shape[:2], generator=random) < 0.7).float()
    mask[:, 0] = 1.0
    expected = losses_in_bands(pred, target, mask, config)
    torch.testing.assert_close(mae.token_loss(pred, target, mask), expected["token"])
    torch.testing.assert_close(mae.spectral_loss(pred, target, config), expected["spectral"])
    torch.testing.assert_close(mae.band_loss(pred, target, mask, config), expected["band"], equal_nan=True)


def test_an_equal_error_everywhere_costs_the_square_once_and_sixteenfold() -> None:
    target = torch.rand(2, TINY.tokens, TINY.token_values)
    pred, mask = target + 0.5, torch.ones(2, TINY.tokens)
    assert mae.token_loss(pred, target, mask).item() == pytest.approx(0.25, rel=1e-4)
    assert mae.spectral_loss(pred, target, TINY).item() == pytest.approx(16 * 0.25, rel=1e-4)


def test_the_token_term_sees_removed_tokens_only_and_the_spectral_term_all() -> None:
    target = torch.rand(1, TINY.tokens, TINY.token_values)
    mask = torch.ones(1, TINY.tokens)
    mask[0, 5] = 0.0
    pred = target.clone()
    pred[0, 5] += 1.0
    assert mae.token_loss(pred, target, mask).item() == 0.0
    assert mae.spectral_loss(pred, target, TINY).item() > 0.0


def test_weights_and_normalised_targets() -> None:
    model = small(weight_token=2.0, weight_spectral=0.0, norm_pix=True)
    x, noise = images(TINY), torch.rand(2, TINY.tokens)
    out = model(x, noise=noise, ratio=0.5)
    torch.testing.assert_close(out.loss, 2 * out.loss_token)
    target = encoder.patchify(x, TINY)
    flat = target.reshape(-1, TINY.token_values)
    by_hand = torch.stack([(row - row.mean()) / (row.var() + 1e-6) ** 0.5 for row in flat]).reshape(target.shape)
    torch.testing.assert_close(out.loss_token, mae.token_loss(out.pred, by_hand, out.mask))


def test_denormalised_is_the_inverse_of_normalised() -> None:
    target = encoder.patchify(images(TINY), TINY)
    torch.testing.assert_close(mae.denormalised(mae.normalised(target), target), target)


def test_without_its_weight_a_term_is_the_plain_one() -> None:
    torch.manual_seed(0)  # of 16 tokens all of one group may stay visible: its bands then have no loss
    model, noise, x = small(), torch.rand(2, TINY.tokens), images(TINY)
    out = model(x, noise=noise, ratio=0.5)
    torch.testing.assert_close(out.loss, out.loss_token + out.loss_spectral)
    assert out.loss_band.shape == (12,)
    assert out.mask.sum(dim=1).tolist() == [8.0, 8.0]
    torch.testing.assert_close(out.loss_band.mean(), out.loss_token, rtol=0.5, atol=0)


# --- the whole -------------------------------------------------------------------------------


def test_decoding_by_scatter_equals_the_papers_unshuffle() -> None:
    model = small().eval()
    ids_shuffle = torch.rand(2, TINY.tokens).argsort(dim=1)
    ids_restore, ids_keep = ids_shuffle.argsort(dim=1), ids_shuffle[:, :5]
    latent = torch.randn(2, 5, TINY.width)
    padded = torch.cat([model.decoder_embed(latent), model.mask_token.expand(2, TINY.tokens - 5, -1)], dim=1)
    x = encoder.select_tokens(padded, ids_restore) + encoder.positions(model, "decoder_")
    expected = model.decoder_pred(model.decoder_norm(model.decoder_blocks(x)))
    torch.testing.assert_close(model.decode(latent, ids_keep), expected)


@pytest.mark.parametrize("masking", sorted(mae.MASKINGS))
@pytest.mark.parametrize(
    "change",
    [
        {"bands": 10, "group_bands": 2},
        {"bands": 13, "group_bands": 1},
        {"patch_px": 4},
        {"timesteps": 2},
        {"image_px": 24},
    ],
)
def test_other_shapes_and_maskings_train(change: dict[str, int], masking: str) -> None:
    config = dataclasses.replace(TINY, **change)
    model = small(config, masking=masking)
    out = model(images(config), noise=torch.rand(2, config.tokens), ratio=0.5)
    out.loss.backward()
    assert out.pred.shape == (2, config.tokens, config.token_values)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_two_samples_overfit_and_one_seed_gives_one_curve() -> None:
    x = torch.stack([torch.full((12, 16, 16), 0.2), torch.linspace(0, 1, 12 * 256).reshape(12, 16, 16)])
    curves = []
    for _ in range(2):
        torch.manual_seed(5)
        model, noise = small(), torch.rand(2, TINY.tokens, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        curve = []
        for _step in range(150):
            loss = model(x, noise=noise, ratio=0.75).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == curves[1]
    assert curves[0][-1] < 0.005 * curves[0][0]


def test_half_precision_keeps_the_loss_in_full() -> None:
    torch.manual_seed(0)
    model, x, noise = small(), images(TINY), torch.rand(2, TINY.tokens)
    exact = model(x, noise=noise, ratio=0.75)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, noise=noise, ratio=0.75)
    out.loss.backward()
    assert out.loss.dtype is torch.float32
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.02, atol=0)


def test_the_adopted_encoder_shares_its_weights() -> None:
    part = encoder.Encoder(TINY)
    model = mae.MaskedAutoencoder(part, SMALL_DECODER)
    assert part.blocks[0].attn.q.weight is model.blocks[0].attn.q.weight
    assert functional.mse_loss(part.pos_embed_spatial, model.pos_embed_spatial).item() == 0.0
