"""Describe the machine, measure its matrix products, and compare models with the original code's numbers."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgmodel import devices
from sgmodel.checkpoints import load_weights, weight_files
from sgmodel.models import encoder, heads, mae, state_keys, upernet
from sgmodel.models.spectralgpt import SpectralGPT

QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
FACTOR = 4.0
"""Allowed ratio between our rounding error and the original's, both taken from our model in float64."""


def describe(device: torch.device) -> str:
    """Return Python, torch, device and memory in one line; equal on equal machines."""
    parts = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        parts += [f"CUDA {torch.version.cuda}", properties.name, f"{properties.total_memory / 1e9:.0f} GB"]
        parts.append(f"peak {devices.peak_tflops(device) or '-'} TFLOP/s bf16")
    else:
        parts.append(f"CPU {platform.machine()}, {torch.get_num_threads()} threads")
    return "; ".join(parts)


def clocks(device: torch.device) -> str:
    """Return driver, clocks and power limit as nvidia-smi reports them, or why that is not known."""
    if device.type != "cuda":
        return "no driver (CPU)"
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", f"--id={device.index or 0}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"driver and clocks unknown: {type(error).__name__}"
    return ", ".join(
        f"{name} {value.strip()}" for name, value in zip(QUERY.split(","), done.stdout.split(","), strict=False)
    )


# --- parity --------------------------------------------------------------------------------


def parity(file: Path, device: torch.device) -> tuple[bool, str]:
    """Compare a float32 run on `device` with the numbers of the original code in `file`.

    Our model in float64 on the CPU is the reference, and neither error may be more than `FACTOR` times the other. If
    ours is larger, the device computes with less precision; if the original's is, our model computes something else.

    Returns:
        Whether outputs and gradients are within the limit, and both errors as text.
    """
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files if stored[name].dtype.kind in "fi"}
    ours = _outputs(file.stem, arrays, torch.float32, device)
    exact = _outputs(file.stem, arrays, torch.float64, torch.device("cpu"))
    good, texts = True, []
    for kind in ("outputs", "gradients"):
        names = [name for name in exact if name.startswith("grad/") == (kind == "gradients")]
        own, original = (_error(values, exact, names) for values in (ours, arrays))
        smaller = max(min(own, original), torch.finfo(torch.float32).eps)
        good = good and max(own, original) <= FACTOR * smaller
        texts.append(f"{kind} {own:.1e} (original {original:.1e})")
    return good, "relative error " + ", ".join(texts)


def _error(values: dict[str, Tensor], exact: dict[str, Tensor], names: list[str]) -> float:
    """Return the largest error of any tensor as a share of the largest value in it."""
    return max(float((values[n].cpu().double() - exact[n]).abs().max() / exact[n].abs().max()) for n in names)


def _outputs(name: str, arrays: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Run the model of a file forward and backward -> loss, output, and gradients named as in the file."""
    state = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    images = arrays["input"].to(device, dtype)
    model: nn.Module
    if name.startswith("pretrain"):
        config = encoder.EncoderConfig(image_px=32, width=96, depth=2, heads=4)
        model = mae.MaskedAutoencoder(encoder.Encoder(config), mae.DecoderConfig(width=64, depth=2, heads=4))
        model.load_state_dict(state)
        out = model.to(device, dtype)(images, noise=arrays["noise"].to(device), ratio=0.75)
        found = {"loss": out.loss, "pred": out.pred}
    elif name.startswith("classify"):
        config = encoder.EncoderConfig(image_px=32, width=96, depth=3, heads=4, drop_path=0.2)
        model = heads.Classifier(SpectralGPT(encoder.Encoder(config), "released"), 19).eval()
        model.load_state_dict(state)
        logits = model.to(device, dtype)(images)
        found = {"loss_soft_ce": functional.cross_entropy(logits, arrays["soft_target"].to(device, dtype))}
        found["logits"] = logits
    else:
        widths = upernet.HeadConfig(levels=(32, 64, 128, 256), hidden=(64, 64, 128), width=32)
        config = encoder.EncoderConfig(image_px=64, width=64, depth=12, heads=4, drop_path=0.5)
        model = heads.Segmenter(SpectralGPT(encoder.Encoder(config)), 13, widths).eval()
        load_weights.fit(model, state, at_least=1.0)
        logits = model.to(device, dtype)(images)
        found = {"loss": functional.cross_entropy(logits, arrays["target"].to(device), ignore_index=255)}
        found["logits"] = logits
    next(value for key, value in found.items() if key.startswith("loss")).backward()
    gradients = {
        f"grad/{_published(key, model)}": parameter.grad
        for key, parameter in state_keys.parameters(model).items()
        if parameter.grad is not None
    }
    # The true gradient of a key's bias is 0, so that its error has no scale.
    known = {key: value for key, value in gradients.items() if key in arrays and not key.endswith("attn.k.bias")}
    return {key: value.detach() for key, value in (found | known).items()}


def _published(name: str, model: nn.Module) -> str:
    """Return the parameter's name in the published code, which the files use."""
    return weight_files.released_name(name, "segmenter") if isinstance(model, heads.Segmenter) else name
