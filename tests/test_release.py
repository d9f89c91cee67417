"""Test releases: complete, machine-readable, equal bytes under any conditions, and refused where not allowed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from sgdata import files, output_names, package_data, verification
from sgdata.audits import checks, collect_evidence
from sgdata.audits.findings import AuditReport
from sgdata.cli import app
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.packing import pack
from sgdata.releases import assemble
from sgdata.releases.release_content import ReleaseRequest
from sgdata.scenes import lock, search
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Asset, Dropped, Scene
from sgdata.shards import contracts, shard_index
from sgdata.types import Grid
from tests import synthetic

ROOT = Path(__file__).resolve().parents[1]


def scene(day: str) -> Item:
    of = Scene(
        id=f"S2A_32UPU_{day.replace('-', '')}_0_L2A", collection="sentinel-2-l2a", provider="earth-search",
        time=f"{day}T10:20:31Z", platform="sentinel-2a", tile="32UPU", orbit=65, datatake="", baseline="02.14",
        generated="", crs="EPSG:32632", bbox=(11.0, 48.0, 12.0, 49.0), cloud_cover=3.0,
        assets={"B02": Asset(href=f"https://example.org/{day}/B02.tif")},
    )  # fmt: skip
    return Item(scene=of, expected_offset=0, offset=0)


def finished_build(folder: Path) -> Path:
    """Write a finished build folder of synthetic pixels."""
    synthetic.segmunich_build(folder, patches=8)
    planned = Lock(
        format=lock.FORMAT, state="built", recipe_sha256="1" * 64, collection="sentinel-2-l2a",
        dates="2018-01-01/2019-12-31", osm_date="2020-01-01",
        grid=Grid(crs="EPSG:32632", origin=(690000.0, 5340000.0), gsd_m=10.0, shape=(32, 64)),
        items=(scene("2018-05-06"), scene("2019-06-30")), dropped=(Dropped(id="x", reason="twin"),),
        tag_table_sha256="2" * 64, versions={"numpy": "2"},
    )  # fmt: skip
    lock.write(folder / lock.NAME, planned)
    files.write(folder / "recipe.toml", b'name = "segmunich"\n')
    files.write(folder / "usage.json", files.pretty_json({"nodata_share": 0.0, "never_clear_share": 0.0056}))
    files.write_sums(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `build/` and `shards/`."""
    home = tmp_path_factory.mktemp("made")
    pack.pack("segmunich", source=finished_build(home / "build"), out=home / "shards")
    return home


def order(made: Path, out: Path, **changes: Any) -> ReleaseRequest:
    known = ReleaseRequest(
        name="tiny-town", version="1.0", source=made / "shards", build=made / "build", out=out,
        register=out / "catalogs", published="2026-11-21",
    )  # fmt: skip
    return replace(known, **changes)


def release(wanted: ReleaseRequest) -> tuple[Path, AuditReport]:
    return assemble.release(
        wanted,
        lambda path: checks.run_checks(
            collect_evidence.collect_evidence(collect_evidence.detect_subject(path, lock_of=wanted.build))
        ),
    )


