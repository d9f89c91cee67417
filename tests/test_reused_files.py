"""Test that a later run takes only what is as it was written, of sources that have not changed since."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import served
import synthetic
import torch
from safetensors.torch import load_file, save_file
from stac_wrap import wrap
from synthetic_shards import contract, sample, write
from test_clouds import archive as clouds_archive
from test_clouds import settings as cloud_settings
from test_damaged_samples import SOURCES
from test_left_out_items import GRID, archive, build, recipe, wrapped  # noqa: F401 - the fixtures
from test_pairs import pair, raster  # noqa: F401
from test_pretrain import recipe as training_recipe
from test_pretrain import run_paths_for

from sgdata import files, output_names, reuse
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.composite import omnicloudmask
from sgdata.errors import SettingError, SgdataError, SourceError
from sgdata.packing import pack, select_samples
from sgdata.rasters import geotiff
from sgdata.remote import file_identity
from sgdata.scenes.types import Asset
from sgdata.shards import write_shards
from sgdata.staging import scene_files, window_staging
from sgmodel.checkpoints import cards, load_weights, weight_files
from sgmodel.recipes import pretrain


def sums(folder: Path) -> bytes:
    return (folder / output_names.SUMS).read_bytes()


def flip(path: Path, at: float = 0.5) -> None:
    """Change one byte of a file in place; its size and its time of modification stay."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


# --- scratch of builds ---------------------------------------------------------------------


