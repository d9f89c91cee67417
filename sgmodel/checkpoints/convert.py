"""Convert released weights into a checkpoint folder, and report what happened to each of them.

Reads `.pth` (only tensors and plain values are unpickled) and `.safetensors`, with `module.` prefixes and fused qkv.
The model is inferred from names and shapes. Released weights bring no contract, so the data are not compared with
those that they were trained on.
"""

from __future__ import annotations

from pathlib import Path

from sgmodel.checkpoints import cards, checkpoint_folder, load_weights


def convert(source: Path, out: Path, *, at_least: float) -> load_weights.TransferReport:
    """Write `source` as a checkpoint folder.

    Args:
        source: A checkpoint folder, a `.safetensors` file, or a torch file.
        out: Folder to write to.
        at_least: Share of the encoder's parameters that must be filled; 0 takes weights of which parts are missing.

    Raises:
        SourceError: The weights cannot be read, are not those of a SpectralGPT model, or too few of them fit.
        OutputError: The folder cannot be written.
    """
    state = load_weights.read_weights(source)
    if load_weights.has_card(source):  # such as averaged weights, whose card applies to them too
        card = cards.read(source)
    else:
        card = cards.ModelCard(model=cards.infer(state, origin=str(source)))
    model = card.model.build()
    report = load_weights.fit(model, state, at_least=at_least, origin=str(source))
    if at_least:
        cards.check_complete(report, card.model.kind, source)
    checkpoint_folder.save(out, model, card)
    return report


def describe(report: load_weights.TransferReport) -> str:
    """Format a report, a line for each kind, with the names of weights that were not copied as they are."""
    lines = [f"encoder filled: {report.encoder_share:.1%} of its parameters"]
    for kind in ("matched", "resized", "missing", "unexpected"):
        names = getattr(report, kind)
        shown = "" if kind == "matched" or not names else f": {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        lines.append(f"{kind:>10} {len(names)}{shown}")
    return "\n".join(lines)
