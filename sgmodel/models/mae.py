"""The masked autoencoder that pretrains SpectralGPT: mask 3-D tokens, encode the rest, decode all, compare twice.

Shape suffixes as in `encoder`; M width of the decoder, G spectral groups,
S places of the ground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models import encoder as enc


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Size of the light decoder; the defaults are the paper's for every encoder size."""

    width: int = 512
    depth: int = 4
    heads: int = 16
    mlp_ratio: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is masked and what is compared. The defaults are the released code's.

    `norm_pix`: the token term compares with each token's values at zero mean and unit variance; the spectral term
    keeps the raw values, as in the released code.
    """

    masking: Literal["random", "tube", "spectral"] = "random"
    weight_token: float = 1.0
    weight_spectral: float = 1.0
    norm_pix: bool = False


class Reconstruction(NamedTuple):
    """One forward pass: the loss, its two unweighted terms, prediction (N, L, P), mask (N, L; 1 = removed), and
    `loss_band` (C,): the mean squared error of each band over the removed tokens, for logs only."""

    loss: Tensor
    loss_token: Tensor
    loss_spectral: Tensor
    pred: Tensor
    mask: Tensor
    loss_band: Tensor


# --- masking -------------------------------------------------------------------------------


def kept(tokens: int, ratio: float) -> int:
    """K = L (1 - ratio), truncated in double precision: 1 - 0.9 falls short of 0.1, so 3 of 40 are kept, not 4."""
    k = int(tokens * (1 - ratio))
    if not 0 < k < tokens:
        raise SettingError(
            f"mask ratio {ratio} keeps {k} of {tokens}: it should leave at least one to see and one to predict"
        )
    return k


def random_tokens(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """The paper's masking, over spatial and spectral places alike -> ids kept (N, K), lowest noise first."""
    return noise_NL.argsort(dim=1, stable=True)[:, : kept(noise_NL.shape[1], ratio)]


