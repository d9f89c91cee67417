"""Linear layers of transformer blocks in 8-bit floating point, by torchao, which comes with the extra `fp8`.

Micikevicius et al., "FP8 Formats for Deep Learning", 2022: activations and weights as e4m3, gradients as e5m2, each
tensor scaled by its largest value, products summed in float32. Weights are stored in float32 as without it, so that
checkpoints are the same. All else runs as in bf16.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import nn

from sgdata.errors import SettingError
from sgmodel import devices, distributed
from sgmodel.models import transformer

log = logging.getLogger("sgdata")

CAPABILITY = (8, 9)
"""The lowest compute capability of a GPU with products in FP8 (Ada; Hopper has 9.0)."""
MULTIPLE = 16
"""Widths of the layers are multiples of this, as the GPU's products need."""
_REFUSED = "training.precision is 'fp8'"


def check(launch: devices.Runtime) -> None:
    """Refuse FP8 where it cannot run, and log where it is emulated. Does nothing for other number formats.

    Raises:
        SettingError: torchao cannot be loaded, or the GPU has no FP8.
    """
    if launch.precision != "fp8":
        return
    _load_torchao()
    if launch.device.type == "cuda":
        capability = torch.cuda.get_device_capability(launch.device)
        if capability < CAPABILITY:
            raise SettingError(
                f"{_REFUSED}: {devices.name(launch.device)} has compute capability {_dotted(capability)}, expected "
                f"{_dotted(CAPABILITY)} or higher; set training.precision = 'bf16'"
            )
    elif distributed.is_main_process():
        log.warning("%s: emulated on a CPU, with equal rounding, and slower than 'bf16'", _REFUSED)


def _load_torchao() -> Any:
    """Return the module of torchao. Raises SettingError where it is not installed, or does not fit this torch."""
    # It logs kernels that it cannot load, which FP8 does not need, and torch logs a deprecated call of its.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("torchao.float8")
    except (ImportError, AttributeError, OSError) as error:
        raise SettingError(
            f"{_REFUSED}: torchao cannot be loaded ({error!s:.120}); pip install 'sgdata[fp8]', "
            "or set training.precision = 'bf16'"
        ) from None
    finally:
        logging.disable(disabled)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def convert(model: nn.Module, launch: devices.Runtime) -> None:
    """Let the linear layers in the blocks of `model` compute in FP8, those of other widths excepted; in place.

    Args:
        model: The model, before it is shared among processes.
        launch: Device, with which FP8 runs (`check`).

    Raises:
        SettingError: No layer can.
    """
    torchao = _load_torchao()
    # Products over tokens, whose number is no multiple of 16 for all batches, are padded with zeros.
    config = torchao.Float8LinearConfig(emulate=launch.device.type != "cuda", pad_inner_dim=True)
    blocks = [part for part in model.modules() if isinstance(part, transformer.Block)]
    layers = [part for block in blocks for part in block.modules() if isinstance(part, nn.Linear)]
    able = sum(map(_is_able, layers))
    if not able:
        raise SettingError(
            f"{_REFUSED}: the model has {len(layers)} linear layers in transformer blocks of SpectralGPT or SatMAE, "
            f"none with widths that are multiples of {MULTIPLE}; set training.precision = 'bf16'"
        )
    for block in blocks:
        torchao.convert_to_float8_training(block, module_filter_fn=lambda layer, _: _is_able(layer), config=config)
    if distributed.is_main_process():
        log.info("FP8 in %d of %d linear layers of the transformer blocks", able, len(layers))


def _is_able(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0
