"""Measure every row of the speed table on this machine, as ratios within one run.

    make bench            all rows (minutes)
    python tests/bench/table.py composite loader      only the benchmarks whose file name holds one of these words

A benchmark is a file `bench_<name>.py` beside this one with `rows()`: an iterable of (row, against, reach, measured).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

PROMISED = (
    ("composite, median, 12 dates", "odc-stac + dask threads", ">= 10x (native-grid median)"),
    ("composite, median, 12 dates", "bare decode of the same blocks", "<= 1.3x"),
    ("composite, median, 12 dates", "peak memory", "<= 500 MB, flat in area and dates"),
    ("composite, bap", "decoding every date", "<= 0.5x"),
    ("medoid", "numpy reference", ">= 10x"),
    (
        "sharding BigEarthNet-like TIFFs",
        "rasterio open + resample per band + npy",
        ">= 10x with --hash fast, >= 5x with full",
    ),
    ("loader", "webdataset on the same tars", ">= 6x"),
    ("loader, effort dense", "webdataset on the same tars", ">= 6x"),
    ("loader", "litdata", ">= 2.5x"),
    ("loader, 2 ranks on one machine", "one rank of one thread", ""),
    ("shard bytes", "npy, resampled", "<= 0.60 resampled, <= 0.30 native"),
    ("pretrain step, base 128, batch 8, CPU", "naive attention fp32 of the same model", ">= 3.5x (bf16)"),
    ("pretrain step, base 128, batch 8, CPU", "commit 7dbe2a5", ">= 1.6x"),
    ("fine-tuning step, base, 1,024 tokens, CPU", "timm ViT-B of as many tokens", "<= 0.85x"),
    ("fine-tuning step, base, 1,024 tokens, CPU", "with token reduction", ">= 2x"),
    ("pretrain step, H200", "50 % of peak", ">= 0.7 of that; data wait < 2 %"),
    ("growth", "1x, 4x, 16x area; 1x, 4x dates", "linear time, flat memory"),
)


def measured(words: list[str]) -> dict[tuple[str, str], str]:
    """Return the results of the benchmarks by (row, against); for a peer that is not installed, a note of that."""
    sys.path.insert(0, str(HERE))
    found = {}
    for path in sorted(HERE.glob("bench_*.py")):
        if words and not any(word in path.stem for word in words):
            continue
        print(f"measuring {path.stem} ...", file=sys.stderr, flush=True)
        for row, against, _, figure in importlib.import_module(path.stem).rows():
            found[row, against] = figure
    return found


def main() -> None:
    figures = measured(sys.argv[1:])
    extra = [(row, against, "") for row, against in figures if (row, against) not in {p[:2] for p in PROMISED}]
    print("| row | against | reach | measured |\n|---|---|---|---|")
    for row, against, reach in (*PROMISED, *extra):
        print(f"| {row} | {against} | {reach} | {figures.get((row, against), 'not yet')} |")


if __name__ == "__main__":
    main()
