"""Any backbone of timm by name, as a baseline: its own forward pass, maps from its intermediate layers."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models import adapt, backbones, torchvision_compat
from sgmodel.models.adapt import State

log = logging.getLogger("sgdata")
Option = int | float | bool | str | tuple[int, ...]


class TimmBackbone(backbones.Backbone):
    """`body` is timm's model without its classifier; pooling is timm's own (class token or mean, as the model has it).

    A pyramid (ResNet, Swin, ConvNeXt) gives its last four stages; a model of one stride (ViT, BEiT) the output of four
    blocks spread over its depth, which `UperHead` enlarges 8, 4, 2 and 1 times.
    """

    root = "body."

    def __init__(self, name: str, bands: int, image_px: int, options: Mapping[str, Option]) -> None:
        """Random weights. Raises SettingError: unknown name or option, no maps, no size where one is needed."""
        super().__init__()
        self.body: Any = _create(name, bands, image_px, options)
        self.bands, self.width = bands, self.body.head_hidden_size
        stages = [(stage["num_chs"], stage["reduction"]) for stage in self.body.feature_info]
        flat = len({reduction for _, reduction in stages}) == 1
        depth = len(stages)
        # The last layer of each quarter of the depth; some of them twice where there are fewer than four.
        self.taps = [max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)]
        if not flat:
            self.taps = list(range(depth - 4, depth))
        self.channels = tuple(stages[tap][0] for tap in self.taps)
        self.scales = (8, 4, 2, 1) if flat else (1, 1, 1, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> four maps, finest first."""
        wanted = sorted(set(self.taps))
        found = self.body.forward_intermediates(images, indices=wanted, intermediates_only=True, output_fmt="NCHW")
        return [found[wanted.index(tap)] for tap in self.taps]

    def pooled(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width)."""
        out: Tensor = self.body(images)
        return out

    def prepare_maps(self) -> None:
        """Drop timm's final norm and head, which maps are taken before."""
        self.body.prune_intermediate_layers(sorted(set(self.taps)), prune_norm=True, prune_head=True)

    def adapt_weights(self, state: State, how: adapt.FirstLayer, wavelengths: Sequence[float]) -> State:
        """timm's own conversion of position tables, windows and patches; then the first layer onto the bands."""
        convert = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        # The mask token of a pretraining file would pass for DINOv2's layout there.
        state = {name: tensor for name, tensor in state.items() if name != "mask_token"}
        with warnings.catch_warnings():
            # On resizing window tables timm's own code meets torch's deprecations, about which a user can do nothing.
            warnings.simplefilter("ignore", UserWarning)
            state = dict(convert(state, self.body)) if convert else state
        first: Any = self.body.default_cfg.get("first_conv") or ()
        own = self.body.state_dict()
        for name in (f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first)):
            if name in state and state[name].shape[1:2] != own[name].shape[1:2]:
                weight = adapt.first_layer(state.pop(name), own[name].shape[1], how, wavelengths)
                state |= {} if weight is None else {name: weight}
        return state


def share_statistics(model: nn.Module, device: torch.device) -> None:
    """Let BatchNorm, under torchrun, count over the samples of all processes as it would in one; on GPUs, in place."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    if norms and device.type == "cuda":
        # timm's own: torch's would drop the activation that some of timm's layers hold.
        importlib.import_module("timm.layers").convert_sync_batchnorm(model)
    elif norms:
        told = "%d layers of BatchNorm count over the samples of one of the processes; torch can join them on GPUs only"
        log.warning(told, len(norms))


def _create(name: str, bands: int, image_px: int, options: Mapping[str, Option]) -> Any:
    torchvision_compat.declare_operators()
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:4]}*")[:4])
        raise SettingError(f"model.backbone 'timm:{name}': not a model of timm {timm.__version__}; near it: {near}")
    known: Any = timm.get_pretrained_cfg(name)
    if known.fixed_input_size and not image_px:
        raise SettingError(f"model.image_px {image_px}: '{name}' takes images of one size only; say which")
    settings: dict[str, Any] = {**options, **({"img_size": image_px} if known.fixed_input_size else {})}
    try:
        body: Any = timm.create_model(name, pretrained=False, num_classes=0, in_chans=bands, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise SettingError(f"model.options {settings} of '{name}': {error!s:.200}") from None
    if not hasattr(body, "forward_intermediates") or not body.feature_info:
        raise SettingError(f"model.backbone 'timm:{name}': gives no maps of its layers; take a ResNet, ViT or Swin")
    return body
