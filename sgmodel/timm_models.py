"""SpectralGPT under timm's names: import this module, then `timm.create_model("spectralgpt_base_patch8_128")`.

The only file that imports timm; nothing else of sgmodel needs it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgmodel import checkpoint, heads, hub
from sgmodel import encoder as enc

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
            checkpoint.fit(model, checkpoint.read_weights(source), where=str(source))
        return model

    create.__name__ = f"spectralgpt_{size}_patch8_{px}"
    create.__module__ = __name__
    return create


def mend_torchvision() -> None:
    """Let torchvision be imported beside a torch that it was not compiled for; does nothing where it can be.

    timm imports torchvision, which at import registers Python parts of its operators `nms` and `qnms`. Beside a CPU
    build of torch the compiled library that declares them may be left out, and the import then ends in "operator
    torchvision::nms does not exist". Declaring the two (calling them still fails, and nobody here does) is enough.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _declared.define(  # type: ignore[no-untyped-call]
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]  # half imported


_declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # what it declares lives as long as it does


def register() -> None:
    """Tell timm of `spectralgpt_{base,large,huge}_patch8_{96,128}`."""
    mend_torchvision()
    from timm.models import register_model

    for size in SIZES:
        for px in (96, 128):
            register_model(_entrypoint(size, px))


register()
