"""Turn published weights into a checkpoint of ours, and say what became of each.

    python -m sgmodel.recipes.convert SpectralGPT+.pth --out out/weights/spectralgpt-plus

Reads `.pth` (only tensors and plain values are unpickled) and `.safetensors`, with `module.` prefixes and fused qkv.
The model is taken from names and shapes. Nothing is written where less than `--at-least` of the encoder fits. Such
weights bring no contract: what they were trained on stays the user's knowledge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sgdata.errors import ExitCode, SgdataError
from sgmodel.checkpoints import cards, checkpoint_folder, hub, transfer


def convert(source: Path, out: Path, *, at_least: float) -> transfer.Report:
    """Write `source` as a checkpoint folder `out`. Raises SgdataError."""
    state = transfer.read_weights(source)
    if transfer.has_card(source):  # averaged weights, say: whatever their card says stays true
        card = cards.read(source)
    else:
        card = cards.Card(model=cards.infer(state, where=str(source)))
    model = cards.build(card.model)
    report = transfer.fit(model, state, at_least=at_least, where=str(source))
    checkpoint_folder.save(out, model, card)
    return report


def told(report: transfer.Report) -> str:
    """The report, a line per kind, and names where something is amiss."""
    lines = [f"encoder filled: {report.encoder_share:.1%} of its parameters"]
    for kind in ("matched", "resized", "missing", "unexpected"):
        names = getattr(report, kind)
        shown = "" if kind == "matched" or not names else f": {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        lines.append(f"{kind:>10} {len(names)}{shown}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, report; exits with 0, or 2 and one line."""
    parser = argparse.ArgumentParser(
        prog="python -m sgmodel.recipes.convert", description="Published weights to a checkpoint folder"
    )
    parser.add_argument("source", help="a file, a checkpoint folder, or OWNER/NAME on the HuggingFace hub")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--at-least", type=float, default=0.9, metavar="SHARE", help="of the encoder's parameters")
    options = parser.parse_args(argv)
    try:
        print(told(convert(hub.found(options.source), options.out, at_least=options.at_least)))
    except SgdataError as error:
        print(f"convert: {error}", file=sys.stderr)
        raise SystemExit(ExitCode.REFUSED) from None


if __name__ == "__main__":
    main()
