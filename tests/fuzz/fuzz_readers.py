"""The readers under test: which files of the corpus are mutated how, their outermost parser, and the reader."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import struct
import tarfile
import tomllib
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imported late by the readers: here once, before children are forked.
import bokeh.plotting  # noqa: F401
import fuzz_mutators as mutators
import geopandas  # noqa: F401
import osmium
import pyarrow.parquet  # noqa: F401
import pystac_client  # noqa: F401
import rasterio.warp  # noqa: F401
import rioxarray  # noqa: F401
import tifffile
from fuzz_corpus import BANDS, GRID
from fuzz_mutators import Mutator
from PIL import Image

from sgdata import files, package_data, verification
from sgdata.builds import build_cost, build_folder, build_recipe, pipeline, plan_summary
from sgdata.datasets import archives, bigearthnet, fmow, images, pairs, segmunich
from sgdata.datasets.types import DatasetCard, ShardRecipe
from sgdata.labels import class_tables, osm_features
from sgdata.packing import pack, select_samples, split_lists
from sgdata.pages import ledger as ledger_page
from sgdata.pages import run as run_page
from sgdata.rasters import geotiff, small_jpeg, small_tiff, tiff_blocks, tiff_header
from sgdata.results import training_log
from sgdata.scenes import aoi, coverage, eopf_items, lock, product_metadata, search
from sgdata.scenes.types import Asset
from sgdata.shards import contracts, sample_hashes, tar_format, write_shards
from sgdata.staging import scene_files, window_staging
from sgdata.types import Window
from sgmodel.checkpoints import cards, weight_files
from sgmodel.data import loader
from sgmodel.inference import predict
from sgmodel.ledger import experiments
from sgmodel.recipes import pretrain


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader under test: files matching `targets` are mutated, one of them per input.

    `read` is called with the folder of the input and the mutated file in it; `parse` with the bytes of that file.
    """

    targets: tuple[str, ...]
    mutate: Mutator
    parse: Callable[[bytes], Any]
    read: Callable[[Path, Path], Any]


# --- scenes --------------------------------------------------------------------------------


def _search(where: Path, folder: Path) -> None:
    grid = aoi.resolve(aoi.Area(aoi=str(folder / "aoi.geojson")))
    query = search.Query(
        collection="sentinel-2-l2a", bounds=aoi.in_degrees(grid), dates="2019-04-01/2022-12-31", bands=BANDS
    )
    scenes, _ = search.search(str(where), query)
    for scene in scenes:
        search.resolve_hrefs(scene, str(where))
    coverage.select_tiles(scenes, grid)


def _lock(folder: Path, path: Path) -> None:
    planned = lock.read(path)
    plan_summary.describe_sparse_months(plan_summary.count_months(planned))
    build_cost.estimate_cost(planned, "catalog.json", workers=2)
    # The bands of the locks of the corpus, beside the mask layer.
    bands = json.dumps([name for name in BANDS if name != "SCL"])
    pipeline.apply_lock(build_recipe.recipe_for("segmunich", changes=[f"bands={bands}"]), planned)
    lock.sha256(planned)
    for item in planned.items:
        search.resolve_hrefs(item.scene, "catalog.json")


def _openstreetmap(folder: Path, path: Path) -> None:
    import shapely

    table = class_tables.read("segmunich-osm", tiers=("core",), groups=())
    features = osm_features.read(path, shapely.box(10.5, 47.5, 12.5, 49.0), rules=table.rules)
    files.canonical_json([features.sha256, features.as_of, features.counts, features.losses])


def _stage(folder: Path, path: Path) -> None:
    asset = Asset(href=str(path))
    piece = scene_files.WindowRequest(
        name="B02", asset=asset, crs=GRID.crs, bounds=GRID.bounds, target=folder / "window"
    )
    window_staging.read_on_grid(window_staging.stage(piece), GRID, kernel="bilinear")
    if path.suffix == ".tif":  # only outputs of this project are hashed, and those are GeoTIFFs
        geotiff.hash_pixels(path)
        _read_blocks(path)


