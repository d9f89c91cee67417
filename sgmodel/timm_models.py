"""SpectralGPT under timm's names: import this module, then `timm.create_model("spectralgpt_base_patch8_128")`.

The only file that imports timm; nothing else of sgmodel needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sgmodel.checkpoints import hub, transfer
from sgmodel.models import encoder as enc
from sgmodel.models import heads, torchvision_compat

SIZES = {"base": enc.base, "large": enc.large, "huge": enc.huge}


class SpectralGPT(heads.SceneClassifier):
    """The scene classifier with timm's interface; state-dict keys are the published ones."""

    def __init__(self, config: enc.EncoderConfig, classes: int) -> None:
        super().__init__(enc.Encoder(config), max(classes, 1))
        enc.initialise(self)
        self.num_features = self.head_hidden_size = config.width
        self.reset_classifier(classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head; none (features come out) for 0 classes. Pooling is the mean over tokens."""
        self.num_classes = self.classes = num_classes
        head = nn.Linear(self.config.width, num_classes) if num_classes else nn.Identity()
        self.add_module("head", head)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D), after the final norm."""
        out: Tensor = self.norm(enc.tokens(self, images))
        return out

    def forward_head(self, tokens_NLD: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, L, D) -> (N, classes), or (N, D)."""
        pooled = tokens_NLD.mean(dim=1)
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """After the blocks `indices` (an int: the last so many; None: all): (N, D, h, w), the mean over the spectral
        groups of each place, or all tokens (N, L, D). With the final tokens before them unless `intermediates_only`."""
        depth = len(self.blocks)
        every = range(depth)
        wanted = set(every if indices is None else every[-indices:] if isinstance(indices, int) else indices)
        wanted = {index % depth for index in wanted}
        tokens_NLD, first = enc.embedded(self, x), int(self.config.class_token)
        found: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            tokens_NLD = block(tokens_NLD)
            if number in wanted:
                found.append((self.norm(tokens_NLD) if norm else tokens_NLD)[:, first:])
        if output_fmt == "NCHW":
            side = self.config.side
            found = [
                layer.reshape(len(x), self.config.planes, side, side, -1).mean(1).permute(0, 3, 1, 2) for layer in found
            ]
        return found if intermediates_only else (self.norm(tokens_NLD[:, first:]), found)


def _entrypoint(size: str, px: int) -> Any:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        num_classes: int = 0,
        in_chans: int = 12,
        img_size: int = px,
        drop_path_rate: float = 0.0,
        cache_dir: Any = None,
    ) -> SpectralGPT:
        """`pretrained_cfg_overlay={"file": PATH|HUB}` names the weights that `pretrained` loads."""
        from dataclasses import replace

        config = replace(SIZES[size](image_px=img_size), bands=in_chans, drop_path=drop_path_rate)
        model = SpectralGPT(config, num_classes)
        if pretrained:
            source = hub.found((pretrained_cfg_overlay or {}).get("file", f"spectralgpt_{size}_patch8_{px}"))
            transfer.fit(model, transfer.read_weights(source), where=str(source))
        return model

    create.__name__ = f"spectralgpt_{size}_patch8_{px}"
    create.__module__ = __name__
    return create


def register() -> None:
    """Tell timm of `spectralgpt_{base,large,huge}_patch8_{96,128}`."""
    torchvision_compat.mend()
    from timm.models import register_model

    for size in SIZES:
        for px in (96, 128):
            register_model(_entrypoint(size, px))


register()