def tubes(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """The same places of the ground kept in every plane -> ids kept (N, K)."""
    places = noise_NL.shape[1] // planes
    # The noise of the first plane decides for all.
    place_ids = random_tokens(noise_NL[:, :places], 1, ratio)
    offsets = places * torch.arange(planes, device=noise_NL.device)
    return (place_ids.unsqueeze(1) + offsets[:, None]).flatten(1)


def whole_planes(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """Whole spectral groups kept, everywhere on the ground -> ids kept (N, K)."""
    places = noise_NL.shape[1] // planes
    plane_ids = random_tokens(noise_NL[:, ::places], 1, ratio)
    return (plane_ids.unsqueeze(2) * places + torch.arange(places, device=noise_NL.device)).flatten(1)


MASKINGS: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "random": random_tokens,
    "tube": tubes,
    "spectral": whole_planes,
}


# --- targets -------------------------------------------------------------------------------


def unpatchify(tokens_NLP: Tensor, config: enc.EncoderConfig) -> Tensor:
    """(N, L, P) -> (N, C, H, W), or (N, T, C, H, W) for several times: the inverse of `encoder.patchify`."""
    g, s, p = config.group_bands, config.side, config.patch_px
    x = tokens_NLP.reshape(-1, config.planes, s, s, g, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    shape = (config.image_bands, config.image_px, config.image_px)
    return x.reshape(-1, *(shape if config.times == 1 else (config.times, *shape)))


def normalised(target_NLP: Tensor) -> Tensor:
    """Each token at zero mean and unit (unbiased) variance."""
    # The root's eps is the released one; a flat token becomes zeros instead of NaN.
    variance, mean = torch.var_mean(target_NLP, dim=-1, keepdim=True)
    return (target_NLP - mean) / (variance + 1e-6).sqrt()


def token_loss(pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor) -> Tensor:
    """Token-to-token: mean squared error of the removed tokens, over the whole batch."""
    return ((pred_NLP - target_NLP).square().mean(-1) * mask_NL).sum() / mask_NL.sum()


def spectral_loss(pred_NLP: Tensor, target_NLP: Tensor, config: enc.EncoderConfig) -> Tensor:
    """Spectral-to-spectral: squared error between the sums over the spectral groups at each place, not masked.

    In band terms, for three-band groups of twelve: B[u] + B[u+3] + B[u+6] + B[u+9] for u in 0..2.
    """
    # The difference of two sums is the sum of differences: one tensor of this size instead of two.
    error_NTGSP = (pred_NLP - target_NLP).reshape(*_planes(pred_NLP, config), config.token_values)
    return error_NTGSP.sum(2).square().mean()


def band_loss(pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor, config: enc.EncoderConfig) -> Tensor:
    """(C,): mean squared error of each band over its removed tokens; NaN for a band with none removed."""
    shape = _planes(pred_NLP, config)
    error = (pred_NLP - target_NLP).square().reshape(*shape, config.group_bands, -1).mean(-1)
    mask_NTGS1 = mask_NL.reshape(*shape, 1)
    return ((error * mask_NTGS1).sum((0, 1, 3)) / mask_NTGS1.sum((0, 1, 3))).flatten()


def _planes(tokens_NLP: Tensor, config: enc.EncoderConfig) -> tuple[int, int, int, int]:
    """(N, T, G, S): L taken apart."""
    return len(tokens_NLP), config.times, config.planes // config.times, config.side**2


# --- the model -----------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """SpectralGPT as pretrained. State-dict keys are the published ones, so the encoder's parts hang here."""

    config: enc.EncoderConfig
    patch_embed: enc.PatchEmbed
    blocks: nn.Sequential
    norm: nn.LayerNorm

    def __init__(
        self, encoder: enc.Encoder, decoder: DecoderConfig | None = None, objective: Objective | None = None
    ) -> None:
        """Adopts `encoder` and draws all weights anew (`encoder.initialise`); load trained ones afterwards."""
        super().__init__()
        self.decoder = decoder = decoder or DecoderConfig()
        self.objective = objective or Objective()
        enc.adopt(self, encoder)
        self.decoder_embed = nn.Linear(self.config.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        for name, rows in enc.position_rows(self.config).items():
            self.register_parameter(f"decoder_{name}", nn.Parameter(torch.zeros(1, rows, decoder.width)))
        self.decoder_blocks = nn.Sequential(
            *(enc.Block(decoder.width, decoder.heads, decoder.mlp_ratio) for _ in range(decoder.depth))
        )
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=enc.LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder.width, self.config.token_values)
        enc.initialise(self)

    def forward(self, images: Tensor, *, noise: Tensor, ratio: float) -> Reconstruction:
        """Mask by `noise` (N, L; uniform), reconstruct, compare. The images are their own target.

        Raises SettingError where `ratio` keeps no token, or all.
        """
        ids_keep_NK = MASKINGS[self.objective.masking](noise, self.config.planes, ratio)
        mask_NL = torch.ones_like(noise, dtype=torch.float32).scatter(1, ids_keep_NK, 0.0)
        latent_NKD = self.norm(enc.encoded(self, images, ids_keep_NK))
        pred_NLP = self.decode(latent_NKD, ids_keep_NK)
        return self.compare(pred_NLP, enc.patchify(images, self.config), mask_NL)

    def decode(self, latent_NKD: Tensor, ids_keep_NK: Tensor) -> Tensor:
        """Kept tokens to their places, the mask token everywhere else, then the decoder -> (N, L, P).

        A class token comes first in `latent_NKD`; the decoder sees it too, which is what it learns from.
        """
        # Scattering into mask tokens equals the paper's append-and-unshuffle, without sorting the ids back.
        first = int(self.config.class_token)
        class_N1M, visible_NKM = self.decoder_embed(latent_NKD).tensor_split([first], dim=1)
        everywhere_NLM = self.mask_token.to(visible_NKM.dtype).expand(len(latent_NKD), self.config.tokens, -1)
        x_NLM = everywhere_NLM.scatter(1, ids_keep_NK.unsqueeze(-1).expand_as(visible_NKM), visible_NKM)
        x_NLM = x_NLM + enc.positions(self, "decoder_")
        x_NLM = self.decoder_blocks(torch.cat([class_N1M, x_NLM], dim=1) if first else x_NLM)
        pred: Tensor = self.decoder_pred(self.decoder_norm(x_NLM[:, first:]))
        return pred

    def compare(self, pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor) -> Reconstruction:
        """Both terms of the loss in float32, whatever the precision of the prediction."""
        pred, target = pred_NLP.float(), target_NLP.float()
        token_target = normalised(target) if self.objective.norm_pix else target
        token = token_loss(pred, token_target, mask_NL)
        spectral = spectral_loss(pred, target, self.config)
        loss = self.objective.weight_token * token + self.objective.weight_spectral * spectral
        with torch.no_grad():  # a figure for logs, never a gradient
            bands = band_loss(pred, token_target, mask_NL, self.config)
        # The prediction is for pictures: with a gradient, FSDP would warn of a view that somebody might write to.
        return Reconstruction(loss, token, spectral, pred.detach(), mask_NL, bands)
