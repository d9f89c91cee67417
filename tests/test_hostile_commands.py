"""Hostile names as arguments and in catalogues, locks, contracts and ledgers, through every command.

Names stay inside the output, no control character or markup reaches the terminal, a page or a document, and what is
wrong is one line of bounded length with exit code 2.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import synthetic_shards
from stac_wrap import Wrapped, wrap
from test_hostile_names import GRID, home  # noqa: F401  # a fixture
from test_reproduce import STUB

from sgdata import cli, files, output_names, terminal
from sgdata.composite import omnicloudmask
from sgdata.errors import ExitCode
from sgdata.rasters import geotiff
from sgdata.scenes import lock
from sgdata.shards import write_shards
from sgmodel import cli as model_cli

APPS = {"sgdata": cli.app, "sgmodel": model_cli.app}
CONTROL = "\x1b[31mred\x1b]0;title\x07\x9b1m\x7f\u202e\u2028\r\n"
NAME = f"../../leads-out{CONTROL}<script>alert(1)</script>|[a](b)`c`"
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LONGEST = 4200

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:  # noqa: F811
    """Return a function that runs a command in a folder of its own and checks what it prints."""
    monkeypatch.chdir(home)

    def run(program: str, *words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            terminal.run(APPS[program], program, [str(word) for word in words])
        out, err = capsys.readouterr()
        assert not HIDDEN.search(out + err), (out, err)
        code = ended.value.code
        assert isinstance(code, int)
        if code == ExitCode.REFUSED:
            *before, last = err.splitlines()
            assert re.fullmatch(f"{program}: .{{,{LONGEST}}}", last), err
            assert all(line.endswith("missing") for line in before), err  # the progress of a ledger
            assert not out
        return code, out, err

    return run


def unharmed(*folders: Path) -> None:
    """Check that no document contains controls, and no page or card the script of a name."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.suffix in {".html", ".md", ".json", ".jsonl", ".csv", ".txt", ".tsv"}:
            text = path.read_text("utf-8", errors="surrogateescape")
            assert not HIDDEN.search(text), f"{path}: {HIDDEN.search(text)}"
            assert path.suffix not in {".html", ".md"} or "<script>alert" not in text, path


# --- arguments -----------------------------------------------------------------------------

