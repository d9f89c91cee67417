"""Test shards without sample hashes (`--hash fast`): equal tars, and what needs the hashes computes or refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic
import synthetic_shards
from model_commands import sgmodel

import sgdata
from sgdata import files, output_names, verification
from sgdata.audits import checks, collect_evidence
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.packing import pack, select_samples
from sgdata.releases import difference
from sgdata.shards import contracts, join_shards, sample_hashes, shard_index, write_shards
from sgdata.types import HashMode
from sgmodel.data import loader, mixture

PATCHES = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.bigearthnet_v1(tmp_path_factory.mktemp("ben"), PATCHES)


def packed(source: Path, out: Path, mode: str, **changes: object) -> Path:
    recipe = dataclasses.replace(select_samples.recipe_for("bigearthnet"), edition="v1", hash=mode, **changes)  # type: ignore[arg-type]
    pack.pack("bigearthnet", source=source, out=out, recipe=recipe)
    return out


@pytest.fixture(scope="module")
def modes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the patches in both modes and both layouts: `fast-native`, `full-resampled` and so on."""
    out = tmp_path_factory.mktemp("modes")
    for mode in ("fast", "full"):
        for layout in ("native", "resampled"):
            packed(source, out / f"{mode}-{layout}", mode, layout=layout)
    return out


def toy(out: Path, mode: HashMode, first: int = 0, *, train: int = 6, val: int = 2, name: str = "toy") -> Path:
    """Write toy shards of a mode; samples are numbered from `first`."""
    made = [synthetic_shards.sample(first + n, "train" if n < train else "val", 32, 32) for n in range(train + val)]
    write_shards.write(made, out, contract=dataclasses.replace(synthetic_shards.contract(32), hash=mode, dataset=name))
    return out


# --- what is written -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["native", "resampled"])
def test_the_modes_differ_in_hashes_alone(layout: str, modes: Path, tmp_path: Path) -> None:
    fast, full = modes / f"fast-{layout}", modes / f"full-{layout}"
    sums = [files.read_sums(folder) for folder in (fast, full)]
    different = {name for name in sums[0] if sums[0][name] != sums[1][name]}
    assert different == {output_names.INDEX, output_names.CONTRACT, output_names.RECIPE}
    assert verification.verify(fast) == []
    table = shard_index.read_index(fast)
    assert "sha256" not in table.column_names
    assert "image_crc32" in table.column_names or "image_10m_crc32" in table.column_names
    # Documents of the default are those of versions without the setting.
    for name in (output_names.CONTRACT, output_names.RECIPE):
        assert "hash" not in files.read_plain(full / name)
        assert files.read_plain(fast / name)["hash"] == "fast"
    assert contracts.read(fast).fingerprint == sample_hashes.fingerprint(
        files.sha256_file(path) for path in fast.glob("*.tar")
    )


@pytest.mark.parametrize("layout", ["native", "resampled"])
def test_hashes_computed_later_are_those_of_packing(layout: str, modes: Path, source: Path, tmp_path: Path) -> None:
    later = packed(source, tmp_path / "later", "fast", layout=layout)
    assert sample_hashes.complete_folder(later) == contracts.read(modes / f"full-{layout}")
    for name in (output_names.INDEX, output_names.CONTRACT):
        assert (later / name).read_bytes() == (modes / f"full-{layout}" / name).read_bytes()
    assert sample_hashes.complete_folder(later) == contracts.read(later)


def test_an_index_without_hashes_is_read_if_the_contract_says_so(tmp_path: Path) -> None:
    shards = toy(tmp_path, "fast")
    assert len(shard_index.read_index(shards)) == 8
    contracts.write(shards, dataclasses.replace(contracts.read(shards), hash="full"))
    with pytest.raises(SourceError, match="has no column 'sha256'"):
        shard_index.read_index(shards)


def test_the_option_and_wrong_modes(source: Path, tmp_path: Path) -> None:
    made = sgdata.shard("bigearthnet", source=[source], edition="v1", out=tmp_path / "o", hash="fast")
    assert isinstance(made, pack.PackResult) and made.contract.hash == "fast"
    with pytest.raises(SettingError, match=r"'hash' is '[a-z0-9]+': expected one of 'full', 'fast'"):
        sgdata.shard("bigearthnet", source=[source], edition="v1", out=tmp_path / "o", hash="none")
    document = json.loads((tmp_path / "o" / output_names.CONTRACT).read_bytes())
    (tmp_path / "o" / output_names.CONTRACT).write_text(json.dumps(document | {"hash": "md5"}))
    with pytest.raises(SettingError, match=r"'hash' is '[a-z0-9]+': expected one of 'full', 'fast'"):
        contracts.read(tmp_path / "o")


def test_runs_resume_in_their_own_mode(source: Path, tmp_path: Path) -> None:
    out = packed(source, tmp_path / "o", "fast", shard_mb=1)
    expected = (out / output_names.SUMS).read_bytes()
    with pytest.raises(OutputError, match=r"shards of another recipe \(hash fast, now default\)"):
        packed(source, out, "full", shard_mb=1)
    for name in (output_names.SUMS, output_names.INDEX, "bigearthnet-all-000000.tar"):
        (out / name).unlink()
    packed(source, out, "fast", shard_mb=1)
    assert (out / output_names.SUMS).read_bytes() == expected
    # Of a run that was killed, only the journal tells the mode.
    (out / output_names.RECIPE).unlink()
    packed(source, out, "full", shard_mb=1)
    assert "sha256" in shard_index.read_index(out).column_names
    assert verification.verify(out) == []


