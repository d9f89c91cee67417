"""Test that a pretraining step computes what the plain formulas compute: loss, gradients and 50 steps of training.

The plain step shares the weights of the model and nothing else: attention with all scores in memory, one layer after
the other, the papers' shuffle and unshuffle, and losses written out in bands.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_mae import losses_in_bands
from torch import Tensor
from torch.nn import functional

from sgmodel.models import encoder, mae, transformer
from tests.rounding import assert_same_gradient_rounding, assert_same_rounding

RATIO = 0.75
SHARED = 0.9  # at which batches of 8 images share what they compute of mask tokens
SMALL = encoder.EncoderConfig(image_px=32, width=48, depth=2, heads=4)
LONG = encoder.EncoderConfig(image_px=28, patch_px=4, group_bands=2, width=16, depth=1, heads=2)  # 294 tokens
DECODER = mae.DecoderConfig(width=16, depth=2, heads=2)

Step = Callable[[mae.MaskedAutoencoder, Tensor, Tensor, float], Tensor]


def plain_block(block: transformer.Block, x: Tensor) -> Tensor:
    attn, heads = block.attn, block.attn.heads
    y = functional.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (
        functional.linear(y, layer.weight, layer.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer in (attn.q, attn.k, attn.v)
    )
    out = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
    x = x + functional.linear(out.transpose(1, 2).flatten(2), attn.proj.weight, attn.proj.bias)
    y = functional.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
    hidden = functional.gelu(functional.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + functional.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def plain_step(model: mae.MaskedAutoencoder, images: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Return the loss of a batch by the formulas of the paper."""
    shuffle = noise.argsort(dim=1, stable=True)
    keep = mae.count_visible(model.config.tokens, ratio)
    target = encoder.patchify(images, model.config)
    x = functional.linear(target, model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias)
    x = encoder.select_tokens(x + encoder.positions(model), shuffle[:, :keep])
    for block in model.blocks:
        x = plain_block(block, x)
    x = model.decoder_embed(functional.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6))
    masked = model.mask_token.to(x.dtype).expand(len(x), model.config.tokens - keep, -1)
    x = encoder.select_tokens(torch.cat([x, masked], dim=1), shuffle.argsort(dim=1)) + encoder.positions(
        model, "decoder_"
    )
    for block in model.decoder_blocks:
        x = plain_block(block, x)
    pred = model.decoder_pred(model.decoder_norm(x))
    pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
    mask = torch.ones_like(noise, dtype=pred.dtype).scatter(1, shuffle[:, :keep], 0.0)
    losses = losses_in_bands(pred, target.to(pred.dtype), mask, model.config)
    return model.objective.weight_token * losses["token"] + model.objective.weight_spectral * losses["spectral"]


def fast_step(model: mae.MaskedAutoencoder, images: Tensor, noise: Tensor, ratio: float) -> Tensor:
    loss: Tensor = model(images, noise=noise, ratio=ratio).loss
    return loss


def build_model(config: encoder.EncoderConfig, dtype: torch.dtype, **objective: float) -> mae.MaskedAutoencoder:
    torch.manual_seed(0)
    return mae.MaskedAutoencoder(encoder.Encoder(config), DECODER, mae.MaskedObjective(**objective)).to(dtype)  # type: ignore[arg-type]


def make_batch(
    config: encoder.EncoderConfig, dtype: torch.dtype, seed: int = 0, *, ratio: float = RATIO
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    count = 8 if ratio == SHARED else 3
    images = torch.rand(count, config.bands, config.image_px, config.image_px, generator=random)
    return images.to(dtype), torch.rand(count, config.tokens, generator=random)


def compute_results(step: Step, model: mae.MaskedAutoencoder, ratio: float = RATIO) -> dict[str, Tensor]:
    model.zero_grad()
    dtype = model.mask_token.dtype
    loss = step(model, *make_batch(model.config, dtype, ratio=ratio), ratio)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("objective", [{}, {"weight_spectral": 0.0}, {"weight_token": 0.5, "weight_spectral": 2.0}])
@pytest.mark.parametrize("ratio", [RATIO, SHARED])
def test_a_step_in_float64_is_the_plain_one(objective: dict[str, float], ratio: float) -> None:
    model = build_model(SMALL, torch.float64, **objective)
    fast, plain = (compute_results(step, model, ratio) for step in (fast_step, plain_step))
    assert fast.keys() == plain.keys()
    assert len(fast) == 1 + len(list(model.parameters()))
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [RATIO, SHARED])
def test_a_step_in_float32_rounds_as_the_plain_one(ratio: float) -> None:
    exact = compute_results(fast_step, build_model(SMALL, torch.float64), ratio)
    model = build_model(SMALL, torch.float32)
    fast, plain = (compute_results(step, model, ratio) for step in (fast_step, plain_step))
    assert_same_rounding(fast, plain, exact, ["loss"])
    assert_same_gradient_rounding(fast, plain, exact, [name for name in fast if name != "loss"])


@pytest.mark.parametrize(("half", "ratio"), [(False, RATIO), (True, RATIO), (True, SHARED)])
def test_fifty_steps_have_the_losses_of_the_plain_ones(half: bool, ratio: float) -> None:
    curves = []
    for step in (fast_step, plain_step):
        model = build_model(LONG, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        curve = []
        for number in range(50):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = step(model, *make_batch(LONG, torch.float32, seed=number % 5, ratio=ratio), ratio)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=0)


def test_without_a_spectral_term_only_removed_tokens_are_predicted() -> None:
    predicted = []
    for objective in ({"weight_spectral": 0.0}, {}):
        model = build_model(SMALL, torch.float32, **objective)
        model.decoder_pred.register_forward_hook(lambda _, __, out: predicted.append(out.shape[1]))
        out = model(*make_batch(SMALL, torch.float32)[:1], noise=make_batch(SMALL, torch.float32)[1], ratio=RATIO)
        assert out.pred.shape == (3, SMALL.tokens, SMALL.token_values)
        with torch.no_grad():  # scores and pictures need all
            model(*make_batch(SMALL, torch.float32)[:1], noise=make_batch(SMALL, torch.float32)[1], ratio=RATIO)
    assert predicted == [SMALL.tokens * 3 // 4, SMALL.tokens, SMALL.tokens, SMALL.tokens]
