"""Check the structure of both packages: import direction between folders, cycles, and size budgets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("sgdata", "sgmodel")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}

# A folder may import from folders of its own row or of a row above it. "" means the modules at the root of the
# package, except those that name a row of their own.
LAYERS = {
    "sgdata": (
        ("",),
        ("display",),
        ("remote",),
        ("rasters",),
        ("scenes", "shards", "results"),
        ("splits", "staging", "labels"),
        ("composite",),
        ("builds", "simulation"),
        ("datasets",),
        ("packing",),
        ("audits",),
        ("pages",),
        ("releases",),
        ("demo",),
        ("commands", "cli"),
    ),
    "sgmodel": (
        ("",),
        ("models",),
        ("data",),
        ("checkpoints",),
        ("train", "inference", "timm_models"),
        ("ledger",),
        ("commands",),
        ("recipes",),
        ("cli",),
    ),
}
# Pure modules take data and return data: they open no file, socket or process.
PURE = (
    *("types", "errors", "earth", "sentinel2", "rasters.grids", "rasters.resample", "rasters.dihedral"),
    *(
        "rasters.cells",
        "composite.rules",
        "composite.kernels",
        "composite.cloud_masks",
        "labels.rasterize",
        "labels.tag_rules",
        "scenes.offsets",
    ),
    *("scenes.aoi", "splits.block_split", "splits.shared_ground", "splits.ground_splits", "splits.ground_distance"),
    *(
        "shards.statistics",
        "shards.histogram",
        "shards.band_check",
        "audits.duplicates",
        "audits.checks",
        "audits.evidence",
    ),
)
EDGE_LIBRARIES = {
    *("rasterio", "requests", "pystac", "pystac_client", "osmnx", "osmium", "shutil", "subprocess", "socket"),
}
# What training may import of sgdata: nothing that needs GDAL. Prediction alone reads and writes rasters.
WITHOUT_GDAL = {"", "display", "remote", "shards", "results", "splits", "pages", "audits"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, *, inside_functions: bool, type_checking: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_type_checking(node) and not type_checking:
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef):
            pending.extend(ast.iter_child_nodes(node))


@cache
def imports(module: str, *, inside_functions: bool = True, type_checking: bool = False) -> frozenset[str]:
    """Return the dotted names that `module` imports; `from a import b` is a.b if that is a module of the packages."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    for node in statements(tree, inside_functions=inside_functions, type_checking=type_checking):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{module} imports relatively; write the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return frozenset(found)


def folder(module: str) -> str:
    """Return the row name of `module`: its folder, "" at the root, or its own name where a row lists it."""
    package, *rest = module.split(".")
    if len(rest) > 1:
        return rest[0]
    return rest[0] if any(rest[0] in row for row in LAYERS[package]) else ""