def _read_blocks(path: Path) -> None:
    """Decode a file as those on servers are, except where that is left to GDAL."""
    content = memoryview(path.read_bytes())
    with contextlib.suppress(tiff_header.OtherLayoutError, tiff_blocks.DamagedBlockError):
        table = tiff_header.parse({0: bytes(content)}, len(content), "B02")
        height, width = table.grid.shape
        joined = tiff_blocks.plan_ranges(table, [Window(row=0, col=0, height=height, width=width)])
        tiff_blocks.check_sizes(table, joined, len(content), "B02")
        for span in joined:
            for index in span.blocks:
                start = int(table.offsets[index])
                tiff_blocks.decode(table, index, content[start : start + int(table.sizes[index])])


def _zarr(folder: Path, path: Path) -> None:
    asset = Asset(href=str(folder / "S.zarr" / eopf_items.REFLECTANCE / "r10m" / "b02"))
    piece = scene_files.WindowRequest(
        name="B02", asset=asset, crs=GRID.crs, bounds=GRID.bounds, target=folder / "window"
    )
    window_staging.read_on_grid(window_staging.stage(piece), GRID, kernel="bilinear")
    if path.name in ("zarr.json", ".zmetadata"):
        product_metadata.offset(str(folder / "S.zarr" / ".zmetadata"))


def blosc_header(content: bytes) -> tuple[int, ...]:
    """Return what a reader of Blosc frames looks at first."""
    return struct.unpack_from("<4B3I", content)


def _small_image(folder: Path, path: Path) -> None:
    if path.suffix == ".jpg":
        small_jpeg.read(path.read_bytes())
        return
    small_tiff.place_metadata(small_tiff.read(path.read_bytes()))


# --- archives and shards -------------------------------------------------------------------


def _archive(folder: Path, path: Path) -> None:
    members = archives.list_members(path).members
    if archives.is_stream(path):
        with archives.open_stream(path) as content:
            for member in sorted(members, key=lambda member: member.offset or 0):
                content(member)
        return
    errors: list[Exception] = []
    with archives.open_archive(path) as content:
        for member in members:
            try:
                content(member)
            except archives.SourceError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def _shards(folder: Path, path: Path) -> None:
    contracts.read(folder)
    for split in ("train", "val"):
        opened = loader.Samples(folder, split, ["image"])
        for number in range(min(len(opened), 3)):
            opened.read(number, "image")
    for sample in tar_format.samples(folder):
        sample_hashes.sample_hash(sample)


def _members(folder: Path, path: Path) -> None:
    """Decode the members of a tar as WebDataset does, then as `_shards`."""
    content = path.read_bytes()
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            held = [(info.name, content[info.offset_data : info.offset_data + info.size]) for info in archive]
    except Exception:  # the tar reader is WebDataset's, not ours
        held = []
    for name, data in held[:8]:
        try:
            tar_format.decode_member(name, data)
        except tar_format.SourceError:
            break
    _shards(folder, path)


def _contract(folder: Path, path: Path) -> None:
    contract = contracts.read(folder)
    contracts.find_differences(contract, contract, "resume")
    loader.Samples(folder, "train", ["image"]).read(0, "image")


# --- model ---------------------------------------------------------------------------------


def _checkpoint(folder: Path, path: Path) -> None:
    cards.load(folder)


# --- datasets ------------------------------------------------------------------------------


def _dataset(module: Any, dataset: str, *overrides: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, path: Path) -> None:
        recipe = select_samples.recipe_for(dataset, overrides)
        source = path if path.suffix == ".toml" else folder / "build" if (folder / "build").is_dir() else folder
        source, found, contract = select_samples.list_samples(recipe, source, module.list_samples)
        with module.open_source(source, contract) as read_sample:
            samples = [write_shards.storable(read_sample(ref), contract) for ref in found.refs[:2]]
        files.canonical_json([[sample.key, sample.split, sample.meta] for sample in samples])

    return read


