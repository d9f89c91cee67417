"""Score every training program on samples that do not divide among two ranks, without changing the weights.

    [torchrun] -m score_programs SHARDS OUT PARALLEL

A program for tests: it starts torch once for all of them.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from test_classify import recipe as classification
from test_contrast import recipe as contrasting
from test_detect_change import recipe as change
from test_pretrain import recipe as pretraining
from test_segment import TINY, run_paths_for
from test_segment import recipe as segmentation

from sgmodel import distributed
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment

STILL = ("training.optimizer.lr=0.0", "training.epochs=1", "training.batch=4")
CROPS = ("model.encoder.image_px=16", "augment.crop_area=[0.25, 0.25]", "augment.crop_aspect=[1.0, 1.0]")
PROGRAMS: dict[str, tuple[str, Any, Any]] = {
    "pretrain": ("masks", pretrain.main, pretraining(*STILL)),
    # Without a step: each process has its own statistics of BatchNorm.
    "simclr": ("masks", contrast.main, contrasting("simclr", *STILL, "training.epochs=0")),
    "moco": ("masks", contrast.main, contrasting("moco", *STILL, "contrast.queue=16", "training.epochs=0")),
    "segment": ("masks", segment.main, segmentation("tiny", *TINY, *STILL)),
    "tiles": ("masks", segment.main, segmentation("tiny", *TINY, *STILL, *CROPS)),
    "detect_change": ("pairs", detect_change.main, change(*STILL)),
    "classify": ("scenes", classify.main, classification(*STILL)),
    "knn": ("scenes", classify.main, classification(*STILL, "mode=knn")),
}


def main(shards: Path, out: Path, parallel: Literal["ddp", "fsdp"]) -> None:
    for name, (data, program, recipe) in PROGRAMS.items():
        paths = run_paths_for(shards / data, out / name)
        with redirect_stdout(io.StringIO()) as printed:
            assert program(recipe, replace(paths, parallel=parallel)) == 0
        if recipe.training.epochs == 0 and distributed.is_main_process():
            paths.out.mkdir(parents=True)
            (paths.out / "results.json").write_text(printed.getvalue())
    distributed.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), cast(Any, sys.argv[3]))