@pytest.fixture(scope="module")
def released(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(order(made, tmp_path_factory.mktemp("released")))[0]


# --- what is in it -------------------------------------------------------------------------


def test_a_release_has_every_file(released: Path, made: Path) -> None:
    assert released.name == "tiny-town-1.0"
    held = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert held == {
        "CARD.md", "README.md", "SHA256SUMS", "LICENSES/files.tsv", "LICENSES/labels.txt", "LICENSES/pixels.txt",
        "audit.json", "build-recipe.toml", "contract.json", "croissant.json", "fingerprints.json", "index.parquet",
        "previews/train.png", "previews/val.png", "quarantine.jsonl", "recipe.toml", "segmunich.lock.json",
        "segmunich-train-000000.tar", "segmunich-val-000000.tar", "stac/collection.json", "stac/train.json",
        "stac/val.json",
    }  # fmt: skip
    assert verification.verify(released) == []
    for path in held & {path.name for path in (made / "shards").iterdir()} - {"SHA256SUMS"}:
        assert (released / path).read_bytes() == (made / "shards" / path).read_bytes()


def test_every_file_has_a_licence_and_a_notice(released: Path) -> None:
    head, *rows = [line.split("\t") for line in (released / "LICENSES/files.tsv").read_text().splitlines()]
    assert head == ["path", "member", "licence", "notice"]
    listed = {row[0] for row in rows}
    held = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    # The lists themselves came after it.
    assert held - listed == {"SHA256SUMS", "LICENSES/files.tsv"}
    tar = {row[1]: row[2:] for row in rows if row[0].endswith("train-000000.tar")}
    assert tar["image*"] == [
        "CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
        "Contains modified Copernicus Sentinel data 2018-2019.",
    ]
    assert tar["mask.*, label.json"][0].startswith("ODbL-1.0")
    assert "© OpenStreetMap contributors" in tar["mask.*, label.json"][1]
    assert "2020-01-01" in tar["mask.*, label.json"][1]


def test_a_simulated_release_credits_neither_satellite_nor_mappers(made: Path, city: Path, tmp_path: Path) -> None:
    assert search.is_simulated(str(city / "catalog.json"))
    assert not search.is_simulated(str(made))
    shutil.copytree(made / "build", tmp_path / "build")
    planned = lock.read(tmp_path / "build")
    lock.write(tmp_path / "build" / lock.NAME, replace(planned, simulated=True))
    files.write_sums(tmp_path / "build")
    folder, _ = release(order(made, tmp_path, build=tmp_path / "build"))
    notices = [line.split("\t")[3] for line in (folder / "LICENSES/files.tsv").read_text().splitlines()[1:]]
    assert set(notices) == {"Simulated by sgdata: no satellite and no mapper has seen this place."}
    text = (folder / "CARD.md").read_text()
    assert text.startswith("---\nlicense: cc-by-4.0\n")
    assert "Simulated by sgdata" in text
    assert "Contains modified Copernicus" not in text + (folder / "croissant.json").read_text()


def test_the_card_is_made_from_lock_and_audit(released: Path) -> None:
    text = (released / "CARD.md").read_text()
    assert text.startswith("---\nlicense: [cc-by-4.0, odbl]\n")
    for part in (
        "library_name: webdataset", 'path: "*-train-*.tar"', "8 samples (train 4, val 4) of 12 x 16 x 16, L2A",
        "2 scenes of `sentinel-2-l2a` from 2018-05-06 to 2019-06-30 (1 left out by name)", "2020-01-01",
        "| distance between splits | finding |", "| B8A | 864.7 | 20 |", "255 is not a class",
        "Of the pixels, 0.000% hold no data, 0.560% are roofs that every date classifies as cloud.",
    ):  # fmt: skip
        assert part in text, part
    assert (released / "README.md").read_text() == text


@pytest.mark.filterwarnings("ignore")  # webdataset under torch
def test_the_code_of_the_card_reads_the_release(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall("```python\n(.*?)```", (released / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(released)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert next(iter(names["samples"]))["image.blosc"].shape == (12, 16, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # rdflib under mlcroissant
def test_croissant_is_valid_and_reads_the_index(released: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=released / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    rows = list(dataset.records("samples"))
    records = sorted((row["samples/key"].decode(), row["samples/west"]) for row in rows)
    index = shard_index.read_index(released).to_pylist()
    assert records == sorted((row["key"], row["west"]) for row in index)


def schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (package_data.folder("catalogs") / "schemas/geocroissant.schema.json").read_bytes()
    )
    return document


def test_the_geocroissant_part_follows_its_text(released: Path) -> None:
    document = json.loads((released / "croissant.json").read_bytes())
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert document["geocr:bandConfiguration"]["geocr:totalBands"] == 12
    assert document["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("geocr:spatialResolution"),
        lambda d: d.update({"geocr:coordinateReferenceSystem": 32632}),
        lambda d: d["geocr:bandConfiguration"].update({"geocr:totalBands": "12"}),
        lambda d: d["geocr:spectralBandMetadata"][0].pop("geocr:centerWavelength"),
        lambda d: d["conformsTo"].pop(),
        lambda d: d.update({"geocr:bandConfigurations": {}}),
        lambda d: d["spatialCoverage"]["geo"].update({"box": "11 48"}),
    ],
)
def test_the_schema_refuses_documents_that_the_specification_forbids(
    released: Path, spoil: Callable[[Any], Any]
) -> None:
    document = json.loads((released / "croissant.json").read_bytes())
    spoil(document)
    assert not jsonschema.Draft202012Validator(schema()).is_valid(document)


def test_stac_is_valid(released: Path) -> None:
    """Validate the core by pystac's own schemas; those of extensions are online, so their fields are read back."""
    import pystac
    from pystac.extensions.classification import ClassificationExtension
    from pystac.extensions.file import FileExtension
    from pystac.extensions.projection import ProjectionExtension
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    validator = JsonSchemaSTACValidator()
    collection = pystac.Collection.from_file(str(released / "stac/collection.json"))
    items = list(collection.get_items())
    assert [item.id for item in items] == ["tiny-town-1.0-train", "tiny-town-1.0-val"]
    for each in (collection, *items):
        document = json.loads(Path(str(each.get_self_href())).read_bytes())
        assert validator.validate_core(document, each.STAC_OBJECT_TYPE, "1.1.0")
        assert not [link for link in document["links"] if link["rel"] == "self" or link["href"].startswith("/")]
        links = [link.get_absolute_href() for link in each.links if not link.rel.startswith("derived_from")]
        assert all(link and Path(link).is_file() for link in links)
    item = items[0]
    assert ProjectionExtension.ext(item).code == "EPSG:32632"
    assert [link.title for link in item.links if link.rel == "derived_from"] == [
        "S2A_32UPU_20180506_0_L2A",
        "S2A_32UPU_20190630_0_L2A",
    ]
    ((name, asset),) = item.assets.items()
    assert FileExtension.ext(asset).checksum == "1220" + files.sha256_file(released / f"{name}.tar")
    assert FileExtension.ext(asset).size == (released / f"{name}.tar").stat().st_size
    classes = ClassificationExtension.ext(asset).classes
    assert classes is not None
    assert [each.value for each in classes] == list(range(13))


def test_geopandas_reads_the_index(released: Path) -> None:
    import geopandas

    frame = geopandas.read_parquet(released / "index.parquet")
    assert frame.crs == "EPSG:4326"
    assert frame.geometry.is_valid.all()


def test_a_summary_is_written_to_the_catalogue(released: Path) -> None:
    summary = json.loads((released.parent / "catalogs/releases/tiny-town-1.0.json").read_bytes())
    assert (summary["name"], summary["version"], summary["dataset"]) == ("tiny-town", "1.0", "segmunich")
    assert summary["sha256"] == files.sha256_file(released / output_names.SUMS)
    assert summary["splits"] == {"train": 4, "val": 4}
    assert set(summary["findings"]) == {"distance between splits", "side by side"}


def test_a_dataset_without_locations_declares_none(tmp_path: Path) -> None:
    pack.pack("oscd", source=synthetic.oscd(tmp_path / "in"), out=tmp_path / "shards")
    wanted = order(tmp_path, tmp_path / "out", build=None, private=True, published="")
    folder, _ = release(wanted)
    document = json.loads((folder / "croissant.json").read_bytes())
    assert document["conformsTo"] == ["http://mlcommons.org/croissant/1.1"]
    assert not [key for key in document if key.startswith("geocr")]
    assert "Private copy" in (folder / "CARD.md").read_text()
    assert not list((folder / "stac").glob("t*.json"))
    assert verification.verify(folder) == []


# --- the same bytes ------------------------------------------------------------------------

# A clock of the year 2100 and the command line, in one interpreter.
PROGRAM = (
    "import time; time.time = lambda: 4.1e9; time.time_ns = lambda: 41 * 10**17; from sgdata.cli import main; main()"
)


def command(
    made: Path, out: Path, *more: str, program: str = PROGRAM, **environment: str
) -> subprocess.CompletedProcess[str]:
    words = ["release", "tiny-town", "1.0", "--source", str(made / "shards"), "--build", str(made / "build")]
    words += ["--out", str(out), "--register", str(out / "catalogs"), "--date", "2026-11-21", *more]
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=out.parent, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_another_day_folder_user_locale_zone_and_worker_count(made: Path, released: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere ü"
    shutil.copytree(made, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    before = os.umask(0o077)
    try:
        done = command(
            elsewhere, tmp_path / "out", "--workers", "2", "--archive", PYTHONHASHSEED="77", TZ="Pacific/Kiritimati",
            LC_ALL="C", LANG="tr_TR.UTF-8", USER="somebody", HOME=str(tmp_path),
        )  # fmt: skip
    finally:
        os.umask(before)
    assert done.returncode == 3, done.stderr  # released with a finding: its splits touch
    folder = tmp_path / "out/tiny-town-1.0"
    assert done.stdout.strip() == str(folder)
    assert (folder / output_names.SUMS).read_bytes() == (released / output_names.SUMS).read_bytes()
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o644"}
    with tarfile.open(tmp_path / "out/tiny-town-1.0.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == sorted(m.name for m in members)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert verification.verify(tmp_path / "unpacked/tiny-town-1.0") == []


def test_the_same_again_is_fine_other_bytes_are_refused(made: Path, tmp_path: Path) -> None:
    first, _ = release(order(made, tmp_path, archive=True))
    whole = (tmp_path / "tiny-town-1.0.tar").read_bytes()
    stamp = (first / "index.parquet").stat().st_mtime_ns
    again, _ = release(order(made, tmp_path, archive=True))
    assert (again, (first / "index.parquet").stat().st_mtime_ns) == (first, stamp)
    assert (tmp_path / "tiny-town-1.0.tar").read_bytes() == whole
    with pytest.raises(OutputError, match="this version exists with other content; choose another version"):
        release(order(made, tmp_path, published="2026-11-22"))
    assert verification.verify(first) == []
    elsewhere = order(made, tmp_path / "b", published="2026-11-22", register=tmp_path / "catalogs")
    with pytest.raises(OutputError, match="describes a release with other content"):
        release(elsewhere)


KILLED = """
import os, signal
from contextlib import contextmanager
from sgdata import files, output_names
left = {calls}
real = files.replacing
@contextmanager
def replacing(path, *, durable=True):
    global left
    left -= 1
    with real(path, durable=durable) as temporary:
        yield temporary
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
files.replacing = replacing
from sgdata.cli import main
main()
"""


@pytest.mark.parametrize("calls", [3, 20])
def test_a_killed_release_is_completed_by_running_it_again(
    calls: int, made: Path, released: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = command(made, out, program=KILLED.format(calls=calls))
    assert done.returncode == -9
    assert not (out / "tiny-town-1.0").exists()
    folder, _ = release(order(made, out))
    assert (folder / output_names.SUMS).read_bytes() == (released / output_names.SUMS).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [".lock", "catalogs", "tiny-town-1.0"]


def test_a_full_disk_and_a_folder_that_cannot_be_written(made: Path, tmp_path: Path) -> None:
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from sgdata.cli import main; main()"
    )
    done = command(made, tmp_path / "out", program=full)
    assert done.returncode == 2
    assert "cannot be written: File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*tiny*"))
    with pytest.raises(OutputError, match="cannot be written"):
        release(order(made, Path("/proc/release")))


# --- refused -------------------------------------------------------------------------------


def test_an_input_that_does_not_verify_is_refused(made: Path, tmp_path: Path) -> None:
    for name in ("build", "shards"):
        shutil.copytree(made, tmp_path / name)
        spoilt = tmp_path / name / name / "contract.json"
        spoilt.write_bytes(spoilt.read_bytes().replace(b"1e-04", b"1e-03").replace(b"0.0001", b"0.0010"))
        with pytest.raises(OutputError, match=r"1 files differ from its SHA256SUMS \(contract.json: changed"):
            release(order(tmp_path / name, tmp_path / "out"))
    (tmp_path / "shards/shards" / output_names.SUMS).unlink()
    with pytest.raises(OutputError, match="no SHA256SUMS"):
        release(order(tmp_path / "shards", tmp_path / "out"))


def test_data_that_may_not_be_redistributed_are_refused(tmp_path: Path) -> None:
    source = synthetic.segmunich_released(tmp_path / "in")
    pack.pack("segmunich", source=source, out=tmp_path / "shards")
    with pytest.raises(SettingError, match="redistribution is 'unclear'.*give --private"):
        release(order(tmp_path, tmp_path / "out", build=None))
    pack.pack("oscd", source=synthetic.oscd(tmp_path / "oscd"), out=tmp_path / "other/shards")
    with pytest.raises(SettingError, match="redistribution is 'no'.*CC BY-NC-SA"):
        release(order(tmp_path / "other", tmp_path / "out", build=None))
    folder, _ = release(order(tmp_path, tmp_path / "out", build=None, private=True))
    assert "license: other" in (folder / "CARD.md").read_text()


def test_shards_of_a_build_are_released_with_that_build(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="give --build DIR"):
        release(order(made, tmp_path, build=None))
    other = finished_build(tmp_path / "other")
    contracts.write(other, replace(contracts.read(other), version="2001"))
    files.write_sums(other)
    with pytest.raises(SourceError, match="not the build of these shards"):
        release(order(made, tmp_path, build=other))
    with pytest.raises(SourceError, match="expected a folder written by 'sgdata shard'"):
        release(order(made, tmp_path, source=made / "build"))


@pytest.mark.parametrize("wrong", [{"name": "../x"}, {"name": "Ä"}, {"version": "one"}, {"published": "today"}])
def test_names_that_would_not_travel(wrong: dict[str, str], made: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"release: (name|version|date) is .*: expected .*such as"):
        release(order(made, tmp_path, **wrong))


# --- tampering -----------------------------------------------------------------------------


def tamper(folder: Path, rng: random.Random) -> str:
    """Tamper with one random file in a random way and return the name that must be reported."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(paths)
    what = rng.choice(["flip", "drop", "add", "truncate", "rename"])
    content = path.read_bytes()
    if what in ("flip", "truncate") and not content:
        what = "drop"
    name = path.name
    if what == "flip":
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    elif what == "drop":
        path.unlink()
    elif what == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif what == "rename":
        path.rename(path.with_name(path.name + ".bak"))
    else:
        name = rng.choice([".hidden", "summary.json", "new.tar", ".git/config", "tensorboard/events"])
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(b"x")
    return name


def test_a_hundred_random_tamperings_are_each_named(released: Path, tmp_path: Path) -> None:
    for seed in range(100):
        folder = tmp_path / str(seed)
        shutil.copytree(released, folder)
        name = tamper(folder, random.Random(seed))
        try:
            differences = verification.verify(folder)
        except OutputError as error:
            differences = [str(error)]
        # For a list that lost lines, the files that they named are reported.
        assert any(name in line for line in differences) or (name == output_names.SUMS and differences), (
            seed,
            name,
            differences,
        )
        shutil.rmtree(folder)


def test_the_command_needs_nothing_but_the_folder(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "copy")
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "copy")]).exit_code == 0
    (tmp_path / "copy/.extra").write_text("")
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "copy")])
    assert (done.exit_code, done.stdout) == (3, ".extra: not listed\n")


@pytest.mark.parametrize(
    "href", ["https://h.example/B02.tif?se=2024-01-02&sig=CANARY", "https://user:CANARY@h.example/B02.tif"]
)
def test_signed_addresses_are_not_released(made: Path, tmp_path: Path, href: str) -> None:
    build = shutil.copytree(made / "build", tmp_path / "build")
    planned = lock.read(build / lock.NAME)
    signed = replace(planned.items[0], scene=replace(planned.items[0].scene, assets={"B02": Asset(href=href)}))
    lock.write(build / lock.NAME, replace(planned, items=(signed, *planned.items[1:])))
    files.write_sums(build)
    with pytest.raises(OutputError, match="a signature, a token or a password") as caught:
        release(order(made, tmp_path / "out", build=build))
    assert "CANARY" not in str(caught.value)
    assert not list((tmp_path / "out").glob("tiny*"))