def zeroed(path: Path, other: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swapped(path: Path, other: Path) -> None:
    """Take the content of a file of the same kind, which may well be of the same size."""
    shutil.copy(other, path)


def flipped(path: Path, other: Path) -> None:
    flip(path, 0.3)


@pytest.fixture
def built(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> tuple[Path, Path]:  # noqa: F811
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    build(recipe, archive, out, scratch=scratch)
    return out, scratch


def test_damaged_scratch_is_made_anew(
    built: tuple[Path, Path],
    archive: Path,  # noqa: F811
    recipe: BuildRecipe,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Damage every third file of scratch in one way after the other: windows, masks, tiles, and their notes."""
    out, scratch = built
    expected = sums(out)
    kinds = {path.suffix for path in scratch.rglob("*") if path.is_file()}
    assert {".bin", ".json", ".npy", ".note"} <= kinds
    for number, damage in enumerate((zeroed, emptied, cut, swapped, flipped)):
        every = sorted(path for path in scratch.rglob("*") if path.is_file())
        for path, after in list(zip(every, [*every[2:], *every[:2]], strict=True))[number % 3 :: 3]:
            damage(path, after)
        build(recipe, archive, out, scratch=scratch)
        assert sums(out) == expected, damage.__name__


def test_files_of_equal_size_that_change_places_are_noticed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        with reuse.write_with_note(path, made_from="a") as temporary:
            temporary.write_bytes(path.name.encode())
    assert reuse.is_unchanged(one, "a") and reuse.is_unchanged(two, "a") and not reuse.is_unchanged(one, "b")
    for first, second in ((one, two), (tmp_path / ".one.note", tmp_path / ".two.note")):
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
    assert not reuse.is_unchanged(one, "a") and not reuse.is_unchanged(two, "a")


def corrected(path: Path) -> None:
    """Write other pixels in place, in a file of equal size and time of modification."""
    state = path.stat()
    with rasterio.open(path, "r+") as dataset:
        dataset.write(dataset.read()[:, ::-1])
    size = path.stat().st_size
    if size < state.st_size:
        os.truncate(path, state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_corrected_scene_gives_the_pixels_of_today(
    built: tuple[Path, Path],
    archive: Path,  # noqa: F811
    recipe: BuildRecipe,  # noqa: F811
    tmp_path: Path,
) -> None:
    out, scratch = built
    before = sums(out)
    for path in archive.rglob("*B04*.tif"):
        corrected(path)
    build(recipe, archive, out, scratch=scratch)
    build(recipe, archive, tmp_path / "fresh")
    assert sums(out) == sums(tmp_path / "fresh") != before


def test_a_file_on_a_server_is_known_by_its_etag(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"pixels")
    tag = ['"1"']

    def tagged(handler: served.Files, content: bytes) -> bool:
        handler.give(206, content, {"Content-Range": "bytes 0-0/6", "ETag": tag[0]} if tag[0] else {})
        return True

    with served.serving(tmp_path, tagged) as server:
        url = f"{server.url}/a.tif"
        first = file_identity.identify_address(url)
        assert first and first == file_identity.identify_address(url)
        tag[0] = '"2"'
        assert file_identity.identify_address(url) not in ("", first)
        tag[0] = ""
        assert file_identity.identify_address(url) == ""
        assert file_identity.identify_address(f"{server.url}/b.tif") is None
    assert file_identity.identify_address(url) is None
    assert file_identity.identify_address("s3://bucket/a.tif") == ""


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_pixels_on_a_server_that_tells_nothing_are_compared(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither an ETag nor a date: the middle rows of a staged window are compared with those of the file."""
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_RETRY_DELAY", "0.1")
    window_staging._unreached.cache_clear()
    stac = wrap(tmp_path / "bucket", [wrapped("0501")])
    path = next(stac.rglob("B02.tif"))
    with served.serving(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        start = server.url if scheme == "http" else "s3:/"
        request = scene_files.WindowRequest(
            name="a B02", asset=Asset(href=f"{start}/{path.relative_to(tmp_path)}"), crs=GRID.crs, bounds=GRID.bounds,
            target=tmp_path / "window",
        )  # fmt: skip
        first = window_staging.stage(request)
        written = (tmp_path / "window.bin").stat().st_mtime_ns
        assert window_staging.stage(request) == first
        assert (tmp_path / "window.bin").stat().st_mtime_ns == written
        corrected(path)
        second = window_staging.stage(request)
        fresh = window_staging.stage(replace(request, target=tmp_path / "fresh"))
        assert second.sha256 == fresh.sha256 != first.sha256
        assert not caplog.messages
        with rasterio.open(path, "r+") as dataset:
            dataset.crs = "EPSG:32633"
        with pytest.raises(SourceError, match="a B02"):
            window_staging.stage(replace(request, asset=replace(request.asset, crs=GRID.crs)))
    # The server is gone: what is staged is taken, and that is said once. An open connection might still answer.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for _ in range(2):
        assert window_staging.stage(request) == second
    (message,) = caplog.messages
    assert "not reached" in message


def test_masks_of_scenes_on_a_server_that_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stac = clouds_archive(tmp_path / "archive")
    with served.serving(tmp_path) as server:
        where = f"{server.url}/{stac.relative_to(tmp_path)}/catalog.json"
        planned = pipeline.plan(cloud_settings(), BuildPaths(out=tmp_path / "plan", stac=where))
        for told in (0, 2):
            caplog.clear()
            omnicloudmask.write(planned, tmp_path / "masks", where, lambda image: (image[0] > 5000).astype(np.uint8))
            assert [text for text in caplog.messages if text.startswith(f"{told} masks are reused")] or not told
            assert told or not any("reused" in text for text in caplog.messages)


# --- shards --------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_shards_of_a_changed_source_are_packed_again(name: str, packed: bool, tmp_path: Path) -> None:
    """Change one byte of a file, or of an archive, of equal size and time; the journal must not hide it."""
    dataset, make, edition, _ = SOURCES[name]
    source = make(tmp_path / "source") if name != "segmunich" else synthetic.segmunich_released(tmp_path / "source")
    chosen = replace(select_samples.recipe_for(dataset), edition=edition)
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "source"), "tar", source))
    out = tmp_path / "out"
    pack.pack(dataset, source=source, out=out, recipe=chosen)
    before = sums(out)
    pack.pack(dataset, source=source, out=out, recipe=chosen)
    assert sums(out) == before
    if packed:
        content = source.read_bytes()
        at = content.index(b"II*\0", len(content) // 3) + 3000
        flip(source, at / len(content))
    else:
        tiffs = sorted(path for path in source.rglob("*.tif") if path.stat().st_size > 1000)
        flip(tiffs[len(tiffs) // 2], 0.6)
    pack.pack(dataset, source=source, out=out, recipe=chosen)
    pack.pack(dataset, source=source, out=tmp_path / "fresh", recipe=chosen)
    assert sums(out) == sums(tmp_path / "fresh") != before


@pytest.mark.parametrize("kind", ["map", "document", "image", "vrt"])
def test_pairs_of_a_replaced_map_are_packed_again(kind: str, pair: Path) -> None:  # noqa: F811
    place, out = pair.parent, pair.parent / "shards"
    if kind == "vrt":
        import rasterio.shutil

        rasterio.shutil.copy(place / "change.tif", place / "change.vrt", driver="VRT")
        pair.write_text(pair.read_text().replace("change.tif", "change.vrt"))
    pack.pack("pairs", source=pair, out=out)
    before = sums(out)
    if kind == "document":
        raster(place / "charge.tif", np.ones((1, 48, 48), np.uint8))
        pair.write_text(pair.read_text().replace("change", "charge").replace("charge =", "change ="))
    else:
        corrected(place / ("after/image.tif" if kind == "image" else "change.tif"))
    pack.pack("pairs", source=pair, out=out)
    pack.pack("pairs", source=pair, out=place / "fresh")
    assert sums(out) == sums(place / "fresh") != before


# --- training ------------------------------------------------------------------------------

START = ("training.epochs=2", "training.batch=2", "picture_every=2")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write shards and a run on them that was stopped after three of six steps."""
    place = tmp_path_factory.mktemp("stopped")
    write(place / "shards", train=6)
    pretrain.main(training_recipe(*START), run_paths_for(place / "shards", place / "run", stop_after=3))
    return place


@pytest.mark.parametrize("damage", [zeroed, emptied, cut, swapped, flipped])
@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "training.safetensors", "training.json", "../metrics.jsonl"),
        *("../checkpoint-best/model.safetensors", "../checkpoint-best/figures.json"),
    ],
)
def test_a_run_does_not_continue_from_a_damaged_checkpoint(
    damage: Callable[[Path, Path], None], name: str, stopped: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped / "run", tmp_path / "run"))
    damage(run / "checkpoint-last" / name, run / "checkpoint-last" / "card.json")
    with pytest.raises(SgdataError, match=Path(name).name):
        pretrain.main(training_recipe(*START), run_paths_for(stopped / "shards", run))


def test_a_run_does_not_continue_on_other_data(stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped / "run", tmp_path / "run"))
    other = [dataclasses.replace(sample(n + 9, "train", 32, 32), key=f"toy-{n:05d}") for n in range(6)]
    write_shards.write(other, tmp_path / "shards", contract=contract(32))
    with pytest.raises(SettingError, match="cannot resume on 'toy': .*fingerprint"):
        pretrain.main(training_recipe(*START), run_paths_for(tmp_path / "shards", run))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped / "run", tmp_path / "run"))
    last = run / "checkpoint-last"
    weights = load_file(last / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("attn.q.weight"))
    weights[name][0, 1] = value
    save_file(weights, last / "model.safetensors")
    torch.save({"model": weights}, tmp_path / "weights.pth")
    files.write_sums(last)
    told = re.escape(f"{name} has 1 values that are NaN or infinite")
    for read in (cards.load, load_weights.read_weights, lambda path: weight_files.read(tmp_path / "weights.pth")):
        with pytest.raises(SourceError, match=told):
            read(last)
    with pytest.raises(SourceError, match=told):
        pretrain.main(training_recipe(*START), run_paths_for(stopped / "shards", run))
