"""Test untrusted names as file names: properties of the function, and a search of the code for joins that bypass it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata import safe_names
from sgdata.errors import SourceError
from sgdata.safe_names import file_name

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = (
    *("", ".", "..", "...", "/", "../x", "a/../../b", "/etc/passwd", "a\\b", "C:\\x", "\0", "a\nb", "\x1b[31mred"),
    *(".hidden", "-rf", "trailing.", "trailing ", " leading", "a~b", "con", "NUL.txt", "x" * 4096, "ä" * 150),
    *("a\u202eb", "e\u0301", "\ud800", "a\u2028b", "?x=1", "%2e%2e%2f", "a|b", 'a"b', "<b>", "a:b", "~root", "$HOME"),
)
texts = st.text(st.characters(exclude_categories=()), max_size=300) | st.sampled_from(HOSTILE)
ordinary = st.text(st.sampled_from("abcXYZ019_-.+=,@() äß"), min_size=1, max_size=90)


@given(texts)
def test_any_text_becomes_the_name_of_one_file(text: str) -> None:
    name = file_name(text)
    assert 1 <= len(name.encode()) <= 200
    assert name == Path(name).name
    assert name.strip(". ") == name
    assert not name.startswith("-")
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|%#&;$`')
    # Its own reader takes it, and it is its own file name only if it was ordinary.
    assert safe_names.is_safe(name)


@given(st.lists(texts | ordinary, unique=True, min_size=2, max_size=30))
def test_different_names_have_different_files(names: list[str]) -> None:
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    # Nor does the file of one name have the name of another.
    again = {file_name(name) for name in made if name not in names}
    assert not again & set(made)


def test_close_names_have_different_files() -> None:
    names = [
        "a/b",
        "a_b",
        "a\\b",
        "a:b",
        "x" * 200,
        "x" * 201,
        "x" * 202,
        "\xe9",
        "e\u0301",
        "a~b",
        "a",
        "a.",
        "a .",
        "",
    ]
    assert len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "S2A_32UPU_20190407_0_L2A", "S2B_MSIL2A_20200101T101319_N0213_R022_T32TQM_20200101T114306.SAFE", "train",
        "segmunich-train-000000", "River_1", "a.b.c", "München (Nord)", "x" * 200, "1+1=2,@home",
    ],
)  # fmt: skip
def test_ordinary_names_stay(name: str) -> None:
    assert file_name(name) == name


def test_reserved_names_are_changed() -> None:
    assert file_name("collection") == "collection"
    assert file_name("collection", reserved=("collection",)) not in ("collection", "")


def test_a_member_is_a_file_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (tmp_path / "secret.tar").write_text("x")
    (folder / "one.tar").write_text("x")
    made = f"{file_name('../x')}.tar"
    (folder / made).write_text("x")
    assert safe_names.member(folder, "one.tar").read_text() == "x"
    assert safe_names.member(folder, made).read_text() == "x"
    os.mkfifo(folder / "pipe.tar")
    for name in ("../secret.tar", str(tmp_path / "secret.tar"), "..", ".", "", "pipe.tar", "absent.tar", "a/b.tar"):
        with pytest.raises(SourceError, match="expected"):
            safe_names.member(folder, name)


@given(st.lists(texts | ordinary, unique=True, min_size=2, max_size=30))
def test_any_text_is_a_part_of_keys(names: list[str]) -> None:
    parts = [safe_names.key_part(name) for name in names]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,65}", part) for part in parts)
    assert len(set(parts)) == len(names)


def test_parts_of_keys_are_readable() -> None:
    assert safe_names.key_part("segmunich") == "segmunich"
    assert re.fullmatch(r"M-nchen-Nord-[0-9a-f]{12}", safe_names.key_part("München (Nord)"))


def test_endings_are_appended() -> None:
    assert safe_names.with_ending(Path("a/b.c.d"), ".bin") == Path("a/b.c.d.bin")


# --- joins in the code ---------------------------------------------------------------------

# Variables and attributes that are folders: a join to anything else with `/` is a division.
FOLDERS = {
    *("out", "folder", "path", "root", "source", "parent", "build", "run", "here", "store", "scratch", "target"),
    *("scratch_folder", "new", "last", "old", "register", "staging", "final", "masks", "weights", "package", "cache"),
    *("before", "after", "shards", "to", "place", "paths", "inputs", "held", "collection"),
}
# Operands that are safe for a reason that the walk cannot see.
SAFE = {
    "names that files.parse_sums checked: relative, without ..": [
        ("sgdata.verification", "name"), ("sgdata.files", "name"), ("sgdata.releases.assemble", "name"),
    ],
    "constants of our own, in a loop or an argument": [
        ("sgdata.builds.build_folder", "name"), ("sgmodel.train.run_folder", "name"), ("sgdata.package_data", "name"),
        ("sgdata.rasters.zarr_store", "name"),
        ("sgmodel.inference.output_files", "name"), ("sgmodel.recipe_files", "name"),
        ("sgmodel.inference.output_files", "value_file(maps.space.task)"),
        ("sgdata.pages.html", "f'page.{kind}'"),
        ("sgdata.package_data", "f'{name}.tsv'"), ("sgdata.package_data", "f'{name}.json'"),
        ("sgdata.releases.assemble", "f'{material}.txt'"), ("sgdata.releases.export_segmunich", "part"),
        ("sgdata.releases.export_segmunich", "name"), ("sgdata.pool", "f'.cluster-{time.monotonic_ns()}'"),
        ("sgdata.releases.assemble", "name"), ("sgmodel.data.tar_source", "name"),
        ("sgdata.datasets.fmow", "name"), ("sgdata.datasets.bigearthnet", "name"),
        ("sgdata.output_lock", "name"), ("sgdata.status", "name"), ("sgdata.results.open_map", "f'{name}.tif'"),
        ("sgdata.releases.difference", "name"), ("sgdata.releases.place_builds", "name"),
        ("sgdata.rasters.cog", "path.name.removesuffix('.tif') + output_names.STYLE"),
    ],
    "names that the package's own cards and tables give": [
        ("sgdata.packing.split_lists", "f'{dataset}{split_table.SUFFIX}'"), ("sgmodel.ledger.missing_data", "file"),
        ("sgdata.datasets.cards", "f'{name}.toml'"), ("sgdata.datasets.download", "source.file"),
        ("sgdata.datasets.download", "f'.{source.file}.partial'"), ("sgdata.packing.select_samples", "file.file"),
        ("sgdata.packing.select_samples", "name"), ("sgmodel.ledger.experiments", "row.weights"),
        ("sgdata.packing.select_samples", "recipe.dataset"),
    ],
    "names of recipes that the user gives, to be read": [
        ("sgdata.packing.split_lists", "name"), ("sgmodel.ledger.missing_data", "weights"),
        ("sgmodel.ledger.missing_data", "row.weights"),
        ("sgmodel.ledger.experiments", "name"), ("sgmodel.commands", "path.stem"),
        ("sgdata.builds.build_recipe", "f'{name}.toml' if profile == 'clean' else f'{name}-{profile}.toml'"),
        ("sgdata.datasets.pairs", "path"),
        ("sgdata.commands.publish", "f'{path.resolve().name}-page'"),
    ],
    "files of a table of samples that the user gives, to be read": [
        ("sgdata.datasets.pairs", "pair.change"), ("sgdata.datasets.pairs", "name"),
        ("sgdata.datasets.sample_tables", "document.table"), ("sgdata.datasets.sample_tables", "path"),
        ("sgdata.datasets.table_rasters", "row.images[0]"), ("sgdata.datasets.table_rasters", "path"),
        ("sgdata.datasets.table_rasters", "name"),
        ("sgdata.builds.place_list", "text"),
    ],
    "names that file_name or a check made before": [
        ("sgdata.packing.pack", "task.name"), ("sgdata.packing.pack", "f'{task.name}.json'"),
        ("sgdata.packing.tar_spool", "task.name"), ("sgdata.pages.run", "file"), ("sgdata.pages.samples", "file"),
        ("sgdata.releases.assemble", "order.title"), ("sgdata.releases.assemble", "f'.{order.title}.partial'"),
        ("sgdata.releases.assemble", "f'{order.title}.tar'"), ("sgdata.releases.assemble", "f'{order.title}.json'"),
        ("sgdata.shards.write_shards", "tar_format.shard_name(contract.dataset, split, 0)"),
        ("sgmodel.ledger.experiments", "f'{run.folder.name}.log'"), ("sgmodel.checkpoints.weight_files", "part"),
        ("sgdata.shards.shard_index", "shard"), ("sgdata.releases.export_segmunich", "f'{name}.tif'"),
        ("sgdata.builds.pipeline", "name"), ("sgdata.safe_names", "name"), ("sgdata.safe_names", "path.name + ending"),
        ("sgdata.builds.places", "entry.folder"), ("sgdata.shards.join_shards", "_joined_name(number, name)"),
    ],
    "names of files that a listing of the folder found": [
        ("sgdata.datasets.archives", "f'{archive}.zip'"), ("sgdata.datasets.segmunich", "name"),
        ("sgdata.datasets.fmow", "m.name"),
        ("sgdata.files", "n"),
        ("sgdata.rasters.allowed_formats", "f'{file.name}.msk'"),
        ("sgdata.releases.export_segmunich", "f'.{out.name}.partial'"),
    ],
    "a path of a catalogue, which access refuses outside the root": [("sgdata.remote.allowed_addresses", "path")],
    "a name of plain parts below a store, whose file is refused outside of it": [("sgdata.remote.objects", "key")],
    "names of checkpoints, which are constants": [
        ("sgmodel.train.run_folder", "f'.{folder.name}.{suffix}'"),
        ("sgmodel.train.run_folder", "f'.{name}.old'"),
    ],
    "addresses, which scenes open by their own rules": [
        ("sgdata.scenes.search", "asset.href"), ("sgdata.scenes.search", "scene.product"),
    ],
    "a hash of an address": [("sgdata.staging.remote_tiffs", "f'{name}.json'")],
    "numbers": [
        (
            "sgdata.composite.tiles",
            "f'r{window.row:06d}-c{window.col:06d}-{window.height}x{window.width}.npy'",
        )
    ],
    "divisions": [("sgmodel.ledger.reproduce", "workers"), ("sgmodel.models.weight_adaptation", "new")],
}  # fmt: skip
CHECKED = {pair for pairs in SAFE.values() for pair in pairs}
# They make all names themselves.
OWN_DATA = ("sgdata.simulation.", "sgdata.demo.", "sgmodel.gpu_check.")


def joins(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Yield each right operand of a join of paths, and the text of the join."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if isinstance(node.right, ast.JoinedStr) or is_folder(node.left):
                yield node.right, ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"with_name", "joinpath"}:
            yield from ((argument, ast.unparse(node)) for argument in node.args)


def is_folder(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return is_folder(node.left)
    if isinstance(node, ast.Call):
        text = ast.unparse(node.func)
        return text in {"Path", "_root", "package_data.folder", "folder"} or text.endswith((".resolve", ".absolute"))
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in FOLDERS


def is_own(node: ast.expr) -> bool:
    """Return whether an operand is a constant, a safe call, or an f-string of such parts."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.JoinedStr):
        parts = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        return all(is_own(part.value) or is_number(part) for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return is_own(node.left) and is_own(node.right)
    if isinstance(node, ast.Subscript):  # the first digits of a hash
        return isinstance(node.slice, ast.Slice) and is_own(node.value)
    if isinstance(node, ast.Call):
        if ast.unparse(node.func).endswith("path.name.replace"):
            return all(is_own(argument) for argument in node.args)
        return ast.unparse(node.func).endswith(("file_name", "sha256", "getpid", "get_native_id"))
    if isinstance(node, ast.Name | ast.Attribute):
        # A constant of a module, or the name of a file that already has one.
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        return name.isupper() or ast.unparse(node).endswith("path.name")
    return False


def is_number(part: ast.FormattedValue) -> bool:
    return part.format_spec is not None and ast.unparse(part.format_spec).rstrip("'").endswith("d")


def test_every_join_of_paths_uses_a_name_of_our_own() -> None:
    bypassing = []
    for package in ("sgdata", "sgmodel"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if module.startswith(OWN_DATA):
                continue
            for operand, text in joins(ast.parse(path.read_text())):
                if not is_own(operand) and (module, ast.unparse(operand)) not in CHECKED:
                    bypassing.append(f"{module}: {text}")
    assert not bypassing, "\n".join(bypassing)


def test_the_walk_finds_paths_built_from_unchecked_names() -> None:
    bad = (
        "out / f'{scene.id}.tif'",
        "folder / row['shard']",
        "a.with_name(f'{key}.png')",
        "self.out / key",
        "x / f'{k}'",
    )
    good = ("out / f'{file_name(key)}.tif'", "out / 'a' / NAME", "width / count", "path.with_name(path.name + '.x')")
    for text in bad:
        assert any(not is_own(operand) for operand, _ in joins(ast.parse(text))), text
    for text in good:
        assert all(is_own(operand) for operand, _ in joins(ast.parse(text))), text


def test_no_suffix_is_replaced() -> None:
    for package in ("sgdata", "sgmodel"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert ".with_suffix(" not in text, f"{path}: append the ending, with safe_names.with_ending"
            assert ".with_stem(" not in text
