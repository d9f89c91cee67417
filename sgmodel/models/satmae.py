"""SatMAE's encoder: each group of bands is cut into patches of its own, and the patches of all groups attend together.

Cong et al., "SatMAE: Pre-training Transformers for Temporal and Multi-Spectral Satellite Imagery", NeurIPS 2022,
section 4.2. Written from the paper; the names of the weights are those of the released files, as users list them
(`catalogs/tables/satmae_base_keys.tsv`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models import backbones, transformer, weight_adaptation
from sgmodel.models import encoder as enc
from sgmodel.models.weight_adaptation import State


@dataclass(frozen=True, kw_only=True)
class SatmaeConfig:
    """Size of the SatMAE encoder; the defaults are SatMAE base.

    Attributes:
        groups: Spectral groups as indices of the recipe's bands.
        image_px: Side of the images in pixels.
        patch_px: Side of a token in pixels.
        width: Width of the tokens.
        depth: Number of transformer blocks.
        heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of a block's MLP over `width`.
        group_width: Part of `width` that encodes the spectral group; the rest encodes the position.
        drop_path: Stochastic depth rate of the last block.
    """

    groups: tuple[tuple[int, ...], ...]
    image_px: int = 96
    patch_px: int = 8
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    group_width: int = 256
    drop_path: float = 0.0

    @property
    def side(self) -> int:
        """Tokens along one side of the image."""
        return self.image_px // self.patch_px


class GroupPatchEmbed(nn.Module):
    """Patch embedding of one group of bands.

    Args:
        bands: Number of bands of the group.
        config: Size of the encoder.
    """

    def __init__(self, bands: int, config: SatmaeConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, config.width, config.patch_px, stride=config.patch_px)


class SatMAE(backbones.Backbone):
    """SatMAE's encoder: patches of each group, encodings of group and place, a class token, a pre-norm transformer.

    Weights are random, encodings sines and cosines.

    Args:
        config: Size of the encoder, and the groups of bands, each of which belongs to one group at most.
        bands: Number of bands of the images.

    Raises:
        SettingError: The groups do not fit the bands, or sizes do not divide.
    """

    def __init__(self, config: SatmaeConfig, bands: int) -> None:
        super().__init__()
        c = self.config = config
        _check(c, bands)
        self.channels, self.scales, self.width, self.bands = (c.width,) * 4, backbones.GRID_SCALES, c.width, bands
        self.taps = backbones.quarter_ends(c.depth)
        self.patch_embed = nn.ModuleList(GroupPatchEmbed(len(group), c) for group in c.groups)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        # Row 0 is that of the class token, which has no place.
        places = torch.cat([torch.zeros(1, c.width - c.group_width), enc.sincos(c.side, c.width - c.group_width)])
        self.pos_embed = nn.Parameter(places[None])
        self.channel_embed = nn.Parameter(_sincos(len(c.groups), c.group_width)[None])
        self.channel_cls_embed = nn.Parameter(torch.zeros(1, 1, c.group_width))
        self.blocks = transformer.blocks(c.depth, c.width, c.heads, c.mlp_ratio, c.drop_path)
        self.norm = nn.LayerNorm(c.width, eps=transformer.LAYER_NORM_EPS)

    def embedded(self, images: Tensor) -> Tensor:
        """Embed images (N, C, H, W) into (N, 1 + G S, D): the class token, then each group, places row by row."""
        size = (self.config.image_px, self.config.image_px)
        if tuple(images.shape[2:]) != size:
            raise SettingError(
                f"images are {tuple(images.shape[2:])}, the model takes {size}: set model.satmae.image_px"
            )
        tokens = torch.cat(
            [self._group(images[:, list(group)], number) for number, group in enumerate(self.config.groups)], dim=1
        )
        first = self.cls_token + torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=-1)
        return torch.cat([first.expand(len(images), -1, -1), tokens], dim=1)

    def _group(self, images: Tensor, number: int) -> Tensor:
        patches: Tensor = self.patch_embed[number].proj(images).flatten(2).transpose(1, 2)  # type: ignore[operator]
        group = self.channel_embed[:, number : number + 1].expand(-1, patches.shape[1], -1)
        return patches + torch.cat([self.pos_embed[:, 1:], group], dim=-1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Encode images (N, C, H, W) into four maps (N, D, h, w): means over the groups after four of the blocks."""
        x, side = self.embedded(images), self.config.side
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                mean = x[:, 1:].unflatten(1, (-1, side * side)).mean(1)
                outputs[number] = mean.transpose(1, 2).unflatten(2, (side, side))
        return [outputs[number] for number in self.taps]

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images (N, C, H, W) into vectors (N, D): the norm of the mean over all tokens but the class token."""
        out: Tensor = self.norm(self.blocks(self.embedded(images))[:, 1:].mean(dim=1))
        return out

    def prepare_maps(self) -> None:
        """Freeze the final norm, which maps do not use."""
        self.norm.requires_grad_(False)

    def adapt_weights(self, state: State, how: weight_adaptation.FirstLayer, wavelengths: Sequence[float]) -> State:
        """Resize the position table of another image size, except for the row of the class token."""
        table = state.get("pos_embed")
        if table is None or table.shape[1] == self.pos_embed.shape[1]:
            return state
        places = weight_adaptation.resize_table(table[:, 1:], rows=self.config.side**2, planes=1)
        return state | {"pos_embed": torch.cat([table[:, :1], places], dim=1)}


def _sincos(count: int, width: int) -> Tensor:
    """Return a table (count, width) of sines and cosines of 0, 1, ..., as `encoder.sincos` in one dimension."""
    angles = torch.arange(count)[:, None] * 10_000.0 ** -(torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _check(config: SatmaeConfig, bands: int) -> None:
    used = [band for group in config.groups for band in group]
    if len(set(used)) != len(used) or not set(used) <= set(range(bands)):
        raise SettingError(f"model.satmae.groups {config.groups}: expected each of bands 0 to {bands - 1} at most once")
    for whole, part in ((config.image_px, config.patch_px), (config.width, config.heads)):
        if whole % part:
            raise SettingError(f"model.satmae: {whole} is not a multiple of {part}; change image_px or width")
    if config.group_width % 2 or (config.width - config.group_width) % 4 or config.group_width >= config.width:
        raise SettingError(
            f"model.satmae: group_width {config.group_width} of width {config.width}: "
            "expected an even part that leaves a multiple of 4"
        )
