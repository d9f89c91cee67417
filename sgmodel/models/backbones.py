"""The interface of a backbone: images in, feature maps or one vector out.

A backbone without scales gives one map; one with scales gives four, finest first, for `upernet.UperHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from sgmodel.models.weight_adaptation import FirstLayer, State


GRID_SCALES = (8, 4, 2, 1)
"""`Backbone.scales` of a transformer, whose four maps are all of one token grid."""


class Backbone(nn.Module):
    """Base class of backbones, which turn images into feature maps or into one vector.

    Attributes:
        bands: Number of bands of the images.
        channels: Channels of each map, finest first: one number, or four.
        scales: Factor by which `upernet.UperHead` enlarges each map to make its levels.
        width: Length of the vector that `pooled` gives.
        head_std: Standard deviation of a linear head's fresh weights; 0 for the framework's default.
        root: Prefix of the backbone's own parameter names that weights made elsewhere do not have.
        frozen: Whether the pretrained part is excluded from training, see `freeze`.
    """

    bands: int
    channels: tuple[int, ...]
    scales: tuple[int, ...] = (1, 1, 1, 1)
    width: int
    head_std: float = 0.0
    root: str = ""
    frozen: bool = False

    def maps(self, images: Tensor) -> list[Tensor]:
        """Encode images into feature maps.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            One map (N, D, h, w), or four, finest first, whose numbers of channels are `channels`.

        Raises:
            NotImplementedError: The subclass does not define the method.
        """
        raise NotImplementedError

    def encode_maps(self, images: Tensor) -> list[Tensor]:
        """Run the part of `maps` that `freeze` excludes from training, by default all of it.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            Tensors (N, ...) for `finish_maps`.
        """
        return self.maps(images)

    def finish_maps(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """Run the rest of `maps`, which learns even if the backbone is frozen, by default nothing.

        Args:
            encoded: The result of `encode_maps`.

        Returns:
            Maps as those of `maps`.
        """
        return list(encoded)

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images into one vector each, by default the mean of the coarsest map.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            Vectors (N, width).
        """
        return self.maps(images)[-1].mean(dim=(2, 3))

    def embedding(self, images: Tensor) -> Tensor:
        """Encode images into a map to export, by default the coarsest one.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            One map (N, D, h, w).
        """
        return self.maps(images)[-1]

    def prepare_maps(self) -> None:
        """Make ready for `maps` alone: freeze what it does not use, whose gradient ranks would wait for."""

    def freeze(self) -> None:
        """Exclude the pretrained part from training, and keep it in evaluation mode."""
        # In evaluation for good: neither drop path nor moving averages, or the features would not be the weights'.
        self.requires_grad_(False).eval()
        self.frozen = True

    def adapt_weights(self, state: State, how: FirstLayer, wavelengths: Sequence[float]) -> State:
        """Convert weights of another image size or number of bands, as far as this backbone can.

        Args:
            state: Weights by the names of this backbone without `root`.
            how: Rule for a first layer over other bands.
            wavelengths: Centre wavelengths of the bands in nm; may be empty.

        Returns:
            The weights of `state`, converted where that is possible.
        """
        return state


def quarter_ends(depth: int) -> list[int]:
    """Return the index of the last block of each quarter of `depth`; some repeat if there are fewer than four."""
    return [max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)]
