"""Test the commands as users see them: fast help with an example; one clear line and exit code 2 for bad input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from sgdata import terminal
from sgdata.cli import app
from tests import synthetic_build

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def sgdata(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # PYTHONWARNINGS: a warning that a user would see is a fault here as well.
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sgdata.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False)


def refused(*arguments: str, cwd: Path | None = None) -> str:
    """Return the single line with which a command refuses its input."""
    done = sgdata(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sgdata: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numba", "rasterio", "xarray", "geopandas", "torch")
    code = f"import sys, sgdata.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = sgdata(command, "--help")
    assert done.returncode == 0
    assert "Example: " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_and_option_has_a_help_text(command: str) -> None:
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert parameters
    for parameter in parameters:
        assert parameter.help and parameter.help.endswith("."), f"{command}: {parameter.name}"


@pytest.mark.parametrize(("command", "key"), [("plan", "composite.method"), ("build", "mask.drop"), ("shard", "codec")])
def test_settings_of_a_recipe_are_printed_without_its_arguments(command: str, key: str) -> None:
    done = sgdata(command, "--settings")
    assert (done.returncode, done.stderr) == (0, "")
    *_, after = done.stdout.partition(f"\n{key}: ")
    heading, meaning, *_ = after.splitlines()
    assert "; required" in heading and meaning.startswith("    ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("plan --workers 0", "sgdata: --workers '0': expected greater than or equal to 1; "),
        ("plan --log-format xml", "sgdata: --log-format 'xml': expected one of 'text', 'json'; "),
        ("plan --bbox 1 2 3 east", "sgdata: --bbox 'east': expected a valid number; "),
        ("plan --bbox 1 2", "sgdata: option '--bbox' requires 4 arguments; "),
        ("plan --stacc x", "sgdata: no such option: --stacc"),
        ("plann", "sgdata: no such command 'plann'. Did you mean 'plan'?; "),
        ("simulate", "sgdata: missing argument 'out'"),
        ("plan segmunich berlin", "sgdata: got unexpected extra argument"),
    ],
)
def test_errors_of_usage_are_one_line_with_the_value_and_where_to_look(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        terminal.run(app, "sgdata", words.split(), "sgdata")
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.lower().startswith(line.lower()), err
    assert "--help' lists what it takes" in err


def test_version() -> None:
    done = sgdata("--version")
    assert (done.returncode, done.stdout) == (0, f"sgdata {version('sgdata')}\n")


def test_simulate_refuses_a_size_out_of_range(tmp_path: Path) -> None:
    assert "100" in refused("simulate", str(tmp_path / "a"), "--size", "100")


def test_verify_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere" in refused("verify", str(tmp_path / "nowhere"))


# --- builds: every mistake a newcomer makes is one line -----------------------------------------


def test_a_wrong_recipe_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    line = refused("build", "segmunich", "--out", str(tmp_path / "b"), "--set", "composite.methd=median")
    assert "composite.method" in line


def test_a_wrong_key_in_a_recipe_file_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    text = (ROOT / "recipes" / "build" / "segmunich.toml").read_text()
    recipe.write_text(text.replace("osm_date", "osm_dat"))
    assert "did you mean 'osm_date'" in refused("plan", "--recipe", str(recipe), "--out", str(tmp_path / "b"))


@pytest.mark.parametrize("dates", ["2019-04", "2019-04-01/2019-04-31", ""])
def test_dates_that_are_not_two_days_are_named_as_such(dates: str, tmp_path: Path) -> None:
    area = ("--bbox", "11.4", "48.1", "11.5", "48.2", "--stac", str(tmp_path))
    assert f"dates {dates!r}: no two days" in refused("plan", *area, "--dates", dates, "--out", str(tmp_path / "b"))


def test_a_build_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "known: segmunich" in refused("build", "segmnich", "--out", str(tmp_path / "b"))


def test_a_missing_area_file_and_catalogue(tmp_path: Path, city: Path) -> None:
    out = ["--out", str(tmp_path / "b")]
    assert "nowhere.geojson" in refused("plan", "segmunich", "--aoi", str(tmp_path / "nowhere.geojson"), *out)
    assert "nowhere.json" in refused(
        "plan", "segmunich", "--aoi", f"{city}/aoi.geojson", "--stac", str(tmp_path / "nowhere.json"), *out
    )


def test_an_area_outside_the_catalogue(tmp_path: Path, city: Path) -> None:
    line = refused(
        "plan", "segmunich", "--bbox", "2.0", "48.0", "2.1", "48.1", "--stac", f"{city}/catalog.json",
        "--out", str(tmp_path / "b"),
    )  # fmt: skip
    assert "catalog.json" in line


@pytest.mark.slow  # half a minute of repeated requests
def test_a_server_that_cannot_be_reached(tmp_path: Path, city: Path) -> None:
    # Port 9 (discard) on loopback has no listener: the connection is refused at once.
    line = refused(
        "plan", "segmunich", "--aoi", f"{city}/aoi.geojson", "--stac", "http://127.0.0.1:9/v1", "--out",
        str(tmp_path / "b"),
    )  # fmt: skip
    assert "127.0.0.1:9" in line


def test_shard_of_an_unknown_dataset_and_of_a_missing_source(tmp_path: Path) -> None:
    assert "eurosat" in refused("shard", "eurosta", "--out", str(tmp_path / "s"))
    assert "nowhere" in refused("shard", "eurosat", "--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "s"))


def test_catalog_of_an_unknown_dataset_suggests_the_closest() -> None:
    assert "did you mean 'eurosat'" in refused("catalog", "eurosta")


def test_an_output_of_another_kind_is_not_written_into(tmp_path: Path) -> None:
    build = synthetic_build.write(tmp_path / "build", (256, 256))
    before = (build / "contract.json").read_bytes()
    assert "holds a build (image.tif)" in refused("simulate", str(build), "--size", "2")
    assert "holds a build (image.tif)" in refused("audit", str(build), "--out", str(build), "-q")
    assert "holds a build (image.tif)" in refused("shard", "segmunich", "--source", str(build), "--out", str(build))
    assert (build / "contract.json").read_bytes() == before


def test_a_list_of_a_split_without_its_file(tmp_path: Path) -> None:
    assert "SPLIT=FILE" in refused("shard", "eurosat", "--source", str(tmp_path), "--split-list", "train")


def test_labels_that_a_build_does_not_have(tmp_path: Path) -> None:
    build = synthetic_build.write(tmp_path / "build", (256, 256))
    words = ["shard", "segmunich", "--source", str(build), "--out", str(tmp_path / "shards"), "--labels", "foo"]
    assert "labels 'foo': this build has labels 'toy'" in refused(*words)


def test_drift_accepts_the_folder_of_a_build(tmp_path: Path) -> None:
    assert "segmunich.lock.json: no such file" in refused("drift", str(tmp_path))


def test_a_map_is_laid_over_a_build(tmp_path: Path) -> None:
    build = synthetic_build.write(tmp_path / "build", (256, 256))
    shutil.copy(build / "labels.tif", tmp_path / "classes.tif")
    done = sgdata("show", str(build), "--layer", str(tmp_path / "classes.tif"))
    assert done.returncode == 0, done.stderr
    assert "classes.tif" in (tmp_path / "build-page" / "index.html").read_text()
    synthetic_build.write(tmp_path / "other", (128, 256))
    assert "another grid" in refused("show", str(build), "--layer", str(tmp_path / "other" / "labels.tif"))
    assert "rename the file" in refused("show", str(build), "--layer", str(build / "labels.tif"))


@pytest.mark.slow
def test_build_shard_and_verify_from_the_command_line(tmp_path: Path, city: Path) -> None:
    build, shards = tmp_path / "build", tmp_path / "shards"
    done = sgdata(
        "build", "segmunich", "--aoi", f"{city}/aoi.geojson", "--stac", f"{city}/catalog.json", "--out", str(build),
        "--osm", f"{city}/osm/city.osm", "--set", "patches.size=64", "--set", "split.block_px=100",
        "--set", "split.gap_px=0",
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr  # 3: ground that none of its few dates saw clear
    assert done.stdout.strip() == str(build)
    done = sgdata("shard", "segmunich", "--source", str(build), "--out", str(shards))
    assert done.returncode == 0, done.stderr
    # The same command changes nothing; another recipe is refused, for it would replace what took hours.
    assert "dates is 2019-04-01/2019-05-01" in refused(
        "build", "segmunich", "--aoi", f"{city}/aoi.geojson", "--stac", f"{city}/catalog.json", "--out", str(build),
        "--osm", "none", "--set", "patches.size=64", "--set", "split.block_px=100", "--set", "split.gap_px=0",
        "--dates", "2019-04-01/2019-05-01",
    )  # fmt: skip
    for folder in (build, shards):
        assert sgdata("verify", str(folder)).returncode == 0
    image = build / "image.tif"
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    image.write_bytes(damaged)
    done = sgdata("verify", str(build))
    assert done.returncode == 3
    assert "image.tif" in done.stdout
