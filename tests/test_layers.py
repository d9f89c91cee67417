"""The shape of the house: who may import whom, no cycle, and the budget of sizes, read from the source."""

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

# A module may import from its own row or from a row above; a name that is not here belongs to the row of its folder.
LAYERS = (
    ("types", "errors", "sentinel2"),
    ("files", "catalog", "progress", "pool"),
    (
        "grid",
        "resample",
        "composite",
        "labels",
        "tags",
        "blocks",
        "statistics",
        "histogram",
        "fingerprints",
        "twins",
        "contracts",
        "offsets",
        "masks",
        "areas",
        "nearness",
        "audit",
        "checks",
    ),
    (
        "rasters",
        "signing",
        "product",
        "stac",
        "osm",
        "overpass",
        "shards",
        "sealing",
        "patches",
        "verify",
        "archives",
        "tiffs",
        "lock",
        "fetch",
    ),
    ("classes", "staging", "observe", "builds", "annotate", "passes"),
    ("datasets", "simulate"),
    ("listing",),
    ("packing", "clouds", "page", "auditor", "splitting", "croissant", "release", "show"),
    ("demo", "demo_score", "console", "cli"),
)
PURE = (
    "types",
    "errors",
    "sentinel2",
    "grid",
    "resample",
    "composite",
    "labels",
    "tags",
    "blocks",
    "statistics",
    "histogram",
    "fingerprints",
    "twins",
    "offsets",
    "masks",
    "areas",
    "nearness",
    "checks",
)
EDGE_LIBRARIES = {
    "rasterio",
    "requests",
    "pystac",
    "pystac_client",
    "osmnx",
    "osmium",
    "shutil",
    "subprocess",
    "socket",
}
FROM_SGDATA = {
    *("types", "errors", "sentinel2", "files", "catalog", "pool", "progress", "contracts", "audit"),
    *("shards", "rasters", "page", "show"),
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not is_type_checking(node) and (inside_functions or not isinstance(node, ast.FunctionDef)):
            pending.extend(ast.iter_child_nodes(node))


def imports(module: str, *, inside_functions: bool = True) -> set[str]:
    """Dotted names that `module` imports; `from a import b` counts as a.b where that is a module of ours."""
    found = set()
    for node in statements(ast.parse(MODULES[module].read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{module} imports relatively; write the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return found


def row(module: str) -> int:
    name = module.split(".")[1]
    rows = [index for index, names in enumerate(LAYERS) if name in names]
    assert rows, f"{module} stands in no layer of test_layers.LAYERS; give it its row"
    return rows[0]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("sgdata.")))
def test_imports_point_down(module: str) -> None:
    above = {
        other
        for other in imports(module)
        if other in MODULES and other.startswith("sgdata.") and row(other) > row(module)
    }
    assert not above, f"{module} imports {sorted(above)} from a higher layer"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_imports_a_root_a_program_or_the_command_line(module: str) -> None:
    names = imports(module)
    assert not names & {"sgdata", "sgmodel", "sgdata.cli"}
    assert not {name for name in names if name.startswith("sgmodel.recipes.")} or module.startswith("sgmodel.recipes.")


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_edge(name: str) -> None:
    module = f"sgdata.{name}"
    if module not in MODULES:
        pytest.skip(f"{module} does not exist yet")
    assert not {top.split(".")[0] for top in imports(module)} & EDGE_LIBRARIES


def test_sgdata_knows_no_torch_and_no_sgmodel() -> None:
    wrong = {m: imports(m) for m in MODULES if m.startswith("sgdata.")}
    assert not [m for m, names in wrong.items() if {n.split(".")[0] for n in names} & {"torch", "sgmodel", "timm"}]


def test_sgmodel_takes_only_what_needs_no_gdal() -> None:
    for module in (m for m in MODULES if m.startswith("sgmodel.")):
        taken = {n.split(".")[1] for n in imports(module) if n.startswith("sgdata.")}
        assert taken <= FROM_SGDATA, f"{module} imports {sorted(taken - FROM_SGDATA)}"


def test_datasets_do_not_import_each_other() -> None:
    for module in (m for m in MODULES if m.startswith("sgdata.datasets.")):
        assert not {n for n in imports(module) if n.startswith("sgdata.datasets.")}


@cache
def reach(module: str) -> frozenset[str]:
    """What importing `module` imports, itself included: not what functions or types alone ask for."""
    found, pending = {module}, [module]
    while pending:
        below = {name for name in imports(pending.pop(), inside_functions=False) if name in MODULES} - found
        found |= below
        pending.extend(below)
    return frozenset(found)


@cache
def depth(module: str) -> int:
    return 1 + max((depth(name) for name in direct(module)), default=0)


def direct(module: str) -> set[str]:
    return {name for name in imports(module, inside_functions=False) if name in MODULES} - {module}


def test_there_is_no_cycle() -> None:
    assert not [m for m in MODULES if any(m in reach(name) for name in direct(m))]


def test_imports_stay_shallow() -> None:
    deepest = max(MODULES, key=depth)
    assert depth(deepest) <= 8, f"{deepest} stands on a chain of {depth(deepest)} modules: cut one edge of it"
    mean = sum(len(reach(module)) for module in MODULES) / len(MODULES)
    # The house wants 7; the programs, each of which is made of some forty modules, are what lies above it.
    assert mean <= 9, f"a module reaches {mean:.2f} on average: import less, or pass it in"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_sizes_stay_inside_the_budget(module: str) -> None:
    source = MODULES[module].read_text()
    assert len(source.splitlines()) <= 450, f"{module} is too long: split it by idea"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 80, f"{module}.{node.name} is too long"
            assert len(every) <= 9 or module == "sgdata.cli", f"{module}.{node.name} takes {len(every)} parameters"


def test_no_grab_bags() -> None:
    assert not {m for m in MODULES if m.rpartition(".")[2] in {"util", "utils", "common", "misc", "helpers", "tools"}}