def _pack(folder: Path, path: Path) -> None:
    pack.pack("eurosat", source=folder / "source", out=folder / "shards")


def _split_list(folder: Path, path: Path) -> None:
    split_lists.read_keys(path)


# --- documents -----------------------------------------------------------------------------


def _class_table(folder: Path, path: Path) -> None:
    table = class_tables.read(str(path), tiers=("core",), groups=())
    files.canonical_json(table.space)


def _fact_table(folder: Path, path: Path) -> None:
    original = package_data.folder
    package_data.folder = lambda name: folder / name
    try:
        for name in ("segmunich-osm", "corine"):
            class_tables.read(name, tiers=("core",), groups=("main",))
    finally:
        package_data.folder = original


def _recipe(folder: Path, path: Path) -> None:
    kind = path.name.partition("-")[0]
    if kind == "build":
        recipe = build_recipe.recipe_for(path)
        build_recipe.check(recipe)
        files.toml(recipe)
        search.parse_dates(recipe.dates)
        if recipe.area.place is None:
            aoi.resolve(recipe.area)
        return
    if kind == "ledger":
        experiments.check(files.read(experiments.LedgerRecipe, path))
        return
    kinds: dict[str, Any] = {"shard": ShardRecipe, "train": pretrain.PretrainRecipe, "predict": predict.PredictRecipe}
    files.toml(files.read(kinds[kind], path))


def _dataset_card(folder: Path, path: Path) -> None:
    from sgdata.datasets import cards as dataset_cards

    card = files.read(DatasetCard, path)
    dataset_cards.describe(card) if card.name in dataset_cards.names() else None


def _build_folder(folder: Path, path: Path) -> None:
    build_folder.describe_nodata(folder)
    build_folder.open_build(folder).close()


def _staged(folder: Path, path: Path) -> None:
    raster = folder / "band.tif"
    asset = Asset(href=str(raster))
    piece = scene_files.WindowRequest(
        name="B02", asset=asset, crs=GRID.crs, bounds=GRID.bounds, target=folder / "window"
    )
    staged = window_staging.stage(piece)
    len(staged.pixels)
    window_staging.read_on_grid(staged, GRID, kernel="nearest")


def _run_log(folder: Path, path: Path) -> None:
    # Without the charts, which take a second.
    for step in training_log.read(folder / "metrics.jsonl", unfinished=False):
        for name in step:
            run_page._kind(name)
    run_page._results(folder)


def _ledger(folder: Path, path: Path) -> None:
    ledger_page.read_blocks(path)


def _area(folder: Path, path: Path) -> None:
    aoi.in_degrees(aoi.resolve(aoi.Area(aoi=str(path))))


# --- outermost parsers ---------------------------------------------------------------------


def _inflated(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _parse_json(content: bytes) -> Any:
    return json.loads(_inflated(content))


def _parse_lines(content: bytes) -> Any:
    """Parse a JSON document, or one on each line."""
    try:
        return json.loads(content)
    except ValueError:
        return [json.loads(line) for line in content.decode().splitlines()]


def _parse_toml(content: bytes) -> Any:
    return tomllib.loads(content.decode())


def _parse_xml(content: bytes) -> Any:
    return ET.fromstring(_inflated(content))


def _parse_table(content: bytes) -> Any:
    return list(csv.reader(io.StringIO(content.decode())))


def _parse_text(content: bytes) -> Any:
    return _inflated(content).decode()


def _parse_parquet(content: bytes) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content))


def _parse_raster(content: bytes) -> Any:
    import rasterio

    with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
        return dataset.shape


def _parse_tiff(content: bytes) -> Any:
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        return tiff.pages.first.shape


def _parse_tar(content: bytes) -> Any:
    with tarfile.open(fileobj=io.BytesIO(_inflated(content))) as archive:
        return archive.next().name  # type: ignore[union-attr]


def _parse_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.namelist()


def _parse_pbf(content: bytes) -> Any:
    return osmium.io.Reader(osmium.io.FileBuffer(content, "pbf")).header()


