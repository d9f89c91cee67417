"""The SpectralGPT encoder: images become 3-D tokens, which pass through a plain pre-norm transformer.

Hong et al., "SpectralGPT: Spectral Remote Sensing Foundation Model", IEEE TPAMI 46(8), 2024. Masking is left to the
caller, which passes the ids of the tokens to keep.

Shape suffixes: N images, T times, C bands, H rows, W columns; L tokens of an image, K kept ones, P values in a
token (bands x rows x columns), D width, A attention heads, E width of one head.
Token order: time slowest, then spectral group, then row, then column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel.models import transformer


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Size of the encoder and of the images it takes; the defaults are SpectralGPT+ base.

    Attributes:
        bands: Number of bands of the full image, including those of dropped groups.
        timesteps: Number of acquisition times of an image.
        image_px: Side of the images in pixels.
        patch_px: Side of a token in pixels.
        group_bands: Number of neighbouring bands in a spectral group, which share a token.
        width: Width of the tokens.
        depth: Number of transformer blocks.
        heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of a block's MLP over `width`.
        drop_path: Stochastic depth rate of the last block; it grows linearly from 0.
        pos_embed: Position embeddings: "separate" adds a spatial and a spectral table, "joint" has one table over all
            tokens, as the released classifier.
        class_token: Whether there is a class token, which heads may pool; the released models have none.
        dropped_groups: Spectral groups that the data lack, of which no tokens are made; their rows of the tables are
            kept.
        pos_embed_init: Initial values of the position embeddings.
    """

    bands: int = 12
    timesteps: int = 1
    image_px: int = 128
    patch_px: int = 8
    group_bands: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    pos_embed: Literal["separate", "joint"] = "separate"
    class_token: bool = False
    dropped_groups: tuple[int, ...] = ()
    pos_embed_init: Literal["random", "sincos"] = "random"

    def __post_init__(self) -> None:
        """Check that sizes are positive and that bands, pixels and width divide. Raises SettingError."""
        for name in ("bands", "timesteps", "image_px", "patch_px", "group_bands", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}: expected 1 or more in the model settings")
        for whole, part in (("bands", "group_bands"), ("image_px", "patch_px"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise SettingError(
                    f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}: "
                    f"change one of the two in the model settings"
                )

    @property
    def side(self) -> int:
        """Number of tokens along one side of the image."""
        return self.image_px // self.patch_px

    @property
    def planes(self) -> int:
        """Number of tokens at one place of the ground: times x spectral groups that images have."""
        return self.timesteps * (self.groups - len(self.dropped_groups))

    @property
    def groups(self) -> int:
        """Number of spectral groups of the model."""
        return self.bands // self.group_bands

    @property
    def image_bands(self) -> int:
        """Number of bands of one image: those of the groups that are not dropped."""
        return (self.groups - len(self.dropped_groups)) * self.group_bands

    @property
    def tokens(self) -> int:
        """Number of tokens of one image, L."""
        return self.planes * self.side**2

    @property
    def token_values(self) -> int:
        """Number of values in one token, P."""
        return self.group_bands * self.patch_px**2


def base(*, image_px: int = 128) -> EncoderConfig:
    """Return the size of the 100 M model, whose encoder has 85.4 M parameters.

    Args:
        image_px: Side of the images in pixels: 96 and 128 in the released models.
    """
    return EncoderConfig(image_px=image_px)


def large(*, image_px: int = 128) -> EncoderConfig:
    """Return the size of the 300 M model, whose encoder has 302.8 M parameters.

    Args:
        image_px: Side of the images in pixels: 96 and 128 in the released models.
    """
    return EncoderConfig(image_px=image_px, width=1024, depth=24, heads=16)


def huge(*, image_px: int = 128) -> EncoderConfig:
    """Return the size of the 600 M model, whose encoder has 630.3 M parameters.

    Args:
        image_px: Side of the images in pixels: 96 and 128 in the released models.
    """
    return EncoderConfig(image_px=image_px, width=1280, depth=32, heads=16)


# --- from images to tokens -----------------------------------------------------------------


def patchify(images: Tensor, config: EncoderConfig) -> Tensor:
    """Cut images into the values of their tokens.

    Args:
        images: Images (N, C, H, W), or (N, T, C, H, W) for several times.
        config: Size of the images and tokens.

    Returns:
        Values (N, L, P); within a token: band, then row, then column.

    Raises:
        SettingError: The images are not of the configured size.
    """
    _check_images(images, config)
    g, s, p = config.group_bands, config.side, config.patch_px
    x = images.reshape(-1, config.planes, g, s, p, s, p)
    # (N, plane, band, row, r, column, c) -> (N, plane, row, column, band, r, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, config.tokens, config.token_values)


def select_tokens(x_NLD: Tensor, ids_NK: Tensor) -> Tensor:
    """Return the tokens `ids_NK` of each image, (N, K, D), in the order of the ids."""
    return x_NLD.gather(1, ids_NK.unsqueeze(-1).expand(-1, -1, x_NLD.shape[-1]))


class PatchEmbed(nn.Module):
    """3-D patch embedding of the paper: a convolution over (bands, rows, columns) with stride equal to its kernel.

    Such a convolution is a linear map of each patch by itself, so it is applied to the given patches only; with 90 %
    masked this saves nine tenths of the work.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kernel = (config.group_bands, config.patch_px, config.patch_px)
        self.proj = nn.Conv3d(1, config.width, kernel, stride=kernel)

    def forward(self, patches_NKP: Tensor) -> Tensor:
        """Embed patches (N, K, P) into tokens (N, K, D)."""
        return functional.linear(patches_NKP, self.proj.weight.flatten(1), self.proj.bias)


# --- the encoder ---------------------------------------------------------------------------


class EncoderModules(Protocol):
    """Modules with the parts of an encoder: an `Encoder`, or one that `adopt` has given them."""

    config: EncoderConfig
    patch_embed: PatchEmbed
    blocks: nn.Sequential
    norm: nn.LayerNorm


class Encoder(nn.Module):
    """SpectralGPT's encoder: patch embedding, positions, transformer blocks and final norm.

    A new encoder has zero position tables and the framework's default weights; see `initialise`.

    Args:
        config: Size of the encoder and its images.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        for name, rows in position_rows(config).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, rows, config.width)))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = transformer.blocks(config.depth, config.width, config.heads, config.mlp_ratio, config.drop_path)
        self.norm = nn.LayerNorm(config.width, eps=transformer.LAYER_NORM_EPS)

    def tokens(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode images into tokens before the final norm, without the class token.

        Args:
            images: Images (N, C, H, W), or (N, T, C, H, W) if the encoder takes several times.
            ids_keep: Ids (N, K) of the tokens to encode; all of them where None.

        Returns:
            Tokens (N, L, D), or (N, K, D) in the order of `ids_keep`.

        Raises:
            SettingError: The images are not of the configured size.
        """
        return tokens(self, images, ids_keep)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images into all tokens after the final norm, without the class token.

        Args:
            images: Images (N, C, H, W), or (N, T, C, H, W) if the encoder takes several times.

        Returns:
            Tokens (N, L, D).

        Raises:
            SettingError: The images are not of the configured size.
        """
        out: Tensor = self.norm(self.tokens(images))
        return out


def tokens(parts: EncoderModules, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
    """Encode images into tokens before the final norm, without the class token.

    Args:
        parts: The encoder.
        images: Images (N, C, H, W), or (N, T, C, H, W) if the encoder takes several times.
        ids_keep: Ids (N, K) of the tokens to encode; all of them where None.

    Returns:
        Tokens (N, L, D), or (N, K, D) in the order of `ids_keep`.

    Raises:
        SettingError: The images are not of the configured size.
    """
    return encode(parts, images, ids_keep)[:, int(parts.config.class_token) :]


def encode(parts: EncoderModules, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
    """Encode as `tokens` does, with the class token first if the encoder has one: (N, 1 + L, D)."""
    out: Tensor = parts.blocks(embed(parts, images, ids_keep))
    return out


def embed(parts: EncoderModules, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
    """Embed images into the input of the first block: patches plus positions, with the class token first if any."""
    patches_NLP = patchify(images, parts.config)
    positions_NLD = positions(parts).expand(len(patches_NLP), -1, -1)
    if ids_keep is not None:
        # The released code adds positions after masking; gathering both first is the same sum over fewer tokens.
        patches_NLP, positions_NLD = select_tokens(patches_NLP, ids_keep), select_tokens(positions_NLD, ids_keep)
    x_NLD: Tensor = parts.patch_embed(patches_NLP) + positions_NLD
    if parts.config.class_token:
        token_11D: Tensor = parts.cls_token  # type: ignore[attr-defined]  # set only with config.class_token
        x_NLD = torch.cat([token_11D.to(x_NLD.dtype).expand(len(x_NLD), -1, -1), x_NLD], dim=1)
    return x_NLD


def ground_means(tokens_NLD: Tensor, config: EncoderConfig) -> Tensor:
    """Average the tokens (N, L, D) above each place into a map (N, D, h, w)."""
    grid = tokens_NLD.reshape(len(tokens_NLD), config.planes, config.side, config.side, -1)
    return grid.mean(dim=1).permute(0, 3, 1, 2)


def embedding(parts: EncoderModules, images: Tensor) -> Tensor:
    """Encode images (N, C, H, W) into the mean token of each place after the final norm, (N, D, h, w)."""
    return ground_means(parts.norm(tokens(parts, images)), parts.config)


def positions(parts: EncoderModules, prefix: str = "") -> Tensor:
    """Return the positions (1, L, D) of all tokens: the joint table, or spatial[row, column] + spectral[time, group].

    Args:
        parts: The encoder, or a model with a decoder.
        prefix: "decoder_" for the tables of the decoder.
    """
    config = parts.config
    present = [
        plane for plane in range(config.timesteps * config.groups) if plane % config.groups not in config.dropped_groups
    ]
    if hasattr(parts, f"{prefix}pos_embed"):
        joint: Tensor = getattr(parts, f"{prefix}pos_embed")
        return (
            joint.reshape(1, -1, config.side**2, joint.shape[-1])[:, present].flatten(1, 2)
            if config.dropped_groups
            else joint
        )
    spatial_1SD: Tensor = getattr(parts, f"{prefix}pos_embed_spatial")
    spectral_1GD: Tensor = getattr(parts, f"{prefix}pos_embed_temporal")  # the released name of the spectral table
    spectral_1GD = spectral_1GD[:, present] if config.dropped_groups else spectral_1GD
    return (spectral_1GD.unsqueeze(2) + spatial_1SD.unsqueeze(1)).flatten(1, 2)


def position_rows(config: EncoderConfig) -> dict[str, int]:
    """Return the number of rows of each position table by released name; dropped groups keep theirs."""
    planes = config.timesteps * config.groups
    if config.pos_embed == "joint":
        return {"pos_embed": planes * config.side**2}
    return {"pos_embed_spatial": config.side**2, "pos_embed_temporal": planes}


def adopt(module: nn.Module, encoder: Encoder) -> None:
    """Add the parts of `encoder` to `module` itself, which shares their weights and becomes one of `EncoderModules`.

    The state-dict keys of the module are then the released ones, without a prefix.
    """
    for name, parameter in encoder.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, part in encoder.named_children():
        module.add_module(name, part)
    module.config = encoder.config  # type: ignore[assignment]  # a plain attribute, not a tensor


def initialise(module: nn.Module) -> None:
    """Draw fresh weights in place, as the released code does for pretraining.

    | part                          | values                                                          |
    | ----------------------------- | --------------------------------------------------------------- |
    | position tables               | normal, std 0.02, cut at +-2                                    |
    | mask token, class token       | normal, std 0.02                                                |
    | patch convolution, weight     | Xavier uniform on its (D, P) view                               |
    | patch convolution, bias       | framework default, uniform +-1/sqrt(P)                          |
    | Linear (q, k, v each alone)   | Xavier uniform, bias 0                                          |
    | LayerNorm                     | 1, 0                                                            |

    An `Encoder` that is only constructed has zero position tables and the framework's defaults, from which the
    released fine-tuning models (and so the "from scratch" baselines) start.
    """
    for name, parameter in module.named_parameters():
        if "pos_embed" in name:
            nn.init.trunc_normal_(parameter, std=0.02, a=-2.0, b=2.0)
        elif name.endswith(("mask_token", "cls_token")):
            nn.init.normal_(parameter, std=0.02)
    config = getattr(module, "config", None)
    if isinstance(config, EncoderConfig) and config.pos_embed_init == "sincos":
        _start_with_sincos(module, config)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, PatchEmbed):
            # Only the weight: the released code leaves this bias at the framework's default.
            nn.init.xavier_uniform_(part.proj.weight.data.flatten(1))
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def _start_with_sincos(module: nn.Module, config: EncoderConfig) -> None:
    """Set spatial tables to `sincos`, and draw spectral ones of about the same size (sines have mean square 1/2)."""
    for name, table in module.named_parameters(recurse=False):
        if name.endswith("pos_embed_spatial"):
            table.data.copy_(sincos(config.side, table.shape[-1]))
        elif name.endswith("pos_embed_temporal"):
            nn.init.normal_(table, std=0.7)


def sincos(side: int, width: int) -> Tensor:
    """Return a table (side^2, width) of sines and cosines of row and column, of wavelengths 2 pi to 20,000 pi tokens.

    Vaswani et al., "Attention Is All You Need", 2017, section 3.5, in two dimensions as in MAE: a quarter of the width
    each for sines and cosines of rows and of columns.

    Raises:
        SettingError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise SettingError(
            f"model.pos_embed_init is 'sincos', a width is {width}: expected a multiple of 4; change one of the two"
        )
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in (rows, cols)], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# --- checks --------------------------------------------------------------------------------


def _check_images(images: Tensor, config: EncoderConfig) -> None:
    shape = (config.image_bands, config.image_px, config.image_px)
    expected = shape if images.ndim <= 4 and config.timesteps == 1 else (config.timesteps, *shape)
    if tuple(images.shape[1:]) != expected:
        raise SettingError(
            f"images are {tuple(images.shape)}, the model takes (N, {', '.join(map(str, expected))}): resize them, "
            f"or set bands, image_px and times of the model"
        )
