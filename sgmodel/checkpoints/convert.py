"""Turn published weights into a checkpoint of ours, and say what became of each.

    python -m sgmodel.recipes.convert SpectralGPT+.pth --out out/weights/spectralgpt-plus

Reads `.pth` (only tensors and plain values are unpickled) and `.safetensors`, with `module.` prefixes and fused qkv.
The model is taken from names and shapes. Nothing is written where less than `--at-least` of the encoder fits. Such
weights bring no contract: what they were trained on stays the user's knowledge.
"""

from __future__ import annotations

from pathlib import Path

from sgmodel.checkpoints import cards, checkpoint_folder, transfer


def convert(source: Path, out: Path, *, at_least: float) -> transfer.Report:
    """Write `source` as a checkpoint folder `out`. Raises SgdataError."""
    state = transfer.read_weights(source)
    if transfer.has_card(source):  # averaged weights, say: whatever their card says stays true
        card = cards.read(source)
    else:
        card = cards.Card(model=cards.infer(state, where=str(source)))
    model = card.model.build()
    report = transfer.fit(model, state, at_least=at_least, where=str(source))
    checkpoint_folder.save(out, model, card)
    return report


def describe(report: transfer.Report) -> str:
    """The report, a line per kind, and names where something is amiss."""
    lines = [f"encoder filled: {report.encoder_share:.1%} of its parameters"]
    for kind in ("matched", "resized", "missing", "unexpected"):
        names = getattr(report, kind)
        shown = "" if kind == "matched" or not names else f": {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        lines.append(f"{kind:>10} {len(names)}{shown}")
    return "\n".join(lines)
