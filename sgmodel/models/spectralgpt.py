"""SpectralGPT as a backbone: one map of merged tokens for dense heads, one pooled vector for scene classification.

Shape suffixes as in `encoder`; h x w is the token grid, Q the planes (times x spectral groups) above one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models import encoder as enc
from sgmodel.models import token_reduction
from sgmodel.models.backbones import GRID_SCALES, Backbone
from sgmodel.models.token_reduction import TokenReduction

Pooling = Literal["mean", "released", "class"]
"""Pooling of tokens into one vector: the mean of all; the mean of all but the first, as in the released code, which has
no class token at that place; or the class token."""


class TokenMerge(nn.Module):
    """One learned weight per plane, shared by all channels, that joins the spectral groups of a place."""

    def __init__(self, config: enc.EncoderConfig) -> None:
        super().__init__()
        self.side = config.side
        self.linear = nn.Linear(config.planes, 1)

    def forward(self, tokens_NLD: Tensor) -> Tensor:
        """Merge tokens (N, L, D) into a map (N, D, h, w)."""
        # Planes go last, where the linear layer works: all channels and places share its few weights.
        n, _, width = tokens_NLD.shape
        x_NQSD = tokens_NLD.reshape(n, -1, self.side**2, width)
        merged_NDS1: Tensor = self.linear(x_NQSD.permute(0, 3, 2, 1))
        return merged_NDS1.reshape(n, width, self.side, self.side)


class SpectralGPT(Backbone):
    """The SpectralGPT encoder behind the interface of `Backbone`.

    Dense heads get the merged map four times and make their own scales of it, as in the released code. The vector of
    a scene is the pooled tokens after the encoder's final norm, in which maps take no part.

    Args:
        encoder: The encoder, whose parameters are used and not copied.
        pooling: Pooling of tokens into one vector, see `Pooling`.
        reduction: Reduction of tokens for deeper blocks; None for all.

    Raises:
        SettingError: `pooling` is "class" and the encoder has no class token, or the encoder has too few blocks or
            tokens for `reduction`.
    """

    scales = GRID_SCALES
    head_std = 0.02  # as released

    def __init__(
        self, encoder: enc.Encoder, pooling: Pooling = "mean", reduction: TokenReduction | None = None
    ) -> None:
        super().__init__()
        if pooling == "class" and not encoder.config.class_token:
            raise SettingError(
                "pooling is 'class', the encoder has no class token; set class_token, or another pooling"
            )
        if reduction is not None:
            token_reduction.check(reduction, depth=encoder.config.depth, tokens=encoder.config.side**2)
        self.encoder, self.reduction = encoder, reduction
        self.pooling: Pooling = pooling
        self.bands, self.width = encoder.config.image_bands, encoder.config.width
        self.channels = (self.width,) * 4

    def prepare_maps(self) -> None:
        """Add the merge, and freeze the final norm, whose gradient ranks would wait for."""
        self.encoder.norm.requires_grad_(False)
        self.merge = TokenMerge(self.encoder.config)

    def _encoded(self, images: Tensor) -> Tensor:
        """Encode images into all tokens before the final norm, behind the class token if there is one."""
        if self.reduction is None:
            return enc.encode(self.encoder, images)
        x_NLD, config = enc.embed(self.encoder, images), self.encoder.config
        return token_reduction.run_blocks(
            self.encoder.blocks, x_NLD, self.reduction, planes=config.planes, class_token=config.class_token
        )

    def _tokens(self, images: Tensor) -> Tensor:
        """Encode images into tokens (N, L, D) before the final norm, without the class token."""
        return self._encoded(images)[:, int(self.encoder.config.class_token) :]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Encode images into the merged map, repeated for four scales; `prepare_maps` must have been called.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            The map (N, D, h, w) of merged tokens, four times.

        Raises:
            SettingError: The images are not of the configured size.
        """
        return self.finish_maps(self.encode_maps(images))

    def encode_maps(self, images: Tensor) -> list[Tensor]:
        """Encode images into tokens, whose merge learns even if the encoder is frozen.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            Tokens (N, L, D) as the only item.
        """
        return [self._tokens(images)]

    def finish_maps(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """Merge tokens into maps.

        Args:
            encoded: Result of `encode_maps`.

        Returns:
            The same map (N, D, h, w), four times.
        """
        return [self.merge(encoded[0])] * 4

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images into one vector each, see `Pooling`.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            Vectors (N, D).

        Raises:
            SettingError: The images are not of the configured size.
        """
        if self.pooling == "class":
            of_class: Tensor = self.encoder.norm(self._encoded(images)[:, 0])
            return of_class
        first = 1 if self.pooling == "released" else 0
        out: Tensor = self.encoder.norm(self._tokens(images)[:, first:].mean(dim=1))
        return out

    def embedding(self, images: Tensor) -> Tensor:
        """Encode images into the mean token of each place after the final norm.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            One map (N, D, h, w) over the token grid.

        Raises:
            SettingError: The images are not of the configured size.
        """
        return enc.ground_means(self.encoder.norm(self._tokens(images)), self.encoder.config)

    def freeze(self) -> None:
        """Exclude the encoder from training; the merge belongs to the task and still learns."""
        self.encoder.requires_grad_(False).eval()
        self.frozen = True
