"""Run pretraining steps (base 128, batch 8, bf16 on the CPU), one for each line of the input, and print CPU seconds.

The packages are those on the path: of this tree, or of an older commit, whose modules have other names. The first step
of a process warms up.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
from typing import Any

importlib.import_module("sgmodel")  # before torch, whose threads it sets
torch: Any = importlib.import_module("torch")

BATCH, RATIO = 8, 0.9


def load(name: str) -> Any:
    """Import a module of the models, which older commits have at the root of the package."""
    try:
        return importlib.import_module(f"sgmodel.models.{name}")
    except ImportError:
        return importlib.import_module(f"sgmodel.{name}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    # As training does.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(0)
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("sgmodel.devices").keep_freed_memory()
    encoder, mae = load("encoder"), load("mae")
    model = mae.MaskedAutoencoder(encoder.Encoder(encoder.base()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images, noise = torch.rand(BATCH, 12, 128, 128), torch.rand(BATCH, model.config.tokens)
    for _ in sys.stdin:
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(images, noise=noise, ratio=RATIO).loss
        loss.backward()
        optimizer.step()
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