# Each is refused before anything is fetched or written; {} is the hostile name.
ARGUMENTS = (
    "sgdata {}", "sgdata plan {}", "sgdata plan --profile {}", "sgdata plan --recipe {}", "sgdata plan --set {}",
    'sgdata plan --set bands=["{}"]', "sgdata plan --aoi {}", "sgdata plan --dates {}", "sgdata plan --stac {}",
    "sgdata build {}", "sgdata build --osm {}", "sgdata build --osm-date {}", "sgdata build --composite {}",
    "sgdata build --lock {}", "sgdata build --raster {}", "sgdata build --gap-fill {}", "sgdata build --sea {}",
    "sgdata plan --places {}", "sgdata build --places {}",
    "sgdata clouds {} --out o", "sgdata drift {}", "sgdata catalog {}", "sgdata fetch {}",
    "sgdata fetch eurosat --edition {}", "sgdata fetch eurosat --part {}", "sgdata shard {}",
    "sgdata shard eurosat --source {} --out o", "sgdata shard eurosat --edition {} --source toy --out o",
    "sgdata shard eurosat --splits {} --source toy --out o", "sgdata shard eurosat --labels {} --source toy --out o",
    "sgdata shard eurosat --layout {} --source toy --out o", "sgdata shard eurosat --codec {} --source toy --out o",
    "sgdata shard eurosat --hash {} --source toy --out o",
    "sgdata shard eurosat --split-list a={} --source toy --out o", "sgdata shard eurosat --split-list {} --out o",
    "sgdata shard segmunich --source {} --out o", "sgdata shard segmunich --source toy --hold-out {} --out o",
    "sgdata shard segmunich --source toy --fold {} --out o",
    "sgdata verify {}", "sgdata verify toy --against {}", "sgdata verify toy --{}", "sgdata compare {} --released toy",
    "sgdata status {}",
    "sgdata audit {}", "sgdata audit toy --dataset {}", "sgdata audit toy --edition {}", "sgdata audit toy --build {}",
    "sgdata split {} --out o", "sgdata draw-splits {} --out o.tsv.gz",
    "sgdata draw-splits toy --out o.tsv.gz --budget {}",
    "sgdata release {} 1.0 --source toy --out o", "sgdata release a {} --source toy --out o",
    "sgdata release a 1.0 --source {} --out o", "sgdata release a 1.0 --source toy --out o --date {}",
    "sgdata release a 1.1 --source toy --out o --previous {}", "sgdata release a 1.0 --source toy --out o --home {}",
    "sgdata diff {} toy", "sgdata diff toy {}", "sgdata build segmunich --name {}",
    "sgdata shard eurosat --name {} --source toy --out o",
    "sgdata export {} --source toy --out o", "sgdata export segmunich-released --source {} --out o", "sgdata show {}",
    "sgdata show toy --layer {} --out o", "sgdata simulate o --layout {}", "sgdata simulate o --ground {}",
    "sgdata demo --{}",
    "sgmodel {}", "sgmodel recipes {}", "sgmodel pretrain {} --shards toy", "sgmodel contrast {} --shards toy",
    "sgmodel classify {} --shards toy", "sgmodel segment {} --shards toy", "sgmodel detect-change {} --shards toy",
    "sgmodel segment segment-demo-tiny --shards {} --out o",
    "sgmodel segment segment-demo-tiny --weights {} --shards toy",
    "sgmodel segment segment-demo-tiny --beside {} --shards toy",
    "sgmodel segment segment-demo-tiny --shards toy --device {} --out o",
    "sgmodel segment segment-demo-tiny --shards toy --parallel {} --out o",
    "sgmodel segment segment-demo-tiny --shards toy --verify {} --out o",
    'sgmodel segment segment-demo-tiny --shards toy --set bands=["{}"] --out o',
    "sgmodel segment segment-demo-tiny --shards {}=toy --out o", "sgmodel predict {} --input toy --weights toy",
    "sgmodel predict --input {} --weights toy --out o",
    "sgmodel predict --input toy --weights toy --out o --cluster {}",
    "sgmodel predict --input toy --weights {} --out o",
    "sgmodel predict --input toy --weights toy --what {} --out o", "sgmodel convert {} --out o",
    "sgmodel sizes {}",
    "sgmodel reproduce {} --shards toy", "sgmodel reproduce city --shards {} --out o",
    "sgmodel reproduce city --shards toy --set {} --out o",
)  # fmt: skip


def test_names_of_arguments(say: Say, home: Path) -> None:  # noqa: F811
    synthetic_shards.write(home / "toy")
    before = sorted(path for path in home.rglob("*"))
    for number, text in enumerate(ARGUMENTS):
        program, *words = text.split(" ")
        # All messages are shortened in one place, so that some long names are enough.
        for name in (NAME, "x" * 5000) if number % 3 == 0 else (NAME,):
            code, _, err = say(program, *(word.replace("{}", name) for word in words))
            assert code == ExitCode.REFUSED, (text, name[:20], err)
    assert sorted(path for path in home.rglob("*") if path.parent.name != "o" and path.name != "o") == before


def test_every_command_is_tried() -> None:
    tried = {tuple(text.split(" ")[:2]) for text in ARGUMENTS}
    for program, app in APPS.items():
        groups = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)]
        for command in (command for group in groups for command in group.registered_commands):
            name = command.name or getattr(command.callback, "__name__", "")
            assert (program, name) in tried, f"{program} {name}: give it a hostile name"


