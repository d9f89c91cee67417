"""SpectralGPT under timm's names: import this module, then `timm.create_model("spectralgpt_base_patch8_128")`.

Importing it registers `spectralgpt_{base,large,huge}_patch8_{96,128}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from sgmodel.checkpoints import hub, load_weights
from sgmodel.models import encoder as enc
from sgmodel.models import heads, spectralgpt, torchvision_compat

SIZES = {"base": enc.base, "large": enc.large, "huge": enc.huge}


class TimmSpectralGPT(heads.TaskModel):
    """The scene classifier with the interface of timm's models; state-dict keys are the released ones.

    Args:
        config: Size of the encoder.
        classes: Number of classes; 0 for features (N, D) in the place of logits.
    """

    kind = "classifier"
    dense = False
    keys = heads.Classifier.keys

    def __init__(self, config: enc.EncoderConfig, classes: int) -> None:
        super().__init__(spectralgpt.SpectralGPT(enc.Encoder(config)), classes)
        self.num_features = self.head_hidden_size = config.width
        enc.initialise(self.encoder)
        self.reset_classifier(classes)

    @property
    def encoder(self) -> enc.Encoder:
        """The SpectralGPT encoder inside the backbone."""
        assert isinstance(self.backbone, spectralgpt.SpectralGPT)
        return self.backbone.encoder

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one for `num_classes`; 0 for none. Pooling is always the mean over tokens."""
        self.num_classes = self.classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode images (N, C, H, W) into tokens (N, L, D) after the final norm."""
        out: Tensor = self.encoder(images)
        return out

    def forward_head(self, tokens_NLD: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (N, L, D) into logits (N, classes), or with `pre_logits` into features (N, D)."""
        pooled = tokens_NLD.mean(dim=1)
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Score images (N, C, H, W) with logits (N, classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Encode images into the outputs of several blocks.

        Args:
            x: Images (N, C, H, W).
            indices: Numbers of the blocks; an int for the last so many, None for all.
            norm: Whether to apply the final norm to each output.
            output_fmt: "NCHW" for maps (N, D, h, w), the mean over the spectral groups of each place; "NLC" for all
                tokens (N, L, D).
            intermediates_only: Whether to leave out the final tokens.

        Returns:
            The list of outputs, or the final tokens (N, L, D) and the list.
        """
        encoder = self.encoder
        config, depth, first = encoder.config, len(encoder.blocks), int(encoder.config.class_token)
        if indices is None:
            indices = depth
        chosen = range(depth)[-indices:] if isinstance(indices, int) else [index % depth for index in indices]
        tokens_NLD = enc.embed(encoder, x)
        outputs: list[Tensor] = []
        for number, block in enumerate(encoder.blocks):
            tokens_NLD = block(tokens_NLD)
            if number in chosen:
                outputs.append((encoder.norm(tokens_NLD) if norm else tokens_NLD)[:, first:])
        if output_fmt == "NCHW":
            outputs = [enc.ground_means(layer, config) for layer in outputs]
        return outputs if intermediates_only else (encoder.norm(tokens_NLD[:, first:]), outputs)


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
    ) -> TimmSpectralGPT:
        """Build the model; `pretrained_cfg_overlay={"file": PATH|HUB}` names the weights that `pretrained` loads."""
        config = replace(SIZES[size](image_px=img_size), bands=in_chans, drop_path=drop_path_rate)
        model = TimmSpectralGPT(config, num_classes)
        if pretrained:
            source = hub.resolve((pretrained_cfg_overlay or {}).get("file", f"spectralgpt_{size}_patch8_{px}"))
            load_weights.fit(model, load_weights.read_weights(source), origin=str(source))
        return model

    create.__name__ = f"spectralgpt_{size}_patch8_{px}"
    create.__module__ = __name__
    return create


def register() -> None:
    """Register `spectralgpt_{base,large,huge}_patch8_{96,128}` with timm."""
    torchvision_compat.declare_operators()
    from timm.models import register_model

    for size in SIZES:
        for px in (96, 128):
            register_model(_entrypoint(size, px))


register()
