"""Baselines from timm: any of its models by name, with maps from its intermediate layers."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sgdata.errors import SettingError
from sgmodel.models import backbones, torchvision_compat, weight_adaptation
from sgmodel.models.weight_adaptation import State

log = logging.getLogger("sgdata")
Option = int | float | bool | str | tuple[int, ...]

# Sizes, rates and switches of layers. Checkpoints bring their options along, and timm also has some that read files,
# fetch weights or replace classes.
OPTIONS = frozenset(
    {
        "attn_drop_rate", "avg_down", "base_width", "cardinality", "channels", "class_token", "conv_mlp", "depth",
        "depths", "dims", "down_kernel_size", "drop_block_rate", "drop_path_rate", "drop_rate", "embed_dim",
        "embed_dims", "expand_ratio", "fc_norm", "final_norm", "global_pool", "head_dim", "head_init_scale",
        "init_values", "kernel_sizes", "layers", "ls_init_value", "mlp_ratio", "mlp_ratios", "no_embed_class",
        "num_heads", "output_stride", "patch_drop_rate", "patch_size", "pos_drop_rate", "pre_norm", "proj_drop_rate",
        "qk_norm", "qkv_bias", "reg_tokens", "stem_type", "stem_width", "use_abs_pos_emb", "use_rel_pos_bias",
        "use_shared_rel_pos_bias", "window_size", "zero_init_last",
    }
)  # fmt: skip


class TimmBackbone(backbones.Backbone):
    """A model of timm without its classifier, with random weights and timm's own pooling (class token or mean).

    Maps are the last four stages of a pyramid (ResNet, Swin, ConvNeXt), or the outputs of four blocks spread over the
    depth of a model of one stride (ViT, BEiT), which `UperHead` enlarges 8, 4, 2 and 1 times.

    Args:
        name: Name of the model in timm.
        bands: Number of bands of the images.
        image_px: Side of the images; 0 for any, which models of a fixed input size do not take.
        options: Settings passed to `timm.create_model`, of those in `OPTIONS`.

    Raises:
        SettingError: `name` or an option is unknown, the model gives no maps, or it needs an image size.
    """

    root = "body."

    def __init__(self, name: str, bands: int, image_px: int, options: Mapping[str, Option]) -> None:
        super().__init__()
        self.body: Any = _create(name, bands, image_px, options)
        self.bands, self.width = bands, self.body.head_hidden_size
        stages = [(stage["num_chs"], stage["reduction"]) for stage in self.body.feature_info]
        flat = len({reduction for _, reduction in stages}) == 1
        depth = len(stages)
        self.taps = backbones.quarter_ends(depth) if flat else list(range(depth - 4, depth))
        self.channels = tuple(stages[tap][0] for tap in self.taps)
        if flat:
            self.scales = backbones.GRID_SCALES

    def maps(self, images: Tensor) -> list[Tensor]:
        """Encode images (N, C, H, W) into four maps, finest first."""
        indices = sorted(set(self.taps))
        outputs = self.body.forward_intermediates(images, indices=indices, intermediates_only=True, output_fmt="NCHW")
        return [outputs[indices.index(tap)] for tap in self.taps]

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images (N, C, H, W) into vectors (N, width)."""
        out: Tensor = self.body(images)
        return out

    def prepare_maps(self) -> None:
        """Remove timm's final norm and head, which maps do not use."""
        self.body.prune_intermediate_layers(sorted(set(self.taps)), prune_norm=True, prune_head=True)

    def adapt_weights(self, state: State, how: weight_adaptation.FirstLayer, wavelengths: Sequence[float]) -> State:
        """Convert position tables, windows and patches as timm does, then adapt the first layer to the bands."""
        convert = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        # timm takes files with a mask token for those of DINOv2.
        state = {name: tensor for name, tensor in state.items() if name != "mask_token"}
        with warnings.catch_warnings():
            # Resizing window tables, timm calls functions that torch deprecates; a user can do nothing about that.
            warnings.simplefilter("ignore", UserWarning)
            state = dict(convert(state, self.body)) if convert else state
        layers: Any = self.body.default_cfg.get("first_conv") or ()
        if isinstance(layers, str):
            layers = (layers,)
        own = self.body.state_dict()
        for name in (f"{layer}.weight" for layer in layers):
            if name in state and state[name].shape[1:2] != own[name].shape[1:2]:
                weight = weight_adaptation.first_layer(state.pop(name), own[name].shape[1], how, wavelengths)
                if weight is not None:
                    state[name] = weight
        return state


def _create(name: str, bands: int, image_px: int, options: Mapping[str, Option]) -> Any:
    if unknown := sorted(options.keys() - OPTIONS):
        close = difflib.get_close_matches(unknown[0], OPTIONS, n=1, cutoff=0)[0]
        raise SettingError(f"model.options of '{name}': {unknown[0]!r:.60} cannot be set; did you mean '{close}'?")
    torchvision_compat.declare_operators()
    import timm

    if not timm.is_model(name.partition(".")[0]):
        models = ", ".join(timm.list_models(f"*{name[:4]}*")[:4])
        raise SettingError(f"model.backbone 'timm:{name}': not a model of timm {timm.__version__}; near it: {models}")
    config: Any = timm.get_pretrained_cfg(name)
    if config.fixed_input_size and not image_px:
        raise SettingError(f"model.image_px {image_px}: '{name}' takes images of one size only; set it to their side")
    settings: dict[str, Any] = dict(options)
    if config.fixed_input_size:
        settings["img_size"] = image_px
    try:
        body: Any = timm.create_model(name, pretrained=False, num_classes=0, in_chans=bands, **settings)
    # timm checks little: sizes that do not fit fail anywhere in it.
    except (TypeError, ValueError, AssertionError, LookupError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise SettingError(f"model.options {settings} of '{name}': {error!s:.200}; change them") from None
    if not hasattr(body, "forward_intermediates") or not body.feature_info:
        raise SettingError(f"model.backbone 'timm:{name}': gives no maps of its layers; use a ResNet, ViT or Swin")
    return body