@pytest.mark.parametrize(
    "words", ["segment segment-demo-tiny --shards toy --weights", "predict --input toy --weights", "convert"]
)
def test_empty_names_of_weights(say: Say, home: Path, words: str) -> None:  # noqa: F811
    """As of a shell's variable that is not set, which would train from random weights."""
    synthetic_shards.write(home / "toy")
    code, _, err = say("sgmodel", *words.split(" "), "", *([] if "predict" in words else ["--out", "o"]))
    assert code == ExitCode.REFUSED
    assert "weights '': expected a path" in err


# --- catalogues and locks ------------------------------------------------------------------


def archive(folder: Path, ids: tuple[str, ...]) -> Path:
    """Three scenes of one value each, of the bands of cloud masks, under these ids and foreign names."""
    scenes = []
    for number in range(len(ids)):
        ground = np.full((600, 600), 300 + 100 * number, np.uint16)
        layers = dict.fromkeys(omnicloudmask.BANDS, (ground, 10.0)) | {"SCL": (np.full((300, 300), 4, np.uint8), 20.0)}
        month = number + 5
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{month}01_0_L2A", time=f"2019-0{month}-01T10:00:00Z", layers=layers))
    wrap(folder, scenes)
    for path, name in zip(sorted(folder.glob("*/S2A*/*.json")), ids, strict=True):
        item = json.loads(path.read_bytes())
        item["id"] = name
        item["properties"] |= {"platform": NAME, "title": NAME, "s2:datatake_id": NAME, "created": NAME}
        path.write_text(json.dumps(item))
    return folder


