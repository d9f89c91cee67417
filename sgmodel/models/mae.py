"""The masked autoencoder that pretrains SpectralGPT: mask 3-D tokens, encode the rest, decode all, compare twice.

Hong et al., IEEE TPAMI 46(8), 2024, after He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.

Shape suffixes as in `encoder`; M width of the decoder, G spectral groups, S places of the ground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models import encoder as enc
from sgmodel.models import mask_token_attention, transformer
from sgmodel.models.mask_token_attention import PartlyMasked


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Size of the decoder; the defaults are those of the paper for every encoder size.

    Attributes:
        width: Width of the tokens.
        depth: Number of transformer blocks.
        heads: Number of attention heads.
        mlp_ratio: Width of the hidden layer of a block's MLP over `width`.
    """

    width: int = 512
    depth: int = 4
    heads: int = 16
    mlp_ratio: float = 4.0


@dataclass(frozen=True, kw_only=True)
class MaskedObjective:
    """Masking and loss terms; the defaults are those of the released code.

    Attributes:
        masking: Which tokens are removed: any, the same positions in every spectral group, or whole groups.
        weight_token: Weight of the token-to-token term.
        weight_spectral: Weight of the spectral-to-spectral term.
        norm_pix: Whether the token term compares with tokens normalised to zero mean and unit variance; the spectral
            term always compares with raw values.
    """

    masking: Literal["random", "tube", "spectral"] = "random"
    weight_token: float = 1.0
    weight_spectral: float = 1.0
    norm_pix: bool = False


class Reconstruction(NamedTuple):
    """Result of a forward pass.

    Attributes:
        loss: Weighted sum of the two terms.
        loss_token: Token-to-token term, see `token_loss`.
        loss_spectral: Spectral-to-spectral term, see `spectral_loss`; 0 in training without it.
        pred: Predicted values (N, L, P), without gradient; in training without a spectral term 0 for tokens that are
            not removed.
        mask: 1 for removed tokens, else 0, (N, L).
        loss_band: Mean squared error of each band over the removed tokens, (C,), for logs; see `band_loss`.
    """

    loss: Tensor
    loss_token: Tensor
    loss_spectral: Tensor
    pred: Tensor
    mask: Tensor
    loss_band: Tensor


# --- masking -------------------------------------------------------------------------------


def count_visible(tokens: int, ratio: float) -> int:
    """Return the number of tokens to keep, K = L (1 - ratio), truncated in double precision as in the released code.

    In floating point 1 - 0.9 is less than 0.1, so 3 of 40 tokens are kept, not 4.

    Raises:
        SettingError: `ratio` keeps no token, or all.
    """
    k = int(tokens * (1 - ratio))
    if not 0 < k < tokens:
        raise SettingError(
            f"mask ratio {ratio} keeps {k} of {tokens} tokens: expected at least one to keep and one to predict; "
            f"change mask_ratio"
        )
    return k