def _parse_safetensors(content: bytes) -> Any:
    return json.loads(content[8 : 8 + struct.unpack_from("<Q", content)[0]])


def _parse_torch(content: bytes) -> Any:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def _lines(rng: Any, content: bytes) -> bytes:
    """Mutate one of the lines of JSON."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at] = mutators.mutate_json(rng, lines[at])
    return b"\n".join(lines)


def _csv_or_toml(rng: Any, content: bytes) -> bytes:
    return (TOML if b" = " in content else CSV)(rng, content)


def _parse_csv_or_toml(content: bytes) -> Any:
    return _parse_toml(content) if b" = " in content else _parse_table(content)


def _parse_small_image(content: bytes) -> Any:
    if content[:2] == b"\xff\xd8":
        return Image.open(io.BytesIO(content)).size
    return _parse_tiff(content)


def _table_or_gzip(inner: Mutator) -> Mutator:
    """Return a mutator for files of which some are gzipped."""
    packed = mutators.mutate_gzip(inner)
    return lambda rng, content: (packed if content[:2] == b"\x1f\x8b" else inner)(rng, content)


def _log_or_json(rng: Any, content: bytes) -> bytes:
    return (_lines if content.count(b"\n{") else mutators.mutate_json)(rng, content)


def _short_json(rng: Any, content: bytes) -> bytes:
    """Mutate JSON, but not into a hundred tables: every chart takes 0.1 s."""
    mutated = mutators.mutate_json(rng, content)
    return mutated if len(mutated) < 5 * len(content) else content[: rng.randrange(len(content))]


JSON, TOML, XML = mutators.mutate_json, mutators.mutate_toml, mutators.mutate_xml
TSV, CSV = mutators.mutate_table("\t"), mutators.mutate_table(",")
PARQUET = mutators.mutate_parquet

READERS: dict[str, Reader] = {
    "stac-items": Reader(
        targets=("items.json",), mutate=JSON, parse=_parse_json, read=lambda folder, path: _search(path, folder)
    ),
    "stac-catalogue": Reader(
        targets=("catalog.json", "sentinel-2-l2a/*.json", "sentinel-2-l2a/*/*.json"),
        mutate=JSON, parse=_parse_json, read=lambda folder, path: _search(folder / "catalog.json", folder),
    ),
    "lock": Reader(targets=("*.lock.json",), mutate=JSON, parse=_parse_json, read=_lock),
    "area": Reader(targets=("aoi.geojson",), mutate=JSON, parse=_parse_json, read=_area),
    "product": Reader(
        targets=("*.xml",), mutate=XML, parse=_parse_xml,
        read=lambda folder, path: product_metadata.offset(str(path)),
    ),
    "osm-xml": Reader(targets=("city.*",), mutate=_table_or_gzip(XML), parse=_parse_xml, read=_openstreetmap),
    "osm-pbf": Reader(targets=("city.*",), mutate=mutators.mutate_pbf, parse=_parse_pbf, read=_openstreetmap),
    "overpass": Reader(targets=("answer.*",), mutate=_table_or_gzip(JSON), parse=_parse_json, read=_openstreetmap),
    "raster": Reader(targets=("band.tif",), mutate=mutators.mutate_tiff, parse=_parse_raster, read=_stage),
    "jp2": Reader(targets=("band.jp2",), mutate=mutators.header(400), parse=_parse_raster, read=_stage),
    "zarr-metadata": Reader(
        targets=("S.zarr/.zmetadata", "S.zarr/zarr.json"), mutate=JSON, parse=_parse_json, read=_zarr,
    ),
    "zarr-chunk": Reader(
        targets=("**/b02/0.0", "**/b02/c/*/*", "**/x/0", "**/x/c/0"), mutate=mutators.header(400),
        parse=blosc_header, read=_zarr,
    ),
    "small-tiff": Reader(
        targets=("patch.*",), mutate=mutators.mutate_tiff, parse=_parse_small_image, read=_small_image
    ),
    "tar": Reader(
        targets=("data.*",), mutate=_table_or_gzip(mutators.mutate_tar), parse=_parse_tar, read=_archive
    ),
    "zip": Reader(targets=("data.zip",), mutate=mutators.mutate_zip, parse=_parse_zip, read=_archive),
    "shard-index": Reader(targets=("index.parquet",), mutate=PARQUET, parse=_parse_parquet, read=_shards),
    "shard-tar": Reader(targets=("*.tar",), mutate=mutators.mutate_tar, parse=_parse_tar, read=_members),
    "contract": Reader(targets=("contract.json",), mutate=JSON, parse=_parse_json, read=_contract),
    "sums": Reader(
        targets=("SHA256SUMS",), mutate=mutators.mutate_sums, parse=_parse_text,
        read=lambda folder, path: verification.verify(folder),
    ),
    "side-file": Reader(
        targets=("*.aux.xml",), mutate=XML, parse=_parse_xml,
        read=lambda folder, path: verification.inspect(folder),
    ),
    "card": Reader(targets=("card.json",), mutate=JSON, parse=_parse_json, read=_checkpoint),
    "weights": Reader(
        targets=("model.safetensors",), mutate=mutators.mutate_safetensors, parse=_parse_safetensors, read=_checkpoint
    ),
    "torch-file": Reader(
        targets=("weights.pth",), mutate=mutators.damage, parse=_parse_torch,
        read=lambda folder, path: weight_files.read(path),
    ),
    "bigearthnet-labels": Reader(
        targets=("**/*_labels_metadata.json",), mutate=JSON, parse=_parse_json,
        read=_dataset(bigearthnet, "bigearthnet", "edition=v1", "splits="),
    ),
    "bigearthnet-table": Reader(
        targets=("metadata.parquet",), mutate=PARQUET, parse=_parse_parquet,
        read=_dataset(bigearthnet, "bigearthnet", "edition=v2"),
    ),
    "fmow-table": Reader(targets=("*.csv",), mutate=CSV, parse=_parse_table, read=_dataset(fmow, "fmow")),
    "patch-table": Reader(
        targets=("build/patches.parquet",), mutate=PARQUET, parse=_parse_parquet,
        read=_dataset(segmunich, "segmunich"),
    ),
    "sample-table": Reader(
        targets=("samples.*",), mutate=_csv_or_toml, parse=_parse_csv_or_toml,
        read=lambda folder, path: _dataset(images, "images")(folder, folder / "samples.toml"),
    ),
    "pair": Reader(targets=("pair.toml",), mutate=TOML, parse=_parse_toml, read=_dataset(pairs, "pairs")),
    "split-list": Reader(targets=("train.*",), mutate=_table_or_gzip(CSV), parse=_parse_text, read=_split_list),
    "pack-journal": Reader(targets=("shards/.journal/*.json",), mutate=JSON, parse=_parse_json, read=_pack),
    "staged-journal": Reader(targets=("window.json",), mutate=JSON, parse=_parse_json, read=_staged),
    "build-folder": Reader(
        targets=("usage.json", "segmunich.lock.json"), mutate=JSON, parse=_parse_json, read=_build_folder
    ),
    "run-log": Reader(
        targets=("metrics.jsonl", "results.json"), mutate=_log_or_json, parse=_parse_lines,
        read=_run_log,
    ),
    "ledger": Reader(targets=("ledger.json",), mutate=_short_json, parse=_parse_json, read=_ledger),
    "class-table": Reader(targets=("classes.tsv",), mutate=TSV, parse=_parse_table, read=_class_table),
    "fact-table": Reader(targets=("catalogs/tables/*.tsv",), mutate=TSV, parse=_parse_table, read=_fact_table),
    "recipe": Reader(targets=("*.toml",), mutate=TOML, parse=_parse_toml, read=_recipe),
    "dataset-card": Reader(targets=("*.toml",), mutate=TOML, parse=_parse_toml, read=_dataset_card),
}  # fmt: skip
