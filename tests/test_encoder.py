"""Test the encoder: token order, embedding of kept tokens, blocks against torch's own, sizes, initialisation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel.models import encoder, transformer

TINY = encoder.EncoderConfig(image_px=16, width=24, depth=2, heads=3)

configs = st.builds(
    lambda groups, group, side, patch, times, positions: encoder.EncoderConfig(
        bands=groups * group,
        group_bands=group,
        image_px=side * patch,
        patch_px=patch,
        timesteps=times,
        width=12,
        depth=1,
        heads=2,
        pos_embed=positions,
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 2),
    st.sampled_from(["separate", "joint"]),
)


def images(config: encoder.EncoderConfig, n: int = 2) -> Tensor:
    shape = (config.bands, config.image_px, config.image_px)
    return torch.rand(n, *(shape if config.timesteps == 1 else (config.timesteps, *shape)))


def with_random_tables(config: encoder.EncoderConfig) -> encoder.Encoder:
    model = encoder.Encoder(config)
    encoder.initialise(model)
    return model.eval()


def test_tokens_run_group_row_column_and_inside_band_row_column() -> None:
    config = encoder.EncoderConfig(bands=4, group_bands=2, image_px=6, patch_px=3, width=4, heads=1)
    band, row, col = torch.meshgrid(torch.arange(4), torch.arange(6), torch.arange(6), indexing="ij")
    tokens = encoder.patchify((100 * band + 10 * row + col)[None], config)
    assert tokens.shape == (1, 8, 18)
    assert tokens[0, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22, 100, 101, 102, 110, 111, 112, 120, 121, 122]
    # first value of each token: groups 0 and 2 slowest, then rows 0 and 3, then columns 0 and 3
    assert tokens[0, :, 0].tolist() == [0, 3, 30, 33, 200, 203, 230, 233]


@given(config=configs)
@settings(max_examples=30, deadline=None)
def test_embedding_equals_the_equivalent_convolution(config: encoder.EncoderConfig) -> None:
    x, embed = images(config), encoder.PatchEmbed(config)
    frames = x.reshape(2, 1, -1, config.image_px, config.image_px)
    expected = embed.proj(frames).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(encoder.patchify(x, config)), expected, rtol=0, atol=1e-5)


@given(config=configs, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_embedding_only_the_visible_equals_embedding_all_and_gathering(
    config: encoder.EncoderConfig, seed: int
) -> None:
    model = with_random_tables(dataclasses.replace(config, depth=1))
    model.blocks = torch.nn.Sequential()  # embedding and positions alone: attention mixes what it is given
    x, random = images(config), torch.Generator().manual_seed(seed)
    ids = torch.rand(2, config.tokens, generator=random).argsort(dim=1)[:, : 1 + config.tokens // 3]
    everything = model.tokens(x)
    assert everything.shape == (2, config.tokens, config.width)
    torch.testing.assert_close(model.tokens(x, ids), encoder.select_tokens(everything, ids), rtol=0, atol=1e-6)


def test_position_of_a_token_is_spatial_plus_spectral() -> None:
    model = with_random_tables(TINY)
    table = encoder.positions(model)
    for group in range(4):
        for place in range(4):
            expected = model.pos_embed_spatial[0, place] + model.pos_embed_temporal[0, group]
            torch.testing.assert_close(table[0, group * 4 + place], expected)


def test_block_equals_torchs_own_layer() -> None:
    torch.manual_seed(0)
    block = transformer.Block(24, 3, 4.0).eval()
    theirs = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    attn = block.attn
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]),
            "self_attn.in_proj_bias": torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]),
            "self_attn.out_proj.weight": attn.proj.weight,
            "self_attn.out_proj.bias": attn.proj.bias,
            "linear1.weight": block.mlp.fc1.weight,
            "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": block.mlp.fc2.weight,
            "linear2.bias": block.mlp.fc2.bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
    )
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(x), theirs.train()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"bands": 10, "group_bands": 2},
        {"bands": 13, "group_bands": 1},
        {"patch_px": 4, "image_px": 24},
        {"patch_px": 16, "image_px": 32},
        {"image_px": 96},
        {"image_px": 120},
        {"timesteps": 3},
        {"pos_embed": "joint"},
    ],
)
def test_other_shapes(change: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, **change)
    model = with_random_tables(config)
    out = model(images(config))
    out.sum().backward()
    assert out.shape == (2, config.tokens, 24)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_several_times_are_further_tokens_with_their_own_rows() -> None:
    config = dataclasses.replace(TINY, timesteps=2)
    model = with_random_tables(config)
    assert model.pos_embed_temporal.shape == (1, 8, 24)
    x = images(config)
    stacked = dataclasses.replace(TINY, bands=24)
    torch.testing.assert_close(encoder.patchify(x, config), encoder.patchify(x.flatten(1, 2), stacked))


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(3)
        model = encoder.Encoder(dataclasses.replace(TINY, drop_path=0.4)).train()
        encoder.initialise(model)
        if recompute:
            transformer.recompute_activations(model)
        model(torch.ones(4, 12, 16, 16)).sin().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_drop_path_is_a_ramp_and_keeps_the_mean() -> None:
    model = encoder.Encoder(dataclasses.replace(TINY, depth=5, drop_path=0.4))
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    dropped = transformer.drop_path(torch.ones(20_000, 2, 2), 0.25)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (dropped.flatten(1).std(dim=1) == 0).all(), "a sample's branch falls out as a whole"


@pytest.mark.parametrize("tokens", [3, 102, 700, 1100])
def test_attention_in_bf16_on_a_cpu_is_that_of_the_kernel(tokens: int) -> None:
    torch.manual_seed(0)
    single = [torch.randn(2, 3, tokens, 16, requires_grad=True) for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in single]
    expected = functional.scaled_dot_product_attention(*single)
    found = transformer.attend(*half)
    for out in (expected, found):
        out.float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    for ours, theirs in zip(half, single, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=0.1, atol=0.02 * float(theirs.grad.abs().max()))


def test_attention_in_bf16_on_a_cpu_has_the_same_bits_on_any_number_of_threads() -> None:
    before, gradients = torch.get_num_threads(), []
    q, k, v = (torch.randn(2, 3, 300, 16, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3))
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            transformer.attend(*inputs).float().square().sum().backward()  # type: ignore[no-untyped-call]
            gradients.append([x.grad for x in inputs])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=0)


def test_fresh_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, width=192, heads=4)
    model = encoder.Encoder(config)
    assert model.pos_embed_spatial.abs().max() == 0
    assert model.blocks[0].attn.q.bias.abs().max() > 0  # the framework's default
    encoder.initialise(model)
    assert model.pos_embed_spatial.std().item() == pytest.approx(0.02, rel=0.1)
    bound = (6 / (192 + 192)) ** 0.5
    for layer in (model.blocks[1].attn.q, model.blocks[1].attn.proj):
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.bias.abs().max() == 0
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.patch_embed.proj.bias.abs().max().item() == pytest.approx(192**-0.5, rel=0.1)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SettingError, match="bands 10 is not a multiple of group_bands 3"):
        encoder.Encoder(dataclasses.replace(TINY, bands=10))
    with pytest.raises(SettingError, match="image_px 100 is not a multiple of patch_px 8"):
        encoder.Encoder(dataclasses.replace(TINY, image_px=100))
    with pytest.raises(SettingError, match="model.pos_embed_init is 'sincos', a width is 18: expected a multiple of 4"):
        encoder.initialise(encoder.Encoder(dataclasses.replace(TINY, width=18, pos_embed_init="sincos")))


@pytest.mark.parametrize("shape", [(2, 10, 16, 16), (2, 12, 32, 32), (12, 16, 16)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"the model takes \(N, 12, 16, 16\)"):
        encoder.Encoder(TINY).tokens(torch.zeros(shape))
