from __future__ import annotations

import contextlib
import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgdata import files, output_names, sentinel2, verification
from sgdata.errors import SourceError
from sgdata.shards import array_codec, contracts, sample_hashes, shard_index, tar_format, write_shards
from sgdata.types import CONTRACT_FORMAT, Array, Codec, Contract, Effort, LabelSpace, Sample

CONTRACT = Contract(
    format=CONTRACT_FORMAT,
    dataset="toy",
    version="1",
    bands=sentinel2.bands(("B02", "B03")),
    level="L2A",
    scale=1e-4,
    offset=0.0,
    nodata=0,
    resampling="none",
    resampling_version=1,
    shape=None,
    label_space=LabelSpace(name="toy", task="segmentation", ids=(0, 1), names=("no", "yes"), ignore=255),
    statistics={},
    splits={},
    fingerprint="",
)


def sample(number: int, split: str = "train", size: int = 8) -> Sample:
    rng = np.random.default_rng(number)
    arrays: dict[str, Array] = {
        "image": rng.integers(0, 4000, (2, size, size), dtype=np.uint16),
        "mask": rng.integers(0, 2, (size, size), dtype=np.uint8),
    }
    meta = {"bounds": [11.0, 48.0, 11.0 + number / 10, 48.1], "labels": [number], "crs": "EPSG:32632"}
    return Sample(key=f"place_{number:03d}", split=split, arrays=arrays, meta=meta)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.float32, np.int32]), st.tuples(*[st.integers(1, 9)] * 3)),
    st.sampled_from(["blosc", "npy"]),
    st.sampled_from(["quick", "dense"]),
)
def test_decode_undoes_encode(array: Array, codec: Codec, effort: Effort) -> None:
    content = array_codec.encode(array, codec, effort)
    assert array_codec.encode(np.asfortranarray(array), codec, effort) == content
    back = array_codec.decode(content, array.shape, array.dtype.name, codec)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    out = np.zeros_like(array)
    assert array_codec.decode(memoryview(content), array.shape, array.dtype.name, codec, out=out) is out
    np.testing.assert_array_equal(out, array)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(["blosc", "npy"]))
