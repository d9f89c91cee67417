"""Test that refusals name a cure, and that the cure that a training program names works, in its own words."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_shards import contract, pair, pair_contract, sample, scene, scene_contract
from test_classify import recipe as classification
from test_contrast import recipe as contrasting
from test_detect_change import recipe as change
from test_pretrain import recipe as pretraining
from test_segment import TINY, run_paths_for
from test_segment import recipe as segmentation

from sgdata.errors import SettingError, SgdataError
from sgdata.shards import write_shards
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import batching

NONE = ("training.epochs=0",)

ROOT = Path(__file__).resolve().parents[1]
VERBS = (
    "accept add ask build change check choose compare convert copy correct download draw fetch fill find fine-tune "
    "free give install keep leave lower make map mend merge move name pack pip plan predict put "
    "quote raise reinstall remove rename repeat resample run save see set shard start state swap take "
    "train try unpack unset update use warp write "
)
ELSEWHERE = "no such file|TARGETS|OUTLINES|PACK_TOGETHER|did you mean|made with|same command|explain|self.reason"
CURE = re.compile(
    rf"(?:[;,:] |\(|\b(?:or|and) )(?:{'|'.join(VERBS.split())})\b|{ELSEWHERE}"
    r"|\{(?:NO_WORKERS|advice|error|hint|problem|remedy|why|wrong)\}"
)
VALUES = re.compile(r"expected|known: |near it: |lists those|lists them|only |needs ")
"""What a message about a setting says of the values that are right, which is to set one of them."""
WHOLE = ("sgdata/scenes", "sgdata/remote")
REASONS = ("sgdata/datasets", "sgdata/packing", "sgdata/shards", "sgdata/rasters", "sgdata/composite", "sgdata/staging")
"""Folders whose messages are also reasons in lists of samples and scenes that were left out:
what was expected is enough, since the sample was left out already."""
COMPLETED = {
    "download.py": "`_download` joins the failures of all addresses and says when to try again",
    "array_codec.py": "`read_sample` and the loader name the sample and the tar, and what to run",
}
"""Modules whose errors a caller completes."""
FOLDERS = sorted({path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("sg*/**/*.py")})


def spelled(node: ast.expr) -> str:
    """Return a message with the names of its values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def messages_of(folder: str) -> dict[str, tuple[str, str]]:
    """Return the kind and text of each message with a value that the modules of a folder raise."""
    messages = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                kind, message = ast.unparse(node.exc.func), node.exc.args[0]
                if kind in {"SettingError", "SourceError", "ServiceError", "OutputError"} and isinstance(
                    message, ast.JoinedStr
                ):
                    messages[f"{path.name}:{node.lineno}"] = (kind, spelled(message))
    return messages


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_message_of_a_folder_says_what_to_do(folder: str) -> None:
    without = {}
    for place, (kind, text) in messages_of(folder).items():
        is_reason = folder in REASONS and kind in {"SourceError", "ServiceError"}
        is_completed = is_reason and place.partition(":")[0] in COMPLETED
        is_value = (is_reason or (folder not in WHOLE and kind == "SettingError")) and VALUES.search(text)
        if not (CURE.search(text) or is_value or is_completed):
            without[place] = text
    assert without == {}


