"""Test that the first decoder block computes mask tokens once a batch, where that is less to compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sgmodel.models import encoder, mae, mask_token_attention

SMALL = encoder.EncoderConfig(image_px=32, width=48, depth=1, heads=4)  # 64 tokens
DECODER = mae.DecoderConfig(width=16, depth=2, heads=2)


def decode(model: mae.MaskedAutoencoder, images: int, ratio: float) -> Tensor:
    random = torch.Generator().manual_seed(1)
    pixels = torch.rand(images, SMALL.bands, SMALL.image_px, SMALL.image_px, generator=random)
    loss: Tensor = model(pixels, noise=torch.rand(images, SMALL.tokens, generator=random), ratio=ratio).loss
    return loss


@pytest.mark.parametrize(
    ("images", "ratio", "rows"),
    [(8, 0.9, (1, 8 * 6 + 64)), (8, 0.75, (8, 64)), (2, 0.9, (2, 64)), (4, 0.9, (1, 4 * 6 + 64))],
)
def test_mask_tokens_are_computed_once_where_that_halves_the_scores(
    images: int, ratio: float, rows: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = mae.MaskedAutoencoder(encoder.Encoder(SMALL), DECODER)
    seen = []
    for block in model.decoder_blocks:
        block.norm1.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[:2])))  # type: ignore[operator,union-attr]
    decode(model, images, ratio)
    assert seen == [rows, (images, 64)]


def test_scores_that_exponentials_cannot_hold_are_computed_in_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = mae.MaskedAutoencoder(encoder.Encoder(SMALL), DECODER)
    with torch.no_grad():
        model.decoder_blocks[0].attn.q.weight.mul_(3000)  # type: ignore[union-attr,operator]
    found = []
    attend_masks = mask_token_attention.attend_masks

    def spy(*tensors: object) -> Tensor | None:
        found.append(attend_masks(*tensors))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr("sgmodel.models.transformer.attend_masks", spy)
    together = decode(model, 8, 0.9)
    assert found == [None]
    monkeypatch.setattr(mask_token_attention, "is_faster", lambda *_: False)
    torch.testing.assert_close(together, decode(model, 8, 0.9))
