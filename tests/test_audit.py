"""Test the audit against planted defects: each one is found, and only that one, in an otherwise clean dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sgdata import sentinel2
from sgdata.audits import checks, collect_evidence, duplicates, evidence
from sgdata.audits import findings as audit_findings
from sgdata.cli import app
from sgdata.errors import SettingError, SourceError
from sgdata.pages import audit_page
from sgdata.rasters import dihedral
from sgdata.shards import shard_index, write_shards
from sgdata.splits import shared_ground
from sgdata.splits.shared_ground import Footprint
from sgdata.types import Contract, LabelSpace, Sample
from tests import synthetic

# Mean DN of green ground with some water vapour lines: what L2A of Europe looks like.
MEANS = dict(
    zip(
        sentinel2.L2A_BANDS,
        (350, 420, 640, 520, 1000, 2200, 2700, 2850, 2950, 3000, 1900, 1050),
        strict=True,
    )
)
SIDE, EACH = 16, {"train": 80, "val": 24, "test": 16}
SPACE = LabelSpace(name="cover", task="segmentation", ids=(0, 1, 2), names=("water", "wood", "field"), ignore=255)
Plant = Callable[[list[Sample]], list[Sample]]


def contract(**changes: object) -> Contract:
    known = Contract(
        format=1, dataset="planted", version="1", bands=sentinel2.bands(sentinel2.L2A_BANDS), level="L2A", scale=1e-4,
        offset=0.0, nodata=0, resampling="bilinear", resampling_version=1, shape=None, label_space=SPACE,
        statistics={}, splits={}, fingerprint="",
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def clean() -> list[Sample]:
    """Return 120 samples of smooth ground, in lines 2 km apart by split, on two dates, with three classes each."""
    from pyproj import Transformer

    there = Transformer.from_crs(32632, 4326, always_xy=True)
    samples = []
    for part, (split, count) in enumerate(EACH.items()):
        for n in range(count):
            rng = np.random.default_rng([part, n])
            shape = np.kron(rng.uniform(0.4, 1.6, (8, 8)), np.ones((SIDE // 8, SIDE // 8)))
            soil, within = rng.uniform(-0.3, 0.3, shape.shape), rng.normal(0, 0.05, shape.shape)
            # Soil shows from red on; between 10 m pixels there is more than 20 m ones can hold.
            bare = np.array([0, 0, 0.3, 1, 1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.8, 1])[:, None, None] * soil
            fine = np.array([band.gsd_m == 10 for band in sentinel2.bands(sentinel2.L2A_BANDS)])[:, None, None] * within
            means = np.array(list(MEANS.values()))[:, None, None]
            planes = means * (0.6 + 0.4 * shape + bare + fine) + rng.normal(0, 8, (12, SIDE, SIDE))
            west, south = 690_000 + 2 * SIDE * 10 * n, 5_340_000 + 2000 * part
            corners = there.transform([west, west + SIDE * 10] * 2, [south] * 2 + [south + SIDE * 10] * 2)
            meta = {
                "bounds": [round(float(f(axis)), 7) for f in (min, max) for axis in corners],
                "crs": "EPSG:32632",
                "date": ("2019-05-01", "2020-06-01")[n % 2],
            }
            mask = rng.choice([0, 1, 2, 255], (SIDE, SIDE), p=[0.1, 0.5, 0.3, 0.1]).astype(np.uint8)
            image = planes.clip(1).astype(np.uint16)
            samples.append(Sample(key=f"{split}-{n:03}", split=split, arrays={"image": image, "mask": mask}, meta=meta))
    return samples


def altered(sample: Sample, image: Callable[[np.ndarray], np.ndarray] | None = None, **changes: object) -> Sample:
    arrays = dict(sample.arrays)
    if image:
        arrays["image"] = np.ascontiguousarray(image(arrays["image"].copy()))
    return replace(sample, arrays=arrays, **changes)  # type: ignore[arg-type]


def everywhere(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    return lambda samples: [altered(sample, change) for sample in samples]


def one_more(change: Callable[[Sample], Sample]) -> Plant:
    """Add a changed copy of a training sample to the validation samples."""
    return lambda samples: [*samples, replace(change(samples[5]), key="val-planted", split="val")]


def moved(metres: float) -> Plant:
    """Return ten validation samples `metres` east of training samples, with other pixels and days."""

    def plant(samples: list[Sample]) -> list[Sample]:
        train = [s for s in samples if s.split == "train"]
        out = []
        for sample in samples:
            n = int(sample.key[-3:])
            if sample.split == "val" and n < 10:
                west, south, east, north = train[n].meta["bounds"]
                shift = metres / 74_000
                meta = {
                    **sample.meta,
                    "bounds": [west + shift, south, east + shift, north],
                    "date": train[n].meta["date"],
                }
                sample = replace(sample, meta=meta)
            out.append(sample)
        return out

    return plant


def on_other_days(samples: list[Sample]) -> list[Sample]:
    return [replace(s, meta={**s.meta, "date": "2017-01-01"}) if s.split == "val" else s for s in moved(0)(samples)]


def without_class_in_val(samples: list[Sample]) -> list[Sample]:
    for sample in samples:
        if sample.split == "val":
            sample.arrays["mask"][sample.arrays["mask"] == 2] = 1
    return samples


def unmapped(samples: list[Sample]) -> list[Sample]:
    for sample in samples:
        sample.arrays["mask"][:, : SIDE * 3 // 4] = 255
    return samples


def band(name: str) -> int:
    return list(MEANS).index(name)


def set_to(name: str, value: int) -> Plant:
    def change(image: np.ndarray) -> np.ndarray:
        image[band(name)] = value
        return image

    return everywhere(change)


def raised_in_half(samples: list[Sample]) -> list[Sample]:
    return [altered(s, lambda image: image + 1000) if n % 2 else s for n, s in enumerate(samples)]


def swap(one: str, other: str) -> Plant:
    def change(image: np.ndarray) -> np.ndarray:
        image[[band(one), band(other)]] = image[[band(other), band(one)]]
        return image

    return everywhere(change)


def glint(image: np.ndarray) -> np.ndarray:
    image[band("B08"), 0, :5] = 28_000
    return image


def noisy(sample: Sample) -> Sample:
    return altered(sample, lambda i: (i * 1.02 + np.random.default_rng(1).normal(40, 3, i.shape)).astype(np.uint16))


def grainy(image: np.ndarray) -> np.ndarray:
    return (image + np.random.default_rng(1).normal(0, 8, image.shape)).astype(np.uint16)


def cropped(sample: Sample, step: int) -> Sample:
    cut = {name: np.ascontiguousarray(held[..., 2:14, 1:13][..., ::step]) for name, held in sample.arrays.items()}
    return replace(sample, arrays=cut, meta={})


NEAR = {"distance between splits", "side by side"}
PLANTED: dict[str, tuple[Plant, set[str]]] = {
    "nothing": (lambda samples: samples, set()),
    "overlapping windows": (moved(80), {"shared pixels", "overlapping footprints", *NEAR}),
    "the same place on other days": (on_other_days, {"same place, other date", *NEAR}),
    "neighbours": (moved(160), NEAR),
    "a duplicate": (
        one_more(lambda s: replace(s, meta={})),
        {"exact duplicates"},
    ),
    "a turned copy": (
        one_more(lambda s: altered(s, lambda i: np.rot90(i, 1, axes=(1, 2)), meta={})),
        {"turned copies"},
    ),
    "a mirrored copy": (
        one_more(lambda s: altered(s, lambda i: i[:, :, ::-1], meta={})),
        {"turned copies"},
    ),
    "a copy of another processing": (one_more(lambda s: replace(noisy(s), meta={})), {"near duplicates"}),
    "a turned copy of another processing": (
        one_more(lambda s: altered(noisy(s), lambda i: np.rot90(i[:, ::-1], 3, axes=(1, 2)), meta={})),
        {"near duplicates"},
    ),
    "a noisy copy": (one_more(lambda s: altered(s, grainy, meta={})), {"near duplicates"}),
    "a crop": (one_more(lambda s: cropped(s, 1)), {"cropped copies"}),
    "a turned crop": (one_more(lambda s: cropped(s, -1)), {"cropped copies"}),
    "a class missing from val": (without_class_in_val, {"class coverage"}),
    "unmapped ground": (unmapped, {"unmapped share"}),
    "a dead band": (set_to("B11", 0), {"dead bands"}),
    "a constant band": (set_to("B01", 500), {"dead bands"}),
    "a repeated band": (everywhere(lambda i: i[[*range(10), 11, 11]]), {"dead bands"}),
    "B8A and B09 changed places with B11": (swap("B8A", "B11"), {"band order"}),
    "B03 and B04 changed places": (swap("B03", "B04"), {"band order"}),
    "B11 and B12 changed places": (swap("B11", "B12"), {"band order"}),
    "B02 and B04 changed places": (swap("B02", "B04"), {"band order"}),
    "B8A and B08 changed places": (swap("B8A", "B08"), {"band order"}),
    "B04 and B08 changed places": (swap("B04", "B08"), {"band order"}),
    "water vapour in an L2A set": (everywhere(lambda i: np.stack([
        b // 3 if n == band("B09") else b for n, b in enumerate(i)])), {"product level"}),
    "the offset left in": (everywhere(lambda i: i + 1000), {"offset"}),
    "the offset left in every second one": (raised_in_half, {"offset"}),
    "the offset taken twice": (
        everywhere(lambda i: np.maximum(i.astype(int) - 330, 1).astype(np.uint16)),
        {"offset"},
    ),
    "saturated near infrared": (
everywhere(glint),
        {"saturation"},
    ),
}  # fmt: skip


def findings(report: audit_findings.AuditReport) -> set[str]:
    return {check.name for check in report.checks if check.state == "finding"}


def audited(path: Path, **options: object) -> audit_findings.AuditReport:
    workers = options.pop("workers", 1)
    return checks.run_checks(
        collect_evidence.collect_evidence(collect_evidence.detect_subject(path, **options), workers=workers)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_defect_is_found_and_nothing_else(planted: str, tmp_path: Path) -> None:
    plant, expected = PLANTED[planted]
    write_shards.write(plant(clean()), tmp_path, contract=contract())
    report = audited(tmp_path)
    assert findings(report) == expected, [check for check in report.checks if check.state == "finding"]
    assert report.findings == len(expected)
    # On a clean set of this size every question has an answer.
    if not expected:
        assert {c.name for c in report.checks if c.state != "pass"} == {"label date"}


def test_the_planted_samples_are_named(tmp_path: Path) -> None:
    plant, _ = PLANTED["a turned copy"]
    write_shards.write(plant(clean()), tmp_path, contract=contract())
    found = {check.name: check for check in audited(tmp_path).checks}["turned copies"]
    assert found.where == ("train-005", "val-planted")
    assert found.figures == {"samples": 2, "groups": 1, "groups_across_splits": 1}


def test_labels_years_after_the_images(tmp_path: Path) -> None:
    write_shards.write(clean(), tmp_path, contract=contract())
    what = collect_evidence.detect_subject(tmp_path)
    days = evidence.Days(first="2017-04-01", last="2020-04-01", labels="2023-01-01")
    assert findings(checks.run_checks(collect_evidence.collect_evidence(replace(what, days=days)))) == {"label date"}
    near = replace(days, labels="2020-06-01")
    assert not findings(checks.run_checks(collect_evidence.collect_evidence(replace(what, days=near))))


def test_damaged_samples_are_listed_not_fatal(tmp_path: Path) -> None:
    write_shards.write(clean(), tmp_path, contract=contract())
    row = shard_index.read_index(tmp_path).to_pylist()[3]
    tar = tmp_path / row["shard"]
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] + 2] ^= 255
    tar.write_bytes(content)
    report = audited(tmp_path)
    assert findings(report) == {"readable"}
    assert report.checks[0].where == (row["key"],)


def test_workers_and_repetition_do_not_change_bytes(tmp_path: Path) -> None:
    write_shards.write(PLANTED["overlapping windows"][0](clean()), tmp_path / "in", contract=contract())
    for name, workers in (("one", 1), ("two", 2)):
        audit_page.write(tmp_path / name, audited(tmp_path / "in", workers=workers))
    assert (tmp_path / "one/audit.json").read_bytes() == (tmp_path / "two/audit.json").read_bytes()
    assert (tmp_path / "one/index.html").read_bytes() == (tmp_path / "two/index.html").read_bytes()
    assert audit_findings.read(tmp_path / "one/audit.json").findings == 4


# --- builds and datasets as distributed ----------------------------------------------------


def test_windows_of_a_build_are_compared_to_the_pixel(tmp_path: Path) -> None:
    import geopandas

    build = synthetic.segmunich_build(tmp_path / "build", patches=8)
    report = audited(build)
    assert report.kind == "build"
    # Its rows of patches touch.
    assert {"distance between splits"} <= findings(report)
    assert "shared pixels" not in findings(report)
    rows = geopandas.read_parquet(build / "patches.parquet")
    rows.loc[rows["split"] == "val", "row"] -= 1
    rows.to_parquet(build / "patches.parquet")
    assert "shared pixels" in findings(audited(build))


def test_b8a_at_the_place_of_its_name_in_eurosat(tmp_path: Path) -> None:
    """In the official files B8A is last; a copy in wavelength order would be read wrong and must be detected."""
    order = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    means = MEANS | {"B10": 12, "B09": 900, "B02": 1100}
    for name, stored in (("official", synthetic.EUROSAT_FILE_ORDER), ("sorted", order)):
        for n in range(100):
            label = ("River", "Forest")[n % 2]
            rng = np.random.default_rng(n)
            ground = np.kron(rng.uniform(0.5, 1.5, (8, 8)), np.ones((8, 8)))
            image = np.stack([means[b] * ground + rng.normal(0, 3, (64, 64)) for b in stored]).clip(1).astype(np.uint16)
            path = tmp_path / name / label / f"{label}_{n}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.moveaxis(image, 0, -1), photometric="minisblack")
    assert findings(audited(tmp_path / "official")) == set()
    assert {"band order"} <= findings(audited(tmp_path / "sorted"))


def segmunich(folder: Path, order: Sequence[int]) -> Path:
    """Write the released tree with true resolutions: 10 m bands first, 20 m bands repeated 2 x 2, then in `order`."""
    for n in range(4):
        rng = np.random.default_rng(n)
        fine, coarse = rng.integers(200, 4000, (4, 128, 128)), rng.integers(200, 4000, (6, 64, 64))
        cube = np.concatenate([fine, coarse.repeat(2, axis=1).repeat(2, axis=2)])[list(order)].astype(np.float32)
        for kind, pixels in (("img", np.moveaxis(cube, 0, -1)), ("label", np.full((128, 128), 31, np.uint8))):
            path = folder / ("train" if n % 2 else "val") / kind / f"{n}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, pixels, photometric="minisblack")
    return folder


def test_segmunich_in_another_band_order(tmp_path: Path) -> None:
    assert findings(audited(segmunich(tmp_path / "as released", range(10)))) == set()
    by_wavelength = (0, 1, 2, 4, 5, 6, 3, 7, 8, 9)
    assert findings(audited(segmunich(tmp_path / "sorted", by_wavelength))) == {"band order"}


def test_stored_copies_of_the_released_segmunich(tmp_path: Path) -> None:
    folder = segmunich(tmp_path, range(10))
    image = tifffile.imread(folder / "train/img/1.tif")
    for kind in ("img", "label"):
        shutil.copy(folder / f"train/{kind}/1.tif", folder / f"val/{kind}/9.tif")
    tifffile.imwrite(folder / "val/img/9.tif", np.rot90(image).copy(), photometric="minisblack")
    report = audited(folder)
    assert findings(report) == {"turned copies"}
    assert {c.name: c.where for c in report.checks}["turned copies"] == ("train-1", "val-9")


@pytest.mark.parametrize(
    "make", [synthetic.bigearthnet_v1, synthetic.bigearthnet_v2, synthetic.fmow, synthetic.oscd, synthetic.eurosat]
)
def test_raw_folders_of_every_dataset_are_recognised(make: Callable[[Path], Path], tmp_path: Path) -> None:
    report = audited(make(tmp_path))
    assert (report.kind, report.subject.split()[0]) == ("raw", make.__name__.partition("_")[0])


def test_no_finding_on_real_samples(real: Path, tmp_path: Path) -> None:
    tree = tmp_path / "train"
    for kind in ("img", "label"):
        (tree / kind).mkdir(parents=True)
    shutil.copy(real / "segmunich/SegMunich_train_img_10.tif", tree / "img/1.tif")
    tifffile.imwrite(tree / "label/1.tif", np.full((128, 128), 31, np.uint8))
    folders = ["eurosat", "bigearthnet/v1", "bigearthnet/v2", "fmow_sentinel"]
    for folder in [*(real / name for name in folders), tmp_path]:
        report = audited(folder)
        assert report.samples >= 1
        assert findings(report) == set(), folder


def test_an_input_that_cannot_be_audited_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        audited(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="neither shards nor a build nor a known dataset"):
        audited(tmp_path)
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(b"\x1f\x8b00")
    with pytest.raises(SettingError, match="shard it and audit the shards"):
        audited(packed)


def test_the_command_exits_3_with_findings(tmp_path: Path) -> None:
    write_shards.write(PLANTED["a dead band"][0](clean()), tmp_path / "in", contract=contract())
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 3
    assert audit_findings.read(tmp_path / "out/audit.json").findings == 1
    assert '"dead bands"' in done.stdout
    assert "B11 has one value" in (tmp_path / "out/index.html").read_text()


# --- the two pure pieces -------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from([(3, 16, 16), (3, 13, 29), (2, 40, 31)]), st.integers(0, 7))
def test_a_look_turns_with_the_picture(seed: int, shape: tuple[int, ...], way: int) -> None:
    image = np.random.default_rng(seed).integers(1, 4000, shape).astype(np.uint16)
    turned = np.rot90(image[:, :, ::-1] if way > 3 else image, way % 4, axes=(1, 2))
    one, other = duplicates.make_thumbnail(image), duplicates.make_thumbnail(turned)
    assert one is not None
    assert other is not None
    assert duplicates.find_alike(np.stack([one, other])) == [(0, 1)]
    assert dihedral.d4_hash(image) == dihedral.d4_hash(turned)


@given(st.integers(0, 2**32))
def test_similar_pairs_equal_those_of_a_full_comparison(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.integers(1, 4000, (3, 16, 16)) for _ in range(6)]
    images += [np.rot90(images[n], n, axes=(1, 2)) + rng.normal(0, 60 * n, (3, 16, 16)) for n in range(6)]
    looks = np.stack([seen for seen in map(duplicates.make_thumbnail, images) if seen is not None])
    slow = [
        (i, j)
        for i in range(len(looks))
        for j in range(i + 1, len(looks))
        if min(
            np.sqrt(((np.rot90(m, k, axes=(1, 2)) - looks[j].astype(float)) ** 2).mean(axis=(1, 2))).max()
            for m in (looks[i].astype(float), looks[i].astype(float)[:, :, ::-1])
            for k in range(4)
        )
        < duplicates.NEAR * 127 / 4
    ]
    assert duplicates.find_alike(looks) == slow


def test_a_flat_picture_looks_like_nothing() -> None:
    assert duplicates.make_thumbnail(np.full((3, 16, 16), 7)) is None
    assert duplicates.make_thumbnail(np.ones((3, 5, 16))) is None


def square(crs: str, x: float, y: float, side: float) -> Footprint:
    from pyproj import Transformer

    bounds = Transformer.from_crs(crs, 4326, always_xy=True).transform_bounds(x, y, x + side, y + side)
    return Footprint(crs=crs, box=tuple(round(v, 7) for v in bounds), size_m=(side, side))  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [-300.0, 0.0, 900.0, 1170.0, 1200.0, 1300.0, 5000.0])
@pytest.mark.parametrize("easting", [300_000.0, 500_000.0, 790_000.0])
def test_metres_between_squares_of_one_zone(shift: float, easting: float) -> None:
    """Boxes of neighbours in degrees overlap at the edge of a zone, where north is 2 degrees off; squares do not."""
    one, other = square("EPSG:32632", easting, 5.3e6, 1200), square("EPSG:32632", easting + shift, 5.3e6, 1200)
    met = shared_ground.compare(shared_ground.to_columns([one]), shared_ground.to_columns([other]))
    assert (len(met.shared) == 1) == (abs(shift) < 1185)
    assert met.nearest_m[0] == pytest.approx(max(abs(shift) - 1200, 0), abs=12)


def test_ground_is_shared_across_zones_and_in_degrees() -> None:
    from pyproj import Transformer

    x, y = 690_000.0, 5.34e6
    there = Transformer.from_crs(32632, 32633, always_xy=True).transform(x, y)
    footprints = [
        square("EPSG:32632", x, y, 1200),
        square("EPSG:32633", *there, 1200),
        square("EPSG:32633", there[0] + 5000, there[1], 1200),
    ]
    lon, lat = footprints[0].box[:2]
    degrees = Footprint(crs="EPSG:4326", box=(lon + 0.01, lat, lon + 0.02, lat + 0.01), size_m=(740, 1106))
    met = shared_ground.compare(
        shared_ground.to_columns(footprints[:1]), shared_ground.to_columns([*footprints[1:], degrees])
    )
    assert met.shared.tolist() == [[0, 0], [0, 2]]
    assert met.nearest_m[1] == pytest.approx(3800, rel=0.1)


def test_a_footprint_equals_the_bounds_of_rasterio(tmp_path: Path) -> None:
    """The size of a sample in degrees, against the ground that rasterio's transform covers."""
    footprint = collect_evidence._footprint({"crs": "EPSG:4326", "bounds": [11.0, 48.0, 11.01, 48.02]}, (200, 67), 10)
    assert footprint is not None
    assert footprint.size_m[1] == 2000
    assert footprint.size_m[0] == pytest.approx(
        0.01 * 111_320 * np.cos(np.radians(48)) * 2000 / (0.02 * 111_200), rel=0.01
    )
    assert rasterio.__version__


def test_gradients_are_no_copies_of_each_other() -> None:
    """Use hazy water: the same slope in every band, and independent noise."""
    rng = np.random.default_rng(0)
    slope = np.add.outer(np.arange(64), np.arange(64)) * 3.0
    seen = [duplicates.make_thumbnail(1000 + slope + rng.normal(0, 15, (3, 64, 64))) for _ in range(20)]
    assert duplicates.find_alike(np.array(seen)) == []


@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_window_hashes_are_those_of_the_ground(seed: int, turn: int) -> None:
    image = np.random.default_rng(seed).integers(1, 4000, (3, 40, 40)).astype(np.uint16)
    moved = np.rot90(image[:, 4:, :-3], turn % 4, axes=(1, 2))[:, :: 1 if turn < 4 else -1]
    one, other = (set(np.frombuffer(duplicates.hash_windows(each), np.uint64).tolist()) for each in (image, moved))
    assert len(one) == duplicates.MARKS
    assert len(one & other) >= checks.SHARED_WINDOWS
    assert duplicates.hash_windows(np.full((3, 40, 40), 7, np.uint16)) == b""
    assert duplicates.hash_windows(image[:, :4]) == b""