# --- what reads it -------------------------------------------------------------------------


def test_differences_between_modes(modes: Path, tmp_path: Path) -> None:
    for before in ("full-native", "fast-native", "fast-resampled"):
        found = difference.compare(modes / before, modes / "fast-resampled")
        assert found.changes == ()
        assert found.settings == ({"hash": ("'full'", "'fast'")} if before == "full-native" else {})
    one, two = toy(tmp_path / "one", "fast"), tmp_path / "two"
    made = [synthetic_shards.sample(n, "train" if n < 6 else "val", 32, 32) for n in range(8)]
    made[3].arrays["image"][0, 0, 0] += 1
    write_shards.write(made, two, contract=dataclasses.replace(synthetic_shards.contract(32), hash="fast"))
    (change,) = difference.compare(one, two).changes
    assert (change.what, change.examples) == ("samples with other pixels", ("toy-00003",))


def test_joins_of_both_modes(tmp_path: Path) -> None:
    one, two, again = (toy(tmp_path / name, "full", first) for name, first in (("a", 0), ("b", 10), ("c", 20)))
    fast = toy(tmp_path / "fast", "fast", 10)
    linked = join_shards.join([one, fast, again], tmp_path / "linked")
    assert linked.hash == "fast"
    assert "sha256" not in shard_index.read_index(tmp_path / "linked").column_names
    assert len(loader.Samples(tmp_path / "linked", "train", ("image", "mask")).keys) == 18
    # Copies are for releases, which have hashes.
    assert join_shards.join([one, fast], tmp_path / "copied", copy=True).hash == "full"
    join_shards.join([one, two], tmp_path / "expected", copy=True)
    for name in (output_names.INDEX, output_names.CONTRACT, output_names.SUMS):
        assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_an_audit_finds_exact_copies(tmp_path: Path) -> None:
    made = [synthetic_shards.sample(0, split, 32, 32) for split in ("train", "val")]
    made[1] = dataclasses.replace(made[1], key="copy")
    write_shards.write(made, tmp_path, contract=dataclasses.replace(synthetic_shards.contract(32), hash="fast"))
    report = checks.run_checks(collect_evidence.collect_evidence(collect_evidence.detect_subject(tmp_path)))
    (check,) = [one for one in report.checks if one.name == "exact duplicates"]
    assert check.state == "finding"
    assert "copy" in " ".join(check.where)


def test_a_release_has_the_hashes(modes: Path, tmp_path: Path) -> None:
    made = {}
    for mode in ("fast", "full"):
        shards, register = [modes / f"{mode}-native"], tmp_path / f"catalogue-{mode}"
        made[mode] = sgdata.release(
            "tiny", "1.0", shards, out=tmp_path / mode, private=True, register=register, date="2026-11-30"
        )
    sums = {mode: files.read_sums(folder) for mode, folder in made.items()}
    assert {name for name in sums["full"] if sums["full"][name] != sums["fast"][name]} == {output_names.RECIPE}
    assert verification.verify(made["fast"]) == []
    assert contracts.read(made["fast"]).hash == "full"
    # The shards themselves are as before.
    assert verification.verify(modes / "fast-native") == []
    assert contracts.read(modes / "fast-native").hash == "fast"


def test_a_damaged_sample_is_not_released(source: Path, tmp_path: Path) -> None:
    shards = packed(source, tmp_path / "o", "fast")
    tar = shards / "bigearthnet-all-000000.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(SourceError, match="is damaged: member image: CRC-32"):
        sample_hashes.complete_folder(shards)


def test_the_page_says_that_there_are_no_hashes(modes: Path, tmp_path: Path) -> None:
    for mode in ("fast", "full"):
        sgdata.show(modes / f"{mode}-resampled", out=tmp_path / mode)
        page = "".join(path.read_text() for path in (tmp_path / mode).rglob("*.html"))
        assert ("none (packed with --hash fast)" in page) == (mode == "fast")


def test_training_names_the_mode_where_it_matters(tmp_path: Path) -> None:
    fast, full = (contracts.read(toy(tmp_path / mode, mode)) for mode in ("fast", "full"))
    for purpose in ("fine-tune", "predict"):
        contracts.require(fast, full, purpose)
    with pytest.raises(SettingError, match=r"fingerprint is .*; hash is 'fast', expected 'full'"):
        contracts.require(fast, full, "resume")
    assert mixture._together([full, fast], [0.5, 0.5], ["train", "train"]).hash == "fast"
    assert mixture._together([full, full], [0.5, 0.5], ["train", "train"]).hash == "full"


@pytest.mark.slow
def test_training_on_shards_without_hashes(tmp_path: Path) -> None:
    """Losses are those of shards with hashes, and a run resumes."""
    losses = []
    for mode in ("fast", "full"):
        toy(tmp_path / mode, mode, train=4)
        words = ["pretrain", "pretrain-demo-tiny", "--shards", tmp_path / mode, "--out", tmp_path / f"run-{mode}"]
        words += ["--threads", "1", "--set", "training.batch=2", "--set", 'accept=["normalisation"]']
        assert sgmodel(*words, "--set", "training.epochs=1") == 0
        rows = [json.loads(line) for line in (tmp_path / f"run-{mode}" / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == losses[1] and np.isfinite(losses[0]).all()
    assert files.read_plain(tmp_path / "run-fast" / output_names.CONTRACT)["hash"] == "fast"