def test_damaged_members_are_source_errors_or_other_pixels_but_never_more(data: st.DataObject, codec: Codec) -> None:
    array = np.arange(3 * 40 * 40, dtype=np.uint16).reshape(3, 40, 40)
    content = bytearray(array_codec.encode(array, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    with contextlib.suppress(SourceError):
        assert array_codec.decode(bytes(content), array.shape, "uint16", codec).shape == array.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bitshuffle_uses_the_item_size(dtype: type) -> None:
    rows, cols = np.mgrid[:120, :120]
    smooth = (100 + 20 * np.sin(rows / 9) + 20 * np.cos(cols / 11)).astype(dtype)
    chunk = array_codec.encode(smooth, "blosc")
    flags, itemsize = chunk[2], chunk[3]
    assert itemsize == smooth.itemsize
    assert flags & 0b100, "Blosc1 header: bit 2 says bitshuffle"
    assert len(chunk) < 0.8 * smooth.nbytes


def test_a_member_with_other_content_is_refused() -> None:
    for codec in ("blosc", "npy"):
        content = array_codec.encode(np.zeros((2, 4, 4), np.uint16), codec)
        with pytest.raises(SourceError, match=r"uint16 \(2, 4, 5\)"):
            array_codec.decode(content, (2, 4, 5), "uint16", codec)
    with pytest.raises(TypeError):
        array_codec.decode(
            array_codec.encode(np.zeros((4, 4), np.uint8), "blosc"),
            (4, 4),
            "uint8",
            "blosc",
            np.zeros((8, 8), np.uint8)[::2, ::2],
        )
    with pytest.raises(SourceError, match="float64"):
        array_codec.encode(np.zeros(3), "blosc")


def test_written_samples_are_read_and_indexed(tmp_path: Path) -> None:
    made = [sample(number, "val" if number == 2 else "train", 8 + number) for number in (3, 1, 2)]
    complete = write_shards.write(made, tmp_path, contract=CONTRACT)
    assert complete == contracts.read(tmp_path)
    assert complete.splits == {"train": 2, "val": 1}
    assert complete.shape is None
    assert complete.statistics["B02"].count == sum(np.count_nonzero(s.arrays["image"][0]) for s in (made[0], made[1]))

    table = shard_index.read_index(tmp_path)
    assert table["key"].to_pylist() == ["place_001", "place_003", "place_002"]
    for row, back in zip(table.to_pylist(), tar_format.samples(tmp_path), strict=True):
        original = next(s for s in made if s.key == row["key"])
        assert back.meta == original.meta
        for name, array in original.arrays.items():
            np.testing.assert_array_equal(back.arrays[name], array)
            assert (row[f"{name}_dtype"], row[f"{name}_shape"]) == (array.dtype.name, list(array.shape))
        assert row["labels"] == original.meta["labels"]
        assert row["sha256"] == sample_hashes.sample_hash(back)


def test_the_index_is_geoparquet(tmp_path: Path) -> None:
    import geopandas

    write_shards.write([sample(1), sample(2)], tmp_path, contract=CONTRACT)
    frame = geopandas.read_parquet(tmp_path / output_names.INDEX)
    assert frame.crs == "EPSG:4326"
    np.testing.assert_allclose(frame.total_bounds, [11.0, 48.0, 11.2, 48.1])
    assert (
        json.loads(pq.read_schema(tmp_path / output_names.INDEX).metadata[b"geo"])["columns"]["geometry"]["encoding"]
        == "WKB"
    )


def test_the_tar_is_plain_ustar_without_clock_or_user(tmp_path: Path) -> None:
    write_shards.write([sample(1)], tmp_path, contract=CONTRACT)
    with tarfile.open(tmp_path / "toy-train-000000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            f"place_001.{e}" for e in ("image.blosc", "label.json", "mask.blosc", "meta.json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_effort_changes_bytes_and_nothing_else(tmp_path: Path) -> None:
    """Dense shards of blocks, such as bands of 60 m have, are smaller, and their data is the same."""
    rng = np.random.Generator(np.random.Philox(key=5))
    ground = rng.normal(1500, 300, (2, 16, 16)).repeat(6, 1).repeat(6, 2)
    made = [Sample(key="a", split="train", arrays={"image": ground.astype(np.uint16)}, meta={})]
    quick, dense = (
        write_shards.write(made, tmp_path / effort, contract=CONTRACT, effort=effort)  # type: ignore[arg-type]
        for effort in ("quick", "dense")
    )
    assert quick == dense
    (one,) = tar_format.samples(tmp_path / "dense")
    np.testing.assert_array_equal(one.arrays["image"], made[0].arrays["image"])
    sizes = {
        effort: shard_index.read_index(tmp_path / effort)["image_size"][0].as_py() for effort in ("quick", "dense")
    }
    assert sizes["dense"] < sizes["quick"]


@pytest.mark.parametrize("codec", ["blosc", "npy"])
def test_equal_samples_give_equal_bytes(tmp_path: Path, codec: Codec) -> None:
    for name, numbers in (("a", (1, 2, 3)), ("b", (3, 1, 2))):
        write_shards.write([sample(number) for number in numbers], tmp_path / name, contract=CONTRACT, codec=codec)
    assert (tmp_path / "a" / output_names.SUMS).read_bytes() == (tmp_path / "b" / output_names.SUMS).read_bytes()


# webdataset leaves the tar to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_alone_reads_them(tmp_path: Path) -> None:
    import torch
    import webdataset

    made = [sample(number, size=8 + number) for number in (1, 2)]
    write_shards.write(made, tmp_path, contract=CONTRACT)
    url = str(tmp_path / "toy-train-000000.tar")
    plain = webdataset.WebDataset(url, shardshuffle=False).decode(tar_format.decode_member)
    rows = list(torch.utils.data.DataLoader(plain, batch_size=None))
    assert [row["__key__"] for row in rows] == ["place_001", "place_002"]
    for row, original in zip(rows, made, strict=True):
        np.testing.assert_array_equal(row["image.blosc"], original.arrays["image"])
        np.testing.assert_array_equal(row["mask.blosc"], original.arrays["mask"])
        assert row["label.json"]["labels"] == original.meta["labels"]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    made = [sample(number) for number in (1, 2)]
    write_shards.write(made, tmp_path / "s", contract=CONTRACT)
    tars = [str(path) for path in sorted((tmp_path / "s").glob("*.tar"))]
    rows = list(datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True))
    assert [row["__key__"] for row in rows] == ["place_001", "place_002"]
    for row, original in zip(rows, made, strict=True):
        image = tar_format.decode_member("image.blosc", row["image.blosc"])
        np.testing.assert_array_equal(image, original.arrays["image"])


@pytest.mark.filterwarnings("ignore")
def test_energon_reads_them(tmp_path: Path) -> None:
    """The preparation of energon indexes the tars unchanged; it adds `.nv-meta` and an `.idx` per tar."""
    energon = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    made = [sample(number, split="train" if number < 4 else "val") for number in range(1, 6)]
    write_shards.write(made, tmp_path, contract=CONTRACT)
    found = WebdatasetPreparator.prepare_dataset(
        tmp_path,
        sorted(path.name for path in tmp_path.glob("*.tar")),
        split_parts_patterns=[("train", ".*-train-.*"), ("val", ".*-val-.*")],
        workers=1,
    )
    assert found == {"image.blosc", "mask.blosc", "label.json", "meta.json"}
    description = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (tmp_path / ".nv-meta" / "dataset.yaml").write_text(description)

    @energon.stateless
    def cooked(row: dict[str, object]) -> dict[str, object]:
        return {**energon.basic_sample_keys(row), "bytes": row["image.blosc"]}

    class Reading(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        decoder = None
        cookers = (energon.Cooker(cooked),)

    data = energon.get_train_dataset(
        tmp_path, worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0), batch_size=None,
        shuffle_buffer_size=None, max_samples_per_sequence=None, task_encoder=Reading(), repeat=False,
    )  # fmt: skip
    rows = {row["__key__"].rpartition("/")[2]: row["bytes"] for row in energon.get_loader(data)}
    assert rows.keys() == {each.key for each in made if each.split == "train"}
    for each in made[:3]:
        np.testing.assert_array_equal(tar_format.decode_member("image.blosc", rows[each.key]), each.arrays["image"])
    assert all(description.endswith(".tar.idx: not listed") for description in verification.verify(tmp_path))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.float32, np.int32]), hnp.array_shapes(max_dims=4, max_side=6))
)
def test_a_member_is_decoded_alone(array: Array) -> None:
    member = array_codec.encode(array, "blosc") + array_codec.trailer(array)
    back = tar_format.decode_member(".image.blosc", member)
    assert back is not None
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert tar_format.decode_member(".meta.json", b"{}") is None
    for cut in (0, 5, 20, len(member) - 1):
        with pytest.raises(SourceError):
            tar_format.decode_member(".image.blosc", member[:cut])


@pytest.mark.parametrize("key", ["a.b", "../a", "a/b", "", "ä", "x" * 81])
def test_a_key_that_a_tar_could_twist_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SourceError, match="sample key"):
        write_shards.write([dataclasses.replace(sample(1), key=key)], tmp_path, contract=CONTRACT)
    assert not list(tmp_path.glob("*.tar"))


def test_no_sample_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not one sample"):
        write_shards.write([], tmp_path, contract=CONTRACT)


def test_a_missing_or_damaged_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        shard_index.read_index(tmp_path)
    (tmp_path / output_names.INDEX).write_bytes(b"PAR1 no")
    files.write_sums(tmp_path)
    with pytest.raises(SourceError, match="not a readable Parquet"):
        shard_index.read_index(tmp_path)