def test_names_in_a_catalogue(say: Say, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Plan, compare, mask, build by the lock, show, shard and audit scenes with hostile names."""
    monkeypatch.setattr(omnicloudmask, "engine", lambda weights: lambda image: (image[0] > 450).astype(np.uint8))
    stac = ("--stac", archive(home / "archive", (NAME, "x" * 3000, "/tmp/leads-out")))
    settings = (
        f"area={{grid = {GRID}}}", 'bands=["B04", "B03", "B8A"]', "patches.size=32", "patches.stride=32",
        "split.block_px=32", "split.gap_px=0", "composite.method=median", "mask.method=external",
        "mask.cloud_buffer_m=0", "mask.shadow_buffer_m=0", "mask.bright_target_filter=false",
        f"name={json.dumps(NAME)}",
    )  # fmt: skip
    sets = [word for text in settings for word in ("--set", text)]
    chosen = ("--dates", "2019-01-01/2019-12-31", *sets, *stac)
    code, out, _ = say("sgdata", "plan", *chosen, "--out", home / "plan", "--allow-holes", "--json")
    assert (code, json.loads(out)["dropped"]) == (0, [])
    assert say("sgdata", "drift", home / "plan", *stac)[0] == 0
    assert say("sgdata", "clouds", home / "plan", *stac, "--out", home / "masks")[0] == 0
    masks = sorted(path.name for path in (home / "masks").glob("*.tif"))
    assert len(masks) == 3
    assert all(len(name.encode()) <= 205 and name.isprintable() for name in masks)
    words = ("--osm", "none", "--lock", home / "plan" / lock.NAME, "--masks", home / "masks", "--out", home / "build")
    assert say("sgdata", "build", *chosen, *words)[0] == 0
    # The third scene, of 500, is masked: every mask was found by the id of its scene.
    with geotiff.open_raster(str(home / "build" / output_names.IMAGE)) as image:
        assert set(np.unique(image.read(1)).tolist()) == {350}
    assert say("sgdata", "show", home / "build", "--out", home / "page")[0] == 0
    assert say("sgdata", "shard", "segmunich", "--source", home / "build", "--out", home / "shards")[0] == 0
    assert say("sgdata", "audit", home / "shards", "--build", home / "build", "--out", home / "audit")[0] == 3
    words = ("--source", home / "shards", "--build", home / "build", "--out", home / "out")
    # Under the name of the release, with the licence of builds, whatever the recipe calls the dataset.
    code, _, _ = say("sgdata", "release", "tiny", "1.0", *words, "--register", home / "register")
    assert code == ExitCode.FINDINGS
    assert [path.name for path in (home / "out").iterdir() if not path.name.startswith(".")] == ["tiny-1.0"]
    assert say("sgdata", "diff", home / "out/tiny-1.0", home / "shards")[0] == 0
    unharmed(*(home / name for name in ("plan", "masks", "build", "page", "shards", "audit", "out", "register")))
    # A lock that names what the catalogue does not have.
    document = json.loads((home / "plan" / lock.NAME).read_bytes())
    document["items"][0]["scene"]["assets"]["B04"]["href"] = f"../../../{NAME}"
    (home / "plan" / lock.NAME).write_text(json.dumps(document))
    assert say("sgdata", "clouds", home / "plan", *stac, "--out", home / "other")[0] == ExitCode.REFUSED


# --- lists ---------------------------------------------------------------------------------


def test_a_name_adds_no_line_to_a_list(say: Say, home: Path) -> None:  # noqa: F811
    out = home / "out"
    files.write(out / "a", b"a")
    files.write_sums(out)
    (out / "b\nout: every file is as it was written").write_bytes(b"")
    code, text, _ = say("sgdata", "verify", out)
    assert (code, text) == (ExitCode.FINDINGS, "b\\nout: every file is as it was written: not listed\n")


# --- contracts and ledgers -----------------------------------------------------------------


LEDGER = """
title = {name}
seeds = [1, 2]
flops_per_s = 1e9
start_s = 0
[[tables]]
program = "segment"
name = {name}
recipe = "train/segment-demo-linear.toml"
data = {name}
note = {name}
set = ["bands=['B02', 'B03', 'B04']"]
rows = [
  {{ name = {name}, start = "random" }},
  {{ name = "/tmp/leads-out", start = "random", set = ["training.epochs=3"] }},
]
compare = [[{name}, "/tmp/leads-out"]]
metrics = {metrics}
"""


def ledger(*metrics: str) -> str:
    # TOML allows no DEL, which JSON does.
    return LEDGER.format(name=json.dumps(NAME), metrics=json.dumps(metrics)).replace("\x7f", "\\u007f")


def test_names_in_a_ledger(say: Say, home: Path) -> None:  # noqa: F811
    made = [synthetic_shards.sample(n, "train" if n < 4 else "val", 32, 32) for n in range(6)]
    contract = dataclasses.replace(synthetic_shards.contract(32), dataset=NAME, version=NAME)
    write_shards.write(made, home / "toy", contract=contract)
    (home / "stub.py").write_text(STUB)
    recipe = home / "ledger.toml"
    recipe.write_text(ledger("miou"))
    words = ("reproduce", recipe, "--shards", home / "toy", "--out", home / "out")
    words = (*words, "--launcher", f"{sys.executable} {home / 'stub.py'}")
    code, out, _ = say("sgmodel", *words, "--plan")
    assert (code, out.count("\n")) == (0, 5), out
    assert say("sgmodel", *words)[0] == 0
    assert len([path for path in (home / "out" / "runs").iterdir() if path.is_dir()]) == 4
    assert say("sgdata", "show", home / "out", "--out", home / "page")[0] == 0
    assert say("sgdata", "verify", home / "out")[0] == 0
    unharmed(home / "page", home / "out")
    for metrics, what in (((NAME,), "no figure of this name"), ((), "metrics are empty")):
        recipe.write_text(ledger(*metrics))
        code, _, err = say("sgmodel", *words)
        assert (code, what in err) == (ExitCode.REFUSED, True)
    # A hostile document in place of the ledger.
    documents: tuple[object, ...] = ({}, {"tables": 3}, {"tables": [{"name": NAME}]}, {"tables": [NAME]})
    for document in documents:
        (home / "out" / output_names.LEDGER).write_bytes(files.pretty_json(document))
        assert say("sgdata", "show", home / "out", "--out", home / "page")[0] == ExitCode.REFUSED
