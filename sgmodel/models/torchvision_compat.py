"""What timm needs before it can be imported beside any build of torch."""

from __future__ import annotations

import importlib
import sys

import torch


def mend() -> None:
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
