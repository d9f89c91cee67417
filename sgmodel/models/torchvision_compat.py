"""Let timm be imported beside any build of torch."""

from __future__ import annotations

import importlib
import sys

import torch


def declare_operators() -> None:
    """Declare torchvision's compiled operators where they are missing, so that torchvision can be imported.

    timm imports torchvision, which at import registers Python parts of its operators `nms` and `qnms`. Beside a CPU
    build of torch the compiled library that declares them may be missing, and the import then ends in "operator
    torchvision::nms does not exist". Declaring the two is enough: calling them still fails, and timm does not.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _library.define(  # type: ignore[no-untyped-call]
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]  # half imported


# Kept for the life of the process, with which the declarations end.
_library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
