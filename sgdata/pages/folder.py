"""`sgdata show`: the page of any output of ours, by what its folder holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgdata import files
from sgdata.audits import findings
from sgdata.builds import build_folder
from sgdata.errors import OutputError, SourceError
from sgdata.pages import build, html, ledger, run, samples, tables
from sgdata.rasters import geotiff
from sgdata.shards import contracts

INDEX = "index.html"
# Begun before anything else is written: a page that was cut off is ours to replace too.
MARK = ".page"


def write(path: Path, out: Path, layers: Sequence[Path] = ()) -> Path:
    """Write the page of `path` into the folder `out`; returns its `index.html`. Raises SourceError, OutputError.

    `out` may hold an earlier page, which is replaced, and nothing else. `layers` are rasters of classes, or folders
    of `sgmodel predict`, to be laid over a build.
    """
    files.existing(path, "the folder of a build, of shards, of a release or of a run")
    # Whatever else lies there is someone's work.
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise OutputError(f"{out}: holds other things than an earlier page; choose another --out")
    with files.only_writer(out):
        (out / MARK).touch()
        for old in out.iterdir():
            if old.name in {MARK, ".lock"}:
                continue
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        found = blocks(path, out, {str(layer): _raster(layer, path) for layer in layers})
        contract = contracts.read(path) if (path / files.CONTRACT).exists() else None
        told = [tables.audited(findings.read(path / findings.NAME))] if (path / findings.NAME).exists() else []
        subject = f", {contract.dataset} {contract.version}" if contract else ""
        made = html.write(
            out / INDEX,
            title=path.resolve().name,
            intro=f"As sgdata show found it{subject}. Opens from disk; nothing is fetched from elsewhere.",
            blocks=[*told, *found],
        )
        files.write_sums(out)
    return made


def write_demo(path: Path, out: Path, figures: Sequence[tuple[str, str, str]]) -> Path:
    """The page of what `sgdata demo` left in `path`, with its `figures` (what, measured, remark); its `index.html`."""
    # A picture of an earlier run must not stay beside the new page.
    shutil.rmtree(out, ignore_errors=True)
    truth = {"True land cover": path / "archive" / "truth" / "land_cover.tif"}
    return html.write(
        out / INDEX,
        title="A simulated city, from scenes to a segmentation model",
        intro="Sentinel-2 scenes and OpenStreetMap of a city that never was, so that every figure has a truth beside "
        "it: composite, labels, patches, shards, SpectralGPT pretraining, UperNet fine-tuning.",
        # In the order of the story, the figures before everything: most readers want no more.
        blocks=[
            html.Table(title="Figures", columns=("what", "measured", "remark"), rows=tuple(figures)),
            *build.blocks(path / "build", out, truth),
            # Bands, classes and contract of the shards are those of the build: once is enough.
            *(block for block in samples.blocks(path / "shards", out) if isinstance(block, html.Gallery)),
            *run.blocks(path / "runs/pretrain", out, "Pretraining: "),
            *run.blocks(path / "runs/segment", out, "Fine-tuning: "),
        ],
    )


def _raster(layer: Path, path: Path) -> Path:
    """The raster of a layer, if it lies on the grid of the build `path`. Raises SourceError."""
    found = files.existing(layer / "classes.tif" if layer.is_dir() else layer, "a map on the grid of a build")
    with (
        geotiff.opened(str(found)) as one,
        geotiff.opened(str(files.existing(path / build_folder.IMAGE, "a build"))) as two,
    ):
        if (one.crs, one.transform, one.shape) != (two.crs, two.transform, two.shape):
            raise SourceError(f"{found}: {one.shape} in {one.crs} is another grid than that of {path}, {two.shape}")
    if found.stem in {Path(name).stem for name in (build_folder.LABELS, build_folder.LABEL_SOURCE)}:
        raise SourceError(f"{found}: the build has a layer of that name; rename the file")
    return found


def blocks(path: Path, out: Path, layers: Mapping[str, Path]) -> list[html.Block]:
    """What the page says of the folder `path`. Raises SourceError where it is no output of ours."""
    if (path / build_folder.IMAGE).exists():
        return build.blocks(path, out, layers)
    if (path / files.INDEX).exists():
        return samples.blocks(path, out)
    found = ledger.blocks(files.read_plain(path / run.LEDGER)) if (path / run.LEDGER).exists() else []
    if (path / run.METRICS).exists():
        return found + run.blocks(path, out)
    # A ledger keeps its runs one folder further down.
    for metrics in sorted([*path.glob(f"*/{run.METRICS}"), *path.glob(f"runs/*/{run.METRICS}")]):
        found += run.blocks(metrics.parent, out, f"{metrics.parent.name}: ")
    if not found:
        raise SourceError(
            f"{path}: holds none of {build_folder.IMAGE} (a build), {files.INDEX} (shards or a release), "
            f"{run.METRICS} (a run) and {run.LEDGER}; expected the folder that a command wrote"
        )
    return found