def row(module: str) -> int:
    package = module.split(".")[0]
    rows = [index for index, names in enumerate(LAYERS[package]) if folder(module) in names]
    assert rows, f"{module} is in no row of test_layers.LAYERS; add its folder"
    return rows[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    package = module.split(".")[0]
    above = {
        other
        for other in imports(module)
        if other in MODULES and other.startswith(f"{package}.") and row(other) > row(module)
    }
    assert not above, f"{module} imports {sorted(above)} from a row below its own"


def test_folders_have_no_cycle() -> None:
    edges = {
        (f"{module.split('.')[0]}.{folder(module)}", f"{other.split('.')[0]}.{folder(other)}")
        for module in MODULES
        for other in imports(module)
        if other in MODULES
    }
    pending = {name for edge in edges for name in edge}
    while free := {name for name in pending if not {b for a, b in edges if a == name and b != name} & pending}:
        pending -= free
    assert not pending, f"folders that import each other: {sorted(pending)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_a_root_a_program_or_the_command_line(module: str) -> None:
    names = imports(module)
    assert not names & {"sgdata", "sgmodel", "sgdata.cli"}
    programs = {name for name in names if name.startswith("sgmodel.recipes.")}
    # The GPU check times the programs' own steps.
    allowed = module == "sgmodel.cli" or module.startswith("sgmodel.recipes.")
    assert not programs or allowed


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_edge(name: str) -> None:
    assert not {top.split(".")[0] for top in imports(f"sgdata.{name}")} & EDGE_LIBRARIES


def test_sgdata_imports_neither_torch_nor_sgmodel() -> None:
    data = (module for module in MODULES if module.startswith("sgdata."))
    assert not [m for m in data if {n.split(".")[0] for n in imports(m)} & {"torch", "sgmodel", "timm"}]


def test_sgmodel_imports_only_modules_without_gdal() -> None:
    for module in (m for m in MODULES if m.startswith("sgmodel.")):
        allowed = WITHOUT_GDAL | ({"rasters"} if "inference" in module else set())
        # The ledger compares split lists and names what to pack, with modules that open no raster.
        if module in ("sgmodel.ledger.published_figures", "sgmodel.ledger.missing_data"):
            allowed = allowed | {"packing", "datasets"}
        taken = {n for n in imports(module) if n in MODULES and n.startswith("sgdata.")}
        assert {folder(n) for n in taken} <= allowed, f"{module} imports {sorted(taken)}"


def test_datasets_do_not_import_each_other() -> None:
    names = ("types", "cards", "build_patches", "archives", "download", "sample_tables", "table_rasters")
    shared = {f"sgdata.datasets.{name}" for name in names}
    for module in (m for m in MODULES if m.startswith("sgdata.datasets.") and not m.endswith(".readers")):
        assert not {n for n in imports(module) if n.startswith("sgdata.datasets.")} - shared


@cache
def reach(module: str, *, every: bool = False) -> frozenset[str]:
    """Return the modules that importing `module` imports, itself included; `every` as in `direct`."""
    found, pending = {module}, [module]
    while pending:
        below = direct(pending.pop(), every=every) - found
        found |= below
        pending.extend(below)
    return frozenset(found)


@cache
def depth(module: str) -> int:
    return 1 + max((depth(name) for name in direct(module)), default=0)


def direct(module: str, *, every: bool = False) -> set[str]:
    """Return the project's modules that `module` imports; `every` adds imports in functions and for type checkers."""
    names = imports(module, inside_functions=every, type_checking=every)
    return {name for name in names if name in MODULES} - {module}


def test_modules_have_no_cycle_even_inside_functions() -> None:
    def circular(module: str) -> bool:
        return any(module in reach(name, every=True) for name in direct(module, every=True))

    assert not [module for module in MODULES if circular(module)]


def test_imports_stay_shallow() -> None:
    deepest = max(MODULES, key=depth)
    # 3 above the target of 8: openers of scene files, one module each, the reader of ranges below them, and the cells
    # that are read above.
    assert depth(deepest) <= 11, f"{deepest} is at the end of a chain of {depth(deepest)} imports: cut one edge of it"
    mean = sum(len(reach(module)) for module in MODULES) / len(MODULES)
    # The target is 8; the training programs, each of which needs some forty modules, are what exceeds it.
    # 1 above the 9 of before: file names, addresses, access and limits, which every module that meets foreign data
    # checks with. Another 0.3 for scoring by the maps of prediction and for early stopping, and 0.3 for reducing
    # tokens and counting FLOPs, which every program needs; 0.3 for frozen features, detectors of pixels and the
    # distance of scored samples, 0.5 for the names of output files in a module of their own, and 0.3 for several
    # places, names of data and progress of long jobs; 0.6 for openers of scene files and modules that were split;
    # 0.5 for cells and kept headers; 0.2 for the size of the Earth in one place, which grids need.
    assert mean <= 13.6, f"a module reaches {mean:.2f} on average: import less, or pass it in"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_sizes_stay_inside_the_budget(module: str) -> None:
    source = MODULES[module].read_text()
    assert len(source.splitlines()) <= 450, f"{module} is too long: split it by idea"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 80, f"{module}.{node.name} is too long"
            assert len(every) <= 9 or ".commands" in module, f"{module}.{node.name} takes {len(every)} parameters"


def test_no_grab_bags() -> None:
    assert not {m for m in MODULES if m.rpartition(".")[2] in {"util", "utils", "common", "misc", "helpers", "tools"}}


def test_a_name_of_a_class_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert len(places) > 200
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