def test_messages_are_found() -> None:
    assert len(messages_of("sgdata/scenes")) >= 40
    assert sum(len(messages_of(folder)) for folder in FOLDERS) >= 500


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write masks, scenes and pairs with the splits train and val, and masks without val."""
    root = tmp_path_factory.mktemp("cures")
    splits = ("train",) * 4 + ("val",) * 2
    kinds: dict[str, tuple[list[Any], Any]] = {
        "masks": ([sample(n, split, 32, 32) for n, split in enumerate(splits)], contract(32)),
        "no val": (
            [sample(n, {"val": "test"}.get(split, split), 32, 32) for n, split in enumerate(splits)],
            contract(32),
        ),
        "scenes": ([scene(n, split, 16) for n, split in enumerate(splits)], scene_contract(16)),
        "labels": (
            [scene(n, split, 16, "multi-label") for n, split in enumerate(splits)],
            scene_contract(16, "multi-label"),
        ),
        "pairs": ([pair(f"p{n}", split, 32, 32, seed=n) for n, split in enumerate(splits)], pair_contract()),
    }
    for name, (made, facts) in kinds.items():
        write_shards.write(made, root / name, contract=facts)
    return {name: root / name for name in kinds}


PROGRAMS: dict[str, tuple[Callable[..., int], Callable[..., Any]]] = {
    "segment": (segment.main, lambda *more: segmentation("tiny", *TINY, *more)),
    "classify": (classify.main, classification),
    "detect_change": (detect_change.main, lambda *more: change("val_split=val", "test_split=", *more)),
    "pretrain": (pretrain.main, pretraining),
    "contrast": (contrast.main, lambda *more: contrasting("simclr", *more)),
}


def tried(program: str, folder: Path, out: Path, *settings: str, **paths: Any) -> int:
    main, recipe = PROGRAMS[program]
    return main(recipe(*settings), run_paths_for(folder, out, **paths))


@pytest.mark.parametrize(
    ("program", "data", "settings", "cure"),
    [
        ("segment", "masks", ("training.accumulate=9",), "set training.accumulate = 4"),
        ("segment", "masks", ("mode=linear-probe", "model.head.skip=8"), "set model.head.skip = 0"),
        ("segment", "masks", ("val_split=",), "set test_split = 'val'"),
        ("segment", "no val", ("test_split=test",), "set val_split = ''"),
        ("classify", "masks", (), "set labels_from = 'mask'"),
        ("classify", "labels", ("smoothing=0.1",), "set smoothing = 0.0"),
        (
            "classify",
            "scenes",
            ("mix.mixup=0.8", "training.batch=6", "training.accumulate=2"),
            "set training.batch = 8",
        ),
        ("classify", "scenes", ("shots=3",), "set shots = 1"),
        ("detect_change", "pairs", ("windows.px=8",), "set windows.px = 16"),
        ("detect_change", "pairs", ("mode=linear-probe", "model.head.skip=8"), "set model.head.skip = 0"),
        ("detect_change", "pairs", ("drop_incomplete=true",), "set drop_incomplete = false"),
        ("contrast", "masks", ("mode=frozen",), "set mode = 'finetune'"),
        ("contrast", "no val", (), "set val_split = 'test'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) if value else "-",
)
def test_the_cure_works(
    shards: dict[str, Path], tmp_path: Path, program: str, data: str, settings: tuple[str, ...], cure: str
) -> None:
    key, value = re.fullmatch(r"set (\S+) = (.*)", cure).groups()  # type: ignore[union-attr]
    with pytest.raises(SgdataError) as refused:
        tried(program, shards[data], tmp_path / "a", *settings, *NONE)
    words = str(refused.value)
    assert cure in words or (key in words and value.strip("'") in words) or f"set {key}" in words, words
    assert tried(program, shards[data], tmp_path / "b", *settings, f"{key}={value}", *NONE) == 0


def test_more_processes_than_samples_divide_among(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SettingError, match=r"training.batch is 6 on 4 processes: set training.batch = 8"):
        batching.divide(6, 1)
    assert batching.divide(8, 3) == batching.BatchDivision(per_process=2, micro_batches=1)
    assert batching.divide(8, 8) == batching.BatchDivision(per_process=2, micro_batches=2)
    assert batching.divide(40, 12).largest == 4


def test_weights_of_other_data_are_accepted_as_the_refusal_says(shards: dict[str, Path], tmp_path: Path) -> None:
    one = "training.epochs=1"
    assert tried("segment", shards["masks"], tmp_path / "start", one) == 0
    weights = tmp_path / "start" / "checkpoint-last"
    space = dataclasses.replace(
        contract(32).label_space, ids=(0, 1, 2, 3, 4), names=tuple("abcde"), colours=("#000000",) * 5
    )
    other = dataclasses.replace(contract(32), level="L1C", label_space=space)
    write_shards.write(
        [sample(n, "train" if n < 4 else "val", 32, 32) for n in range(6)], tmp_path / "other", contract=other
    )
    settings: list[str] = []
    accepted: list[str] = []
    for _ in range(3):  # each refusal names what to accept; with all of it the run begins
        try:
            assert tried("segment", tmp_path / "other", tmp_path / "run", one, *settings, weights=weights) == 0
            break
        except SettingError as error:
            found = re.search(r"accept = \[(.*?)\]", str(error))
            assert found, str(error)  # noqa: PT017
            accepted += re.findall(r"'(\w+)'", found[1])
            settings = [f"accept={accepted}"]
    assert set(accepted) == {"level", "label_space"}
    assert (tmp_path / "run" / "results.json").exists()


def test_a_part_of_one_sample_is_cured_by_fewer_parts(shards: dict[str, Path], tmp_path: Path) -> None:
    size = ("training.batch=4", "training.epochs=1")
    with pytest.raises(SettingError, match="expected 2 or more; raise training.batch, or lower training.accumulate"):
        tried("contrast", shards["masks"], tmp_path / "a", *size, "training.accumulate=4")
    assert tried("contrast", shards["masks"], tmp_path / "b", *size, "training.accumulate=2") == 0
