"""Make the valid files that are mutated, `<reader>/<number>/...`, with the simulator and the package's own writers.

Equal versions of the libraries make equal files, so that a failing input can be stored as its difference from them.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numcodecs
import numpy as np
import synthetic
import synthetic_build
import synthetic_shards
from PIL import Image

from sgdata import files, package_data, sidecar_files
from sgdata.labels import osm_elements
from sgdata.rasters import cog, geotiff
from sgdata.scenes import aoi, coverage, eopf_items, search
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Asset
from sgdata.types import Array, Grid, Window

GRID = Grid(crs="EPSG:32632", origin=(690000.0, 5340000.0), gsd_m=10.0, shape=(96, 120))
DATES = "2019-04-01/2020-03-31"
BANDS = ("B02", "B03", "B04", "B8A", "SCL")
WEIGHTS = ("model.safetensors", "card.json")
CLASSES = """name\tcode\tcolour\ttags\tgeometry\tpriority\thalf_width_m
Forest\t31\t#4dff00\tlanduse=forest;natural=wood\tpolygon\t5\t
Water\t51\t#00ccf2\tnatural=water\tpolygon\t2\t
River\t52\t#00ccf3\twaterway=river\tline\t3\t4
Street\t\t\thighway=*\tline\t1\t3.5
"""
PRODUCT = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
 <n1:General_Info><Product_Image_Characteristics><BOA_ADD_OFFSET_VALUES_LIST>
  <BOA_ADD_OFFSET band_id="0">-1000</BOA_ADD_OFFSET><BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>
 </BOA_ADD_OFFSET_VALUES_LIST></Product_Image_Characteristics></n1:General_Info>
</n1:Level-2A_User_Product>
"""
STATISTICS = b"""<Description>B02</Description>
<Histograms><HistItem><HistMin>0</HistMin><HistCounts>1|2</HistCounts></HistItem></Histograms>
<Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata>"""


def make(out: Path) -> None:
    """Write the whole corpus into `out`."""
    from sgdata.simulation.archive import simulate

    archive = simulate(out / ".archive", seed=1, size_km=2, dates=3)
    _scenes(out, archive)
    _openstreetmap(out, archive)
    _rasters(out)
    _zarr(out)
    _archives(out)
    _shards(out)
    _checkpoints(out)
    _datasets(out)
    _builds(out)
    _documents(out, archive)


def _scenes(out: Path, archive: Path) -> None:
    """Catalogues of three items, without their pixels, and the lock that a plan makes of them."""
    home = archive / "sentinel-2-l2a"
    names = sorted(path.parent.name for path in home.glob("*/*.json"))[:3]
    documents = [json.loads((home / name / f"{name}.json").read_bytes()) for name in names]
    _put(out, "stac-catalogue", 0, {"catalog.json": (archive / "catalog.json").read_bytes()})
    collection = json.loads((home / "collection.json").read_bytes())
    collection["links"] = [
        link for link in collection["links"] if link["rel"] != "item" or any(name in link["href"] for name in names)
    ]
    held = {f"sentinel-2-l2a/{name}/{name}.json": document for name, document in zip(names, documents, strict=True)}
    held["sentinel-2-l2a/collection.json"] = collection
    _put(out, "stac-catalogue", 0, {name: _json(document) for name, document in held.items()})
    for document in documents:
        document["links"] = []
    _put(out, "stac-items", 0, {"items.json": _json({"type": "FeatureCollection", "features": documents})})
    for reader in ("stac-catalogue", "stac-items", "area"):
        _put(out, reader, 0, {"aoi.geojson": (archive / "aoi.geojson").read_bytes()})
    polygon = json.loads((archive / "aoi.geojson").read_bytes())["features"][0]["geometry"]
    _put(out, "area", 1, {"aoi.geojson": _json(polygon)})
    grid = aoi.resolve(aoi.Area(aoi=str(archive / "aoi.geojson")))
    query = search.Query(
        collection="sentinel-2-l2a", bounds=aoi.in_degrees(grid), dates="2019-04-01/2022-12-31", bands=BANDS
    )
    found, twins = search.search(str(out / "stac-items/0/items.json"), query)
    scenes, elsewhere = coverage.select_tiles(found, grid)
    lock = Lock(
        format=1, state="built", recipe_sha256="0" * 64, collection="sentinel-2-l2a", dates=query.dates,
        osm_date="2020-03-31", grid=grid, dropped=(*twins, *elsewhere), tag_table_sha256="0" * 64,
        items=tuple(
            Item(scene=scene, expected_offset=None, offset=0, dark_share=0.01, eligible=9, windows={"B02": "0" * 64})
            for scene in scenes
        ),
        answers={"city.osm": "0" * 64}, outputs={"image.tif": "0" * 64}, versions={"numpy": "2"},
    )  # fmt: skip
    _put(out, "lock", 0, {"segmunich.lock.json": files.canonical_json(lock)})


