"""Test normalisation and geometry against the released transforms, geometry as a group, and draws per sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sgdata.errors import SettingError
from sgmodel.data import augment, normalise

MINMAX = normalise.Normalisation(scheme="minmax", eps=1e-10, mean=(), std=())


def at(
    box: list[int], *, transpose: bool = False, rows: bool = False, cols: bool = False
) -> augment.GeometricTransform:
    flags = [torch.tensor([flag]) for flag in (transpose, rows, cols)]
    return augment.GeometricTransform(
        box=torch.tensor([box]), transpose=flags[0], flip_rows=flags[1], flip_cols=flags[2]
    )


def valid_size(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([x.shape[-2:]] * len(x))


@pytest.mark.parametrize(("name", "eps"), [("fmow", 1e-10), ("ben_pretrain", 1e-12)])
def test_minmax_crop_and_flip_equal_the_released_transform(parity: Path, name: str, eps: float) -> None:
    theirs = np.load(parity / "preprocess.npz")
    raw = torch.from_numpy(theirs[f"{name}/raw"]).permute(2, 0, 1)[None]
    how = normalise.Normalisation(scheme="minmax", eps=eps, mean=(), std=())
    x = normalise.apply(how, raw, valid_size(raw))
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), theirs[f"{name}/minmax"])
    kept = [band for band in range(x.shape[1]) if x.shape[1] == 12 or band != 10]
    geometry = at(theirs[f"{name}/crop_top_left_h_w"].tolist(), cols=bool(theirs[f"{name}/flipped"]))
    expected = theirs[f"{name}/train_out"]
    ours = augment.transform_images(x[:, kept], geometry, expected.shape[1])
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=2e-6)


def test_clip_equals_the_released_eight_bit_form(parity: Path) -> None:
    theirs = np.load(parity / "preprocess.npz")
    mean, std = (tuple(theirs[f"ben_finetune/{name}"].tolist()) for name in ("mean", "std"))
    raw = torch.from_numpy(theirs["ben_pretrain/raw"]).permute(2, 0, 1)[None]
    how = normalise.Normalisation(scheme="clip", eps=0.0, mean=mean, std=std)
    x = normalise.apply(how, raw, valid_size(raw))
    assert np.array_equal((x[0].permute(1, 2, 0) * 255).round().numpy(), theirs["ben_finetune/uint8"])


def test_padding_does_not_enter_the_minimum() -> None:
    small = torch.arange(100, 124).reshape(1, 2, 3, 4)
    padded = torch.zeros(1, 2, 5, 6, dtype=small.dtype)
    padded[:, :, :3, :4] = small
    alone = normalise.apply(MINMAX, small, valid_size(small))
    assert torch.equal(normalise.apply(MINMAX, padded, torch.tensor([[3, 4]]))[:, :, :3, :4], alone)


def test_a_constant_band_gives_zeros() -> None:
    assert torch.equal(
        normalise.apply(MINMAX, torch.full((1, 1, 2, 2), 7), torch.tensor([[2, 2]])), torch.zeros(1, 1, 2, 2)
    )


def test_statistics_must_fit_the_bands() -> None:
    from synthetic_shards import contract

    recipe = normalise.NormaliseRecipe(scheme="zscore", mean=(1.0, 2.0), std=(1.0, 1.0))
    with pytest.raises(SettingError, match="2 means, 2 stds for 12 bands"):
        normalise.resolve(recipe, contract(32))
    with pytest.raises(SettingError, match=r"'toy' has no statistics of B01 .*; pack the data again"):
        normalise.resolve(normalise.NormaliseRecipe(scheme="clip"), contract(32))


@pytest.mark.parametrize("size", [32, 48, 20])
def test_bicubic_equals_torch(size: int) -> None:
    x = torch.rand(1, 3, 40, 36, generator=torch.Generator().manual_seed(1))
    ours = augment.transform_images(x, at([3, 5, 30, 24]), size)
    theirs = torch.nn.functional.interpolate(x[:, :, 3:33, 5:29], (size, size), mode="bicubic", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
def test_images_and_masks_move_alike(turns: int, flips: tuple[bool, bool]) -> None:
    y = torch.arange(64).reshape(1, 8, 8)
    rows, cols = flips[0] ^ (turns in (1, 2)), flips[1] ^ (turns in (2, 3))
    geometry = at([0, 0, 8, 8], transpose=turns % 2 == 1, rows=rows, cols=cols)
    expected = torch.rot90(y, turns, (1, 2)).flip([axis for axis, on in ((1, flips[0]), (2, flips[1])) if on])
    assert torch.equal(augment.transform_masks(y, geometry, 8), expected)
    assert torch.equal(augment.transform_images(y[:, None].float(), geometry, 8)[:, 0].long(), expected)


def test_masks_take_the_nearest_pixel_of_the_box() -> None:
    y = torch.arange(36).reshape(1, 6, 6)
    assert augment.transform_masks(y, at([1, 2, 4, 2]), 2).tolist() == [[[14, 15], [26, 27]]]


RECIPE = augment.AugmentRecipe(crop_area=(0.2, 1.0), horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True)


def test_geometry_is_drawn_per_sample_and_epoch() -> None:
    samples = torch.arange(400)
    sizes = torch.tensor([[96, 80]]).expand(400, 2)
    together = augment.draw(RECIPE, samples, torch.zeros(400, dtype=torch.long), sizes, seed=3)
    alone = augment.draw(RECIPE, samples[17:18], torch.zeros(1, dtype=torch.long), sizes[:1], seed=3)
    later = augment.draw(RECIPE, samples, torch.ones(400, dtype=torch.long), sizes, seed=3)
    assert torch.equal(together.box[17], alone.box[0])
    assert not torch.equal(together.box, later.box)
    for flag in (together.transpose, together.flip_rows, together.flip_cols):
        assert 150 < int(flag.sum()) < 250
    top, left, height, width = together.box.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 96) & (left + width <= 80)).all())
    share = (height * width) / (96 * 80)
    assert 0.19 < float(share.min()) < 0.25
    assert float(share.max()) > 0.9
    assert bool(((width / height > 0.73) & (width / height < 1.37)).all())


def test_no_augmentation_changes_nothing() -> None:
    x = torch.rand(2, 3, 16, 16)
    still = augment.draw(augment.AugmentRecipe(), torch.arange(2), torch.zeros(2).long(), valid_size(x), seed=0)
    assert torch.equal(augment.transform_images(x, still, 16), x)


# --- scoring, erasing, mixing --------------------------------------------------------------


def released(parity: Path, name: str) -> tuple[torch.Tensor, normalise.Normalisation, dict[str, np.ndarray]]:
    """Return the image (C, H, W) as the released fine-tuning reads it, its normalisation, and the released output."""
    theirs = dict(np.load(parity / "preprocess.npz"))
    raw = theirs["eurosat/raw" if name == "eurosat" else "ben_pretrain/raw"]
    mean, std = (tuple(theirs[f"{name}/{part}"].tolist()) for part in ("mean", "std"))
    scheme = "zscore" if name == "eurosat" else "clip"
    how = normalise.Normalisation(scheme=scheme, eps=0.0, mean=mean, std=std)  # type: ignore[arg-type]
    return torch.from_numpy(raw).permute(2, 0, 1)[None], how, theirs


@pytest.mark.parametrize("name", ["eurosat", "ben_finetune"])
def test_scoring_input_equals_the_released_transform(parity: Path, name: str) -> None:
    raw, how, theirs = released(parity, name)
    x = normalise.apply(how, raw, valid_size(raw))
    kept = [band for band in range(x.shape[1]) if name != "eurosat" or band != 10]
    ours = augment.zoom_in(x, valid_size(raw), 128, share=0.875)[0, kept]
    np.testing.assert_allclose(ours.numpy(), theirs[f"{name}/eval_out"], atol=1e-5)


def test_training_input_on_eurosat_equals_the_released_transform(parity: Path) -> None:
    raw, how, theirs = released(parity, "eurosat")
    x = normalise.apply(how, raw, valid_size(raw))[:, [band for band in range(13) if band != 10]]
    ours = augment.transform_images(x, at(theirs["eurosat/crop_top_left_h_w"].tolist()), 128)
    np.testing.assert_allclose(ours[0].numpy(), theirs["eurosat/train_out"], atol=1e-5)


def test_erasing_removes_a_box_from_a_quarter_of_the_samples() -> None:
    recipe = augment.MixRecipe(erase=0.25)
    samples, epoch = torch.arange(800), torch.zeros(800).long()
    x = torch.ones(800, 2, 20, 20)
    out = augment.erase(x, recipe, samples, epoch, seed=1)
    gone = (out == 0).float().mean(dim=(2, 3))
    assert torch.equal(gone[:, 0], gone[:, 1])
    erased = gone[:, 0] > 0
    assert 0.2 < float(erased.float().mean()) < 0.3
    assert float(gone[erased].min()) > 0.01 and float(gone.max()) < 0.36
    hit = out[erased][0, 0] == 0
    assert int(hit.sum()) == int(hit.any(0).sum() * hit.any(1).sum()), "a rectangle"
    alone = augment.erase(x[5:6], recipe, samples[5:6], epoch[5:6], seed=1)
    assert torch.equal(alone[0], out[5])


BOTH = augment.MixRecipe(mixup=0.8, cutmix=1.0)


def mixed(recipe: augment.MixRecipe, count: int = 600, size: int = 16) -> tuple[torch.Tensor, augment.MixedPairs]:
    """Return mixed samples, where sample i is an image of the constant i."""
    x = torch.arange(count).float()[:, None, None, None].expand(count, 1, size, size)
    how = augment.draw_mix(recipe, torch.arange(count) + 7, torch.zeros(count).long(), size, seed=2)
    return augment.mix(x, how), how


def test_labels_are_mixed_as_the_pixels_are() -> None:
    out, how = mixed(BOTH)
    labels = augment.mix_targets(torch.eye(600), how)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(600))
    # An image of one value: its mean says how much of each of the two it holds, as the label must.
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), labels @ torch.arange(600).float(), rtol=1e-5, atol=1e-3)
    assert torch.equal(how.partner[:4], torch.tensor([1, 0, 3, 2]))


def test_both_ways_of_mixing_occur_with_their_shares_and_distributions() -> None:
    out, how = mixed(BOTH, 4000)
    cut = how.box[:, 2:].prod(dim=1) > 0
    assert 0.42 < float(cut.float().mean()) < 0.52, "half, less those with an empty box"
    blend = how.blend[how.blend < 1]
    assert float(blend.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(blend.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05), "of Beta(0.8, 0.8)"
    inside = out[cut][:, 0].unique(dim=0)
    assert inside.frac().abs().max() == 0, "CutMix blends no pixel"
    only = mixed(augment.MixRecipe(mixup=0.8))[1]
    assert not only.box.any()
    assert bool((mixed(augment.MixRecipe(cutmix=1.0))[1].blend == 1).all())


def test_mixing_depends_on_neither_batch_nor_rank() -> None:
    samples, epoch = torch.tensor([9, 4, 0, 7, 30, 2, 5, 8]), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    x = torch.rand(8, 3, 16, 16)
    whole = augment.draw_mix(BOTH, samples, epoch, 16, seed=4)
    for size in (2, 4):
        for start in range(0, 8, size):
            cut = slice(start, start + size)
            part = augment.draw_mix(BOTH, samples[cut], epoch[cut], 16, seed=4)
            assert torch.equal(augment.mix(x[cut], part), augment.mix(x, whole)[cut])
            assert torch.equal(
                augment.mix_targets(torch.eye(8)[cut], part), augment.mix_targets(torch.eye(8), whole)[cut]
            )


def test_a_sample_alone_and_a_recipe_without_mixing_change_nothing() -> None:
    x = torch.rand(1, 3, 16, 16)
    alone = augment.draw_mix(BOTH, torch.tensor([3]), torch.tensor([0]), 16, seed=4)
    torch.testing.assert_close(augment.mix(x, alone), x)
    none = augment.draw_mix(augment.MixRecipe(), torch.arange(1), torch.arange(1), 16, seed=0)
    assert torch.equal(augment.mix(x, none), x)
    assert augment.erase(x, augment.MixRecipe(), torch.arange(1), torch.arange(1), seed=0) is x