def random_tokens(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """Mask tokens at random, over spatial and spectral places alike, as the paper does.

    Args:
        noise_NL: Uniform noise (N, L); the tokens of the lowest noise are kept.
        planes: Number of tokens at one place; not used here.
        ratio: Share of the tokens to mask.

    Returns:
        Ids (N, K) of the tokens to keep, lowest noise first.
    """
    return noise_NL.argsort(dim=1, stable=True)[:, : count_visible(noise_NL.shape[1], ratio)]


def tubes(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """Mask the same places of the ground in every plane; returns the ids (N, K) to keep."""
    places = noise_NL.shape[1] // planes
    # The noise of the first plane decides for all.
    place_ids = random_tokens(noise_NL[:, :places], 1, ratio)
    offsets = places * torch.arange(planes, device=noise_NL.device)
    return (place_ids.unsqueeze(1) + offsets[:, None]).flatten(1)


def whole_planes(noise_NL: Tensor, planes: int, ratio: float) -> Tensor:
    """Mask whole spectral groups, everywhere on the ground; returns the ids (N, K) to keep."""
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
    """Join values (N, L, P) into images (N, C, H, W), or (N, T, C, H, W): the inverse of `encoder.patchify`."""
    g, s, p = config.group_bands, config.side, config.patch_px
    x = tokens_NLP.reshape(-1, config.planes, s, s, g, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    shape = (config.image_bands, config.image_px, config.image_px)
    return x.reshape(-1, *(shape if config.timesteps == 1 else (config.timesteps, *shape)))


def normalised(target_NLP: Tensor) -> Tensor:
    """Scale the known values of each token to zero mean and unit (unbiased) variance."""
    mean, deviation = _moments(target_NLP)
    return (target_NLP - mean) / deviation


def denormalised(pred_NLP: Tensor, target_NLP: Tensor) -> Tensor:
    """Scale predictions of `normalised` tokens by the mean and deviation of the true ones, as pictures of MAE do."""
    mean, deviation = _moments(target_NLP)
    return pred_NLP * deviation + mean


def _moments(target_NLP: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (N, L, 1) of the known values of each token."""
    variance, mean = torch.var_mean(target_NLP, dim=-1, keepdim=True)
    # Both are NaN for a token with unknown values.
    mean = mean.where(mean.isfinite(), target_NLP.nanmean(-1, keepdim=True))
    known = (~target_NLP.isnan()).sum(-1, keepdim=True)
    squares = (target_NLP - mean).square().nansum(-1, keepdim=True)
    variance = variance.where(variance.isfinite(), squares / (known - 1).clamp(min=1))
    # The released eps, with which a constant token becomes zeros instead of NaN.
    return mean, (variance + 1e-6).sqrt()


class _Errors(NamedTuple):
    """Differences to targets, of which some values may be unknown.

    Attributes:
        all: Differences (N, L, P), 0 where the target is unknown.
        known: Whether the target is known, (N, L, P).
        squares: Sum of the squares over the pixels of each band of a token, (N, L, B).
        counts: Number of known values in that sum, (N, L, B).
    """

    all: Tensor
    known: Tensor
    squares: Tensor
    counts: Tensor

    def scattered(self, ids_NM: Tensor, mask_NL: Tensor) -> _Errors:
        """Return the sums of tokens at the places `ids_NM` as sums of all tokens, 0 for the others."""
        sums = (_scatter_tokens(x, ids_NM, mask_NL) for x in (self.squares, self.counts))
        return _Errors(self.all, self.known, *sums)


def _scatter_tokens(x_NMD: Tensor, ids_NM: Tensor, mask_NL: Tensor) -> Tensor:
    zeros_NLD = x_NMD.new_zeros(*mask_NL.shape, x_NMD.shape[-1])
    return zeros_NLD.scatter(1, ids_NM.unsqueeze(-1).expand_as(x_NMD), x_NMD)


def _compute_errors(pred_NLP: Tensor, target_NLP: Tensor, bands: int) -> _Errors:
    known = ~target_NLP.isnan()
    error = torch.where(known, pred_NLP - target_NLP, 0.0)
    squares, counts = (x.reshape(*x.shape[:-1], bands, -1).sum(-1) for x in (error.square(), known))
    return _Errors(error, known, squares, counts)


def token_loss(pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor) -> Tensor:
    """Compute the token-to-token term: the mean squared error of the removed tokens over the whole batch.

    As in all terms, values whose target is unknown (NaN) do not count, nor do tokens without a known value.
    """
    return _token_loss(_compute_errors(pred_NLP, target_NLP, 1), mask_NL)


def _token_loss(errors: _Errors, mask_NL: Tensor) -> Tensor:
    known_NL = errors.counts.sum(-1)
    counted_NL = mask_NL * (known_NL > 0)
    error_NL = errors.squares.sum(-1) / known_NL.clamp(min=1)
    return (error_NL * counted_NL).sum() / counted_NL.sum().clamp(min=1)


def spectral_loss(pred_NLP: Tensor, target_NLP: Tensor, config: enc.EncoderConfig) -> Tensor:
    """Compute the spectral-to-spectral term: the mean squared error of sums over the spectral groups of each place.

    All tokens count, masked or not. For twelve bands in groups of three, the sums are B[u] + B[u+3] + B[u+6] + B[u+9]
    for u in 0..2.
    """
    return _spectral_loss(_compute_errors(pred_NLP, target_NLP, 1), config)


def _spectral_loss(errors: _Errors, config: enc.EncoderConfig) -> Tensor:
    shape = (-1, config.timesteps, config.planes // config.timesteps, config.side**2, config.token_values)
    # Summing the differences instead of subtracting the sums needs one tensor of this size instead of two.
    error_NTSP = errors.all.reshape(shape).sum(2)
    known = errors.known.reshape(shape).any(2).sum()
    return error_NTSP.square().mean() * (error_NTSP.numel() / known.clamp(min=1))


def band_loss(pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor, config: enc.EncoderConfig) -> Tensor:
    """Compute the mean squared error (C,) of each band over its removed tokens; NaN for a band without any."""
    return _band_loss(_compute_errors(pred_NLP, target_NLP, config.group_bands), mask_NL, config)


def _band_loss(errors: _Errors, mask_NL: Tensor, config: enc.EncoderConfig) -> Tensor:
    counted_NLB = mask_NL.unsqueeze(-1) * (errors.counts > 0)
    error_NLB = errors.squares / errors.counts.clamp(min=1) * counted_NLB
    error, counted = (
        x.reshape(-1, config.timesteps, config.planes // config.timesteps, config.side**2, config.group_bands).sum(
            (0, 1, 3)
        )
        for x in (error_NLB, counted_NLB)
    )
    return (error / counted).flatten()


# --- the model -----------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """SpectralGPT as pretrained: the encoder, a light decoder, and the loss.

    The model has the encoder's parts as its own (`encoder.adopt`), so that state-dict keys are the released ones. All
    weights are initialised (`encoder.initialise`), also those of `encoder`; load trained ones afterwards.

    Args:
        encoder: The encoder, whose parameters are used and not copied.
        decoder: Size of the decoder.
        objective: Masking and loss.
    """

    config: enc.EncoderConfig
    patch_embed: enc.PatchEmbed
    blocks: nn.Sequential
    norm: nn.LayerNorm

    def __init__(
        self, encoder: enc.Encoder, decoder: DecoderConfig | None = None, objective: MaskedObjective | None = None
    ) -> None:
        super().__init__()
        self.decoder = decoder = decoder or DecoderConfig()
        self.objective = objective or MaskedObjective()
        enc.adopt(self, encoder)
        self.decoder_embed = nn.Linear(self.config.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        for name, rows in enc.position_rows(self.config).items():
            self.register_parameter(f"decoder_{name}", nn.Parameter(torch.zeros(1, rows, decoder.width)))
        self.decoder_blocks = transformer.blocks(decoder.depth, decoder.width, decoder.heads, decoder.mlp_ratio)
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=transformer.LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder.width, self.config.token_values)
        enc.initialise(self)

    def forward(self, images: Tensor, *, noise: Tensor, ratio: float, valid: Tensor | None = None) -> Reconstruction:
        """Mask images, reconstruct them, and compare the result with them.

        Args:
            images: Images (N, C, H, W), or (N, T, C, H, W) if the encoder takes several times.
            noise: Uniform noise (N, L) that decides which tokens are masked.
            ratio: Share of the tokens to mask.
            valid: Pixels with data, bool of the shape of `images`; the others are no part of the loss. None for all.

        Returns:
            The loss and its terms, the predicted values and the mask.

        Raises:
            SettingError: `ratio` keeps no token, or all, or the images are not of the configured size.
        """
        ids_keep_NK = MASKINGS[self.objective.masking](noise, self.config.planes, ratio)
        mask_NL = torch.ones_like(noise, dtype=torch.float32).scatter(1, ids_keep_NK, 0.0)
        latent_NKD = self.norm(enc.encode(self, images, ids_keep_NK))
        target_NLP = enc.patchify(images if valid is None else images.where(valid, float("nan")), self.config)
        ids_NM = None
        if torch.is_grad_enabled() and not self.objective.weight_spectral:
            # The token term alone needs no other predictions than those of removed tokens.
            removed = self.config.tokens - ids_keep_NK.shape[1]
            ids_NM = mask_NL.argsort(dim=1, descending=True, stable=True)[:, :removed]
            target_NLP = enc.select_tokens(target_NLP, ids_NM)
        return self.compare(self.decode(latent_NKD, ids_keep_NK, ids_NM), target_NLP, mask_NL, ids_NM)

    def decode(self, latent_NKD: Tensor, ids_keep_NK: Tensor, ids_NM: Tensor | None = None) -> Tensor:
        """Decode kept tokens, with the mask token in all other places, into the values of all tokens.

        Args:
            latent_NKD: Encoded tokens (N, K, D), behind the class token if the encoder has one. The decoder attends to
                it too, so that it is trained.
            ids_keep_NK: Places of the tokens, (N, K).
            ids_NM: Places of the tokens to predict, None for all.

        Returns:
            Predicted values (N, L, P), or those of `ids_NM`.
        """
        # Scattering into mask tokens equals the released code's append and unshuffle, without sorting the ids back.
        first = int(self.config.class_token)
        class_N1M, visible_NKM = self.decoder_embed(latent_NKD).tensor_split([first], dim=1)
        positions_1LM = enc.positions(self, "decoder_")
        visible_NKM = visible_NKM + enc.select_tokens(positions_1LM.expand(len(visible_NKM), -1, -1), ids_keep_NK)
        x = PartlyMasked(visible_NKM, ids_keep_NK, self.mask_token.to(class_N1M.dtype) + positions_1LM)
        if first or not mask_token_attention.is_faster(visible_NKM, self.config.tokens):
            x_NLM = self.decoder_blocks(torch.cat([class_N1M, x.fill()], dim=1) if first else x.fill())
        else:
            x_NLM = self.decoder_blocks(x)
        x_NLM = x_NLM[:, first:] if ids_NM is None else enc.select_tokens(x_NLM[:, first:], ids_NM)
        pred: Tensor = self.decoder_pred(self.decoder_norm(x_NLM))
        return pred

    def compare(
        self, pred_NLP: Tensor, target_NLP: Tensor, mask_NL: Tensor, ids_NM: Tensor | None = None
    ) -> Reconstruction:
        """Compute both terms of the loss, in float32 for predictions in half precision.

        Args:
            pred_NLP: Predicted values (N, L, P).
            target_NLP: Values of the images (N, L, P), NaN where they are unknown.
            mask_NL: 1 for removed tokens, else 0.
            ids_NM: Places of the tokens whose values are given, None for all.

        Returns:
            The loss and its terms, with the prediction and the mask.
        """
        pred, target = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (pred_NLP, target_NLP))
        bands = self.config.group_bands
        errors = raw = _compute_errors(pred, target, bands)
        if self.objective.norm_pix:
            errors = _compute_errors(pred, normalised(target), bands)
        spectral = _spectral_loss(raw, self.config) if ids_NM is None else torch.zeros_like(mask_NL[0, 0])
        if ids_NM is not None:
            errors, pred = errors.scattered(ids_NM, mask_NL), _scatter_tokens(pred.detach(), ids_NM, mask_NL)
        token = _token_loss(errors, mask_NL)
        loss = self.objective.weight_token * token + self.objective.weight_spectral * spectral
        with torch.no_grad():  # for logs only
            each_band = _band_loss(errors, mask_NL, self.config)
        # Detached, as it is for pictures only: FSDP warns of views with a gradient, which might be written to.
        return Reconstruction(loss, token, spectral, pred.detach(), mask_NL, each_band)