def _openstreetmap(out: Path, archive: Path) -> None:
    """Write the same few ways and relations as XML, PBF and Overpass JSON."""
    import osmium

    whole = json.loads((archive / "osm/overpass.json").read_bytes())
    elements = whole["elements"]
    relations = [element for element in elements if element["type"] == "relation"][:2]
    wanted = {member["ref"] for relation in relations for member in relation["members"]}
    every = [element for element in elements if element["type"] == "way"]
    tagged = [way for way in every if way["id"] not in wanted and len(way["nodes"]) < 20]
    ways = [way for way in every if way["id"] in wanted] + tagged[:: max(len(tagged) // 12, 1)]
    used = {node for way in ways for node in way["nodes"]}
    nodes = [element for element in elements if element["type"] == "node" and element["id"] in used]
    answer = {**whole, "elements": [*nodes, *ways, *relations]}
    count = {"nodes": len(nodes), "ways": len(ways), "relations": len(relations), "total": len(answer["elements"])}
    counted = {"type": "count", "id": 0, "tags": {name: str(number) for name, number in count.items()}}
    _put(out, "overpass", 0, {"answer.json": _json(answer)})
    _put(
        out,
        "overpass",
        1,
        {"answer.json.gz": gzip.compress(_json({**answer, "elements": [counted, *answer["elements"]]}), mtime=0)},
    )
    folder = out / "osm-pbf/0"
    folder.mkdir(parents=True)
    osm_elements.write_native(answer["elements"], folder / "city.osm.pbf", "corpus")
    (out / "osm-xml/0").mkdir(parents=True)
    with osmium.SimpleWriter(str(out / "osm-xml/0/city.osm")) as writer:
        for item in osmium.FileProcessor(str(folder / "city.osm.pbf")):
            writer.add(item)
    content = (out / "osm-xml/0/city.osm").read_bytes()
    _put(out, "osm-xml", 1, {"city.osm.gz": gzip.compress(content, mtime=0)})


def _zarr(out: Path) -> None:
    """Write the same band as a Zarr array of both formats: one Blosc frame, smaller chunks, shards with checksums."""
    import warnings

    import zarr

    values = synthetic.reflectance((1, *GRID.shape), 5).astype(np.uint16)[0]
    attributes = {
        "proj:epsg": 32632, "proj:transform": [*GRID.transform, 0, 0, 1], "scale_factor": 0.0001, "add_offset": -0.1,
    }  # fmt: skip
    bits = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
    checked = [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]
    forms: tuple[dict[str, Any], ...] = (
        {"zarr_format": 2, "chunks": GRID.shape, "compressors": numcodecs.Blosc("zstd", 3, 2, blocksize=4096)},
        {"zarr_format": 3, "chunks": (32, 40), "compressors": bits},
        {"zarr_format": 3, "chunks": (32, 40), "shards": (96, 120), "compressors": checked},
    )
    for number, form in enumerate(forms):
        for reader in ("zarr-chunk", "zarr-metadata"):
            store = out / reader / str(number) / "S.zarr"
            root = zarr.create_group(store, zarr_format=form["zarr_format"])
            array = {name: value for name, value in form.items() if name != "zarr_format"}
            place = f"{eopf_items.REFLECTANCE}r10m/"
            root.create_array(
                f"{place}b02", shape=values.shape, dtype="u2", fill_value=0, attributes=attributes, **array
            )[:] = values
            west, north = GRID.origin
            axes = {"x": west + 5 + 10 * np.arange(120), "y": north - 5 - 10 * np.arange(96)}
            for name, line in axes.items():
                root.create_array(f"{place}{name}", shape=line.shape, chunks=(50,), dtype="i8")[:] = line.astype(int)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # consolidated metadata are no part of format 3 yet
                zarr.consolidate_metadata(store)


def _rasters(out: Path) -> None:
    """Rasters as scenes have them, and small TIFFs as datasets have them."""
    import rasterio
    from rasterio.transform import Affine

    pixels = synthetic.reflectance((1, *GRID.shape), 5).astype(np.uint16)
    whole = Window(row=0, col=0, height=GRID.shape[0], width=GRID.shape[1])
    style = cog.RasterStyle(descriptions=("B02",), nodata=0)
    (out / "raster/0").mkdir(parents=True)
    cog.write(out / "raster/0/band.tif", GRID, [(whole, pixels)], style=style)
    profile: dict[str, Any] = {
        "crs": GRID.crs, "transform": Affine(*GRID.transform), "count": 1, "dtype": "uint16", "nodata": 0,
        "height": GRID.shape[0], "width": GRID.shape[1],
    }  # fmt: skip
    forms: tuple[dict[str, Any], ...] = (
        {"driver": "GTiff", "compress": "lzw", "tiled": True, "blockxsize": 64, "blockysize": 64},
        {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(10, 0, 250000, 0, -10, 5342000)},
    )
    for number, form in enumerate(forms, 1):
        (out / f"raster/{number}").mkdir(parents=True)
        with rasterio.open(out / f"raster/{number}/band.tif", "w", **(profile | form)) as dataset:
            dataset.write(pixels)
    (out / "jp2/0").mkdir(parents=True)
    with rasterio.open(
        out / "jp2/0/band.jp2", "w", **(profile | {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"})
    ) as dataset:
        dataset.write(pixels)
    several = synthetic.reflectance((5, 24, 20), 6)
    small: tuple[tuple[Array, dict[str, Any]], ...] = (
        (several.astype(np.uint16), {"interleave": "pixel"}),
        (
            several + 0.5,
            {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel"},
        ),
        (several[:1].astype(np.uint16), {"interleave": "band", "compress": "lzw", "predictor": 2}),
    )
    for number, (values, form) in enumerate(small):
        size = {"count": len(values), "dtype": values.dtype.name, "height": 24, "width": 20, "nodata": None}
        (out / f"small-tiff/{number}").mkdir(parents=True)
        with rasterio.open(
            out / f"small-tiff/{number}/patch.tif", "w", **(profile | {"driver": "GTiff"} | size | form)
        ) as dataset:
            dataset.write(values)
    (out / "small-tiff/9").mkdir()
    Image.fromarray(np.moveaxis(small[0][0][:1].repeat(3, 0), 0, -1).astype(np.uint8)).save(
        out / "small-tiff/9/patch.jpg", quality=90
    )
    table = "image,mask,split,date\n" + "".join(f"{n}.tif,m.tif,train,2021-06-0{n + 1}\n" for n in range(3))
    document = 'name = "ponds"\nbands = ["B02", "B03", "B04"]\nlevel = "L2A"\nclasses = ["land", "water"]\n'
    document += 'nodata = 0\ntable = "samples.csv"\n'
    _put(out, "sample-table", 0, {"samples.csv": table.encode(), "samples.toml": document.encode()})
    for name in ("0", "1", "2", "m"):
        values = np.ones((1, 24, 20), np.uint8) if name == "m" else np.full((3, 24, 20), 700, np.uint16)
        size = {"count": len(values), "dtype": values.dtype.name, "height": 24, "width": 20, "nodata": None}
        path = out / f"sample-table/0/{name}.tif"
        with rasterio.open(path, "w", **(profile | {"driver": "GTiff"} | size)) as dataset:
            dataset.write(values)


def _archives(out: Path) -> None:
    members = {f"data/River/River_{n}.tif": bytes([n]) * (300 + n) for n in range(4)} | {"data/list.txt": b"a\n"}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("data/" + "long" * 40)
        archive.addfile(info, io.BytesIO())
    _put(out, "tar", 0, {"data.tar": plain.getvalue()})
    _put(out, "tar", 1, {"data.tar.gz": gzip.compress(plain.getvalue(), mtime=0)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    _put(out, "zip", 0, {"data.zip": packed.getvalue()})


def _shards(out: Path) -> None:
    for reader in ("shard-index", "contract", "shard-tar"):
        folder = out / reader / "0"
        synthetic_shards.write(folder, train=4, val=2, px=16)
    synthetic_shards.write_scenes(out / "shard-index/1", train=3, val=2, px=8)
    shutil.copytree(out / "contract/0", out / "sums/0")
    named = sidecar_files.categories({0: "water", 3: "Forest & <wood>"})
    added = named.replace(b"</PAMRasterBand>", STATISTICS + b"</PAMRasterBand>")
    listed = files.format_sums({"classes.tif.aux.xml": files.sha256(named)})
    for number, name in enumerate(("classes", "image")):
        _put(out, "side-file", number, {f"{name}.tif.aux.xml": added, "SHA256SUMS": listed})


def _checkpoints(out: Path) -> None:
    import torch

    from sgmodel.checkpoints import cards, checkpoint_folder
    from sgmodel.data import normalise
    from sgmodel.models import encoder, factory, mae, specs

    torch.manual_seed(0)
    tiny = encoder.EncoderConfig(bands=6, image_px=16, width=16, depth=1, heads=2)
    models: tuple[Any, ...] = (
        mae.MaskedAutoencoder(
            encoder.Encoder(tiny), mae.DecoderConfig(width=16, depth=1, heads=2), mae.MaskedObjective()
        ),
        specs.TaskSpec(
            kind="segmenter", recipe=factory.ModelRecipe(backbone="unet", widths=(4, 8)), bands=6, classes=3
        ).build(),
        specs.TaskSpec(kind="classifier", recipe=factory.ModelRecipe(backbone="linear"), bands=6, classes=3).build(),
    )
    contract = synthetic_shards.contract(16)
    how = normalise.Normalisation(scheme="zscore", mean=(0.0,) * 12, std=(1.0,) * 12, eps=1e-6)
    for number, model in enumerate(models):
        card = cards.ModelCard(model=specs.describe(model), contract=contract, normalisation=how)
        for reader in ("card", "weights"):
            checkpoint_folder.save(out / reader / str(number), model, card)
    (out / "torch-file/0").mkdir(parents=True)
    torch.save({"model": models[0].state_dict(), "epoch": 3}, out / "torch-file/0/weights.pth")


def _datasets(out: Path) -> None:
    from sgdata.packing import pack

    synthetic.bigearthnet_v1(out / "bigearthnet-labels/0", count=2)
    synthetic.bigearthnet_v2(out / "bigearthnet-table/0", count=3)
    synthetic.fmow(out / "fmow-table/0", surplus=False)
    synthetic.eurosat(out / ".eurosat", each=1)
    pack.pack("eurosat", source=out / ".eurosat", out=out / "pack-journal/0/shards")
    shutil.copytree(out / ".eurosat", out / "pack-journal/0/source")
    keys = [path.stem for path in sorted((out / ".eurosat").rglob("*.tif"))]
    _put(out, "split-list", 0, {"train.txt": "".join(f"{key}.jpg\n" for key in keys).encode()})
    _put(out, "split-list", 1, {"train.txt.gz": gzip.compress("".join(f"{key},x\n" for key in keys).encode(), mtime=0)})


def _builds(out: Path) -> None:
    from sgdata.staging import scene_files, window_staging

    for reader in ("patch-table", "pair"):
        synthetic.segmunich_build(out / reader / "0/build")
    build = out / "pair/0/build"
    synthetic._geotiff(
        build.parent / "change.tif",
        np.ones((1, *geotiff_shape(build / "image.tif")), np.uint8),
        "EPSG:32632",
        synthetic.from_origin(690000, 5340000, 10, 10),
    )
    _put(out, "pair", 0, {"pair.toml": b'before = "build"\nafter = "build"\nchange = "change.tif"\n'})
    synthetic_build.write(out / "build-folder/0", (160, 160), patch=64)
    raster = out / "staged-journal/0/band.tif"
    raster.parent.mkdir(parents=True)
    shutil.copy(out / "raster/0/band.tif", raster)
    piece = scene_files.WindowRequest(
        name="B02", asset=Asset(href=str(raster)), crs=GRID.crs, bounds=GRID.bounds, target=raster.parent / "window"
    )
    window_staging.stage(piece)
    steps = "".join(
        json.dumps({"step": n, "loss": 1 / (n + 1), "loss_B02": 0.5, "lr": 1e-3, "miou": 0.1}) + "\n" for n in range(6)
    )
    results = {"miou": 0.5, "iou": {"dark": 0.5, "left": 0.1}, "confusion": [[1, 2], [3, 4]]}
    contract = files.pretty_json(synthetic_shards.contract(16))
    _put(
        out, "run-log", 0, {"metrics.jsonl": steps.encode(), "results.json": _json(results), "contract.json": contract}
    )
    figure = {
        "published": 0.5, "values": [0.4, 0.5], "mean": 0.45, "interval": [0.3, 0.6], "interval_over": "seeds",
        "gap": 0.1,
    }  # fmt: skip
    weights = {"name": "a.pth", "where": "nowhere", "licence": "none", "checksum": ""}
    row = {
        "name": "a", "start": "random", "state": "run", "weights": weights, "figures": {"miou": figure},
        "reasons": ["one seed"], "cost": {"parameters": 9, "steps": 2, "steps_before": 1, "flops": 1e9},
        "runs": [{"folder": "runs/a", "program": "segment", "seed": 1, "recipe_sha256": "0" * 64}],
    }  # fmt: skip
    table = {
        "name": "T", "program": "segment", "note": "", "metrics": ["miou"], "sentences": ["a beats b"], "audited": True,
        "data": {"dataset": "toy", "version": "1", "fingerprint": "0" * 64}, "rows": [row, row | {"name": "b"}],
        "audit": [{"check": "readable", "message": "all"}],
    }  # fmt: skip
    _put(out, "ledger", 0, {"ledger.json": _json({"title": "t", "tables": [table]})})


def geotiff_shape(path: Path) -> tuple[int, int]:
    """Return (H, W) of a raster."""
    with geotiff.open_raster(str(path)) as dataset:
        return dataset.shape[0], dataset.shape[1]


def _documents(out: Path, archive: Path) -> None:
    _put(out, "class-table", 0, {"classes.tsv": CLASSES.encode()})
    _put(out, "product", 0, {"MTD_MSIL2A.xml": PRODUCT.encode()})
    recipes, facts = package_data.folder("recipes"), package_data.folder("catalogs")
    chosen = (
        "build/segmunich.toml",
        "shard/bigearthnet.toml",
        "train/pretrain-demo-tiny.toml",
        "predict/default.toml",
        "ledger/city.toml",
    )
    for number, name in enumerate(chosen):
        _put(out, "recipe", number, {name.replace("/", "-"): (recipes / name).read_bytes()})
    for number, name in enumerate(("eurosat", "bigearthnet")):
        _put(out, "dataset-card", number, {f"{name}.toml": (facts / f"{name}.toml").read_bytes()})
    names = ("osm_lulc_tags", "segmunich_labels", "label_space_segmunich-osm", "label_space_corine")
    tables = {f"catalogs/tables/{name}.tsv": (facts / f"tables/{name}.tsv").read_bytes() for name in names}
    _put(out, "fact-table", 0, tables)


def _put(out: Path, reader: str, number: int, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = out / reader / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _json(document: Any) -> bytes:
    # As the mutator writes it, so that a mutation is a small difference.
    return json.dumps(document, indent=1, ensure_ascii=False).encode()
