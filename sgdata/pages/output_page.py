"""`sgdata show`: write the page of an output folder, whose kind is detected from its files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgdata import files, output_lock, output_names
from sgdata.audits import findings
from sgdata.errors import OutputError, SourceError
from sgdata.pages import build, html, ledger, run, samples, tables
from sgdata.rasters import geotiff
from sgdata.shards import contracts

INDEX = "index.html"
# Written first, so that an incomplete page can be replaced too.
MARK = ".page"


def write(path: Path, out: Path, layers: Sequence[Path] = ()) -> Path:
    """Write the page of `path` into the folder `out`; returns its `index.html`. Raises SourceError, OutputError.

    `out` may hold an earlier page, which is replaced, and nothing else. `layers` are rasters of classes, or folders
    of `sgmodel predict`, to be laid over a build.
    """
    files.require_file(path, "the folder of a build, of shards, of a release or of a run")
    # Never delete files that are not of an earlier page.
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise OutputError(f"{out}: holds files that are not an earlier page; choose another --out")
    with output_lock.only_writer(out):
        (out / MARK).touch()
        for old in out.iterdir():
            if old.name in {MARK, ".lock"}:
                continue
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        parts = build_blocks(path, out, {str(layer): _raster(layer, path) for layer in layers})
        contract = contracts.read(path) if (path / output_names.CONTRACT).exists() else None
        audit = [tables.build_audit(findings.read(path / findings.NAME))] if (path / findings.NAME).exists() else []
        subject = f", {contract.dataset} {contract.version}" if contract else ""
        made = html.write(
            out / INDEX,
            title=path.resolve().name,
            intro=f"Written by sgdata show{subject}. The page opens from disk and loads nothing from the network.",
            blocks=[*audit, *parts],
        )
        files.write_sums(out)
    return made


def write_demo(path: Path, out: Path, figures: Sequence[tuple[str, str, str]]) -> Path:
    """Write the page of a demo in `path`, with its `figures` (name, value, remark); return its `index.html`."""
    # Remove pictures of an earlier run.
    shutil.rmtree(out, ignore_errors=True)
    truth = {"True land cover": path / "archive" / "truth" / "land_cover.tif"}
    return html.write(
        out / INDEX,
        title="A simulated city, from scenes to a segmentation model",
        intro="Sentinel-2 scenes and OpenStreetMap data of a simulated city, with the truth for every figure: "
        "composite, labels, patches, shards, SpectralGPT pretraining, UperNet fine-tuning.",
        # Figures first, then in the order of the stages.
        blocks=[
            html.Table(title="Figures", columns=("what", "measured", "remark"), rows=tuple(figures)),
            *build.build_blocks(path / "build", out, truth),
            # Only the samples: bands, classes and contract of the shards are those of the build.
            *(block for block in samples.build_blocks(path / "shards", out) if isinstance(block, html.Gallery)),
            *run.build_blocks(path / "runs/pretrain", out, "Pretraining: "),
            *run.build_blocks(path / "runs/segment", out, "Fine-tuning: "),
        ],
    )


def _raster(layer: Path, build: Path) -> Path:
    """Return the raster of a layer. Raises SourceError unless it is on the grid of `build`, and finished."""
    if layer.is_dir():
        files.require_finished(layer)
    raster = files.require_file(layer / "classes.tif" if layer.is_dir() else layer, "a map on the grid of a build")
    with (
        geotiff.open_raster(str(raster)) as one,
        geotiff.open_raster(str(files.require_file(build / output_names.IMAGE, "a build"))) as two,
    ):
        if (one.crs, one.transform, one.shape) != (two.crs, two.transform, two.shape):
            raise SourceError(
                f"{raster}: {one.shape} in {one.crs} is another grid than that of {build}, {two.shape}; warp it"
            )
    if raster.stem in {Path(name).stem for name in (output_names.LABELS, output_names.LABEL_SOURCE)}:
        raise SourceError(f"{raster}: the build has a layer of that name; rename the file")
    return raster


def build_blocks(path: Path, out: Path, layers: Mapping[str, Path]) -> list[html.Block]:
    """Return the blocks for the folder `path`. Raises SourceError if its kind is not known."""
    if (path / output_names.IMAGE).exists():
        return build.build_blocks(path, out, layers)
    if (path / output_names.INDEX).exists():
        return samples.build_blocks(path, out)
    parts = ledger.read_blocks(path / run.LEDGER) if (path / run.LEDGER).exists() else []
    if (path / run.METRICS).exists():
        return parts + run.build_blocks(path, out) + run.build_speed(path)
    # The runs of a ledger are in sub-folders.
    for metrics in sorted([*path.glob(f"*/{run.METRICS}"), *path.glob(f"runs/*/{run.METRICS}")]):
        parts += run.build_blocks(metrics.parent, out, f"{metrics.parent.name}: ")
    if not parts:
        raise SourceError(
            f"{path}: holds none of {output_names.IMAGE} (a build), {output_names.INDEX} (shards or a release), "
            f"{run.METRICS} (a run) and {run.LEDGER}; give the folder that a command wrote"
        )
    return parts
