"""Test the documentation: its code runs, its commands parse, its links resolve, its API has docstrings.

A comment before a fenced block says how it is tested:

    <!-- run -->          run with the other such blocks of the page, in order, in a folder of their own
    <!-- run: story -->   run with all such blocks of all pages, in the order of STORY, on one simulated city (slow)
    <!-- run: place -->   the same, with the simulated city in place of a place and a catalogue on the network (slow)
    <!-- not run: why --> parsed only, for the reason given, such as data that cannot be bundled

Every block of shell or Python code has one of these marks.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import sgdata
from sgdata import files
from sgdata.cli import app
from sgdata.shards import shard_index

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
# Each page continues what those before it made.
STORY = (
    "quickstart.md",
    *(
        f"guides/{name}.md"
        for name in ("simulator", "place", "classes", "dataset", "pretrain", "published", "finetune")
    ),
    *(f"guides/{name}.md" for name in ("predict", "publish", "python")),
    "reference/errors.md",
)
BLOCK = re.compile(r"(?:<!-- (run|not run)(?:: (\w[^\n]*?))? -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARKS = ("run", "story", "place", "not run")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its mark ("" or one of MARKS) and its code."""

    language: str
    mark: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    marks = ((each[2] if each[1] == "run" and each[2] else each[1] or "", each) for each in found)
    return [Block(language=each[3], mark=mark, code=each[4]) for mark, each in marks]


def name(page: Path) -> str:
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).as_posix()


def commands(code: str) -> list[str]:
    """Return the commands of a shell block, one per line, without comments."""
    lines = (line.partition("  #")[0].strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


LINES = [(name(page), line) for page in PAGES for block in blocks(page) if block.language == "sh" for line in commands(block.code)]  # fmt: skip # noqa: E501


# --- marks and pictures --------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_code_is_run_or_says_why_not(page: Path) -> None:
    code = [block for block in blocks(page) if block.language in ("sh", "python")]
    assert [block.code for block in code if block.mark not in MARKS] == []
    # Every reason is text: "<!-- not run -->" alone says nothing.
    assert "<!-- not run -->" not in page.read_text(encoding="utf-8")


def test_the_picture_of_the_flow_has_the_folders_of_the_packages() -> None:
    shared = {"rasters", "remote", "display", "results", "pages", "simulation", "demo", "commands", "recipes"}
    folders = {path.parent.name for package in ("sgdata", "sgmodel") for path in (ROOT / package).glob("*/__init__.py")}
    texts = re.findall(r">([^<]+)</text>", (DOCS / "images" / "flow.svg").read_text(encoding="utf-8"))
    drawn = {folder for text in texts for folder in re.findall(r"\b(\w+)/", text)}
    assert drawn == folders - shared


# --- commands parse ------------------------------------------------------------------------


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    known = ("sgdata ", "sgmodel ", "make ", "python ", "python3 -m venv", ". .venv", "pip ", "torchrun ", "dask ", "export DASK_", "sbatch ", "printf ", "cp ")  # fmt: skip # noqa: E501
    assert [line for _, line in LINES if not line.startswith(known)] == []


@cache
def program(script: str) -> Any:
    return get_command(importlib.import_module(f"{script}.cli").app) if script != "sgdata" else get_command(app)


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if each[1].startswith(("sgdata ", "sgmodel "))])
def test_commands_have_the_options_shown(page: str, line: str) -> None:
    script, command, *words = shlex.split(line.partition("||")[0])
    if command == "--help":
        return
    parameters = program(script).commands[command].params
    known = {option for parameter in parameters for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, f"{page}: {line}"
    if script == "sgmodel" and words and re.fullmatch(r"[a-z_]+-[\w-]+|paper|city", words[0]):
        assert list((ROOT / "recipes").glob(f"*/{words[0]}.toml")), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if each[1].startswith("make ")])
def test_make_targets_exist(page: str, line: str) -> None:
    target = shlex.split(line)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: {line}"


def test_modules_and_files_of_commands_exist() -> None:
    for page, line in LINES:
        for module in re.findall(r"-m (sgmodel\.[\w.]+)", line):
            assert importlib.util.find_spec(module), f"{page}: {line}"
        for path in re.findall(r"(?<!\S)(?:recipes|tests|docs)/[\w./-]+", line):
            assert (ROOT / path).exists(), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_and_toml_blocks_parse(page: Path) -> None:
    # A formatter may break the marker of an included file into valid Python that compares two names.
    assert "8 <" not in page.read_text()
    for block in blocks(page):
        if block.language == "python" and "--8<--" not in block.code:
            compile(block.code, name(page), "exec")
        if block.language == "toml":
            tomllib.loads(block.code)


def test_names_of_modules_in_the_text_exist() -> None:
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        for dotted in set(re.findall(r"`(sg(?:data|model)(?:\.\w+)+)`", page.read_text(encoding="utf-8"))):
            assert located(dotted) is not None, f"{name(page)}: {dotted}"


def used_names(code: str) -> set[str]:
    """Return the dotted names of this project that Python code imports, and attributes of what it imports."""
    tree = ast.parse(code)
    origins, names = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origins |= {each.asname or each.name.partition(".")[0]: each.asname and each.name for each in node.names}
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            origins |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            names |= {f"{node.module}.{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"\w+(\.\w+)+", chain := ast.unparse(node)):
            root, _, rest = chain.partition(".")
            if root in origins:
                names.add(f"{origins[root] or root}.{rest}")
    return {name for name in names if name.partition(".")[0] in ("sgdata", "sgmodel")}


def test_names_in_code_exist() -> None:
    """Check blocks that the gate does not run, too: they take the network, a GPU or the slow tests."""
    code = [(name(page), block.code) for page in PAGES for block in blocks(page) if block.language == "python"]
    code += [(path.name, path.read_text()) for path in DOCS.rglob("*.py")]
    used = {(page, dotted) for page, text in code for dotted in used_names(text)}
    assert {("guides/python.md", "sgdata.open_build"), ("own_dataset.py", "sgdata.shards.write_shards.write")} <= used
    assert {each for each in used if located(each[1]) is None} == set()


def test_methods_in_the_text_exist() -> None:
    classes = {
        each.rpartition(".")[2]: node for each in identifiers() if isinstance(node := located(each), ast.ClassDef)
    }
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        for cls, member in re.findall(r"`([A-Z]\w+)\.(\w+)[`(]", page.read_text(encoding="utf-8")):
            if cls in classes:
                assert member in defined(classes[cls], exported=False), f"{name(page)}: {cls}.{member}"


def test_toml_blocks_are_read_as_what_they_document() -> None:
    from sgdata.datasets.pairs import PairPaths
    from sgdata.datasets.sample_tables import SampleDocument
    from sgmodel.ledger import experiments
    from sgmodel.models.factory import ModelRecipe

    kinds = {"tables": experiments.LedgerRecipe, "table": SampleDocument, "change": PairPaths}
    for page in PAGES:
        for document in (tomllib.loads(block.code) for block in blocks(page) if block.language == "toml"):
            if "model" in document:
                files.parse(ModelRecipe, {"backbone": "spectralgpt"} | document["model"], name(page))
                continue
            kind = next(kinds[key] for key in kinds if key in document)
            recipe = files.parse(kind, document, name(page))
            if isinstance(recipe, experiments.LedgerRecipe):
                experiments.check(recipe)
                for table in recipe.tables:
                    used = [table.recipe, *(before.recipe for row in table.rows for before in row.before)]
                    assert all((ROOT / "recipes" / path).is_file() for path in used), name(page)


# --- code runs -----------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `sgdata`, `sgmodel` and `python` are this checkout under this Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for script, start in (("sgdata", "-m sgdata.cli "), ("sgmodel", "-m sgmodel.cli "), ("python", "")):
        path = programs / script
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {start}"$@"\n')
        path.chmod(0o755)
    path_variable = f"{programs}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path_variable, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}


def perform(words: list[str], folder: Path, environment: dict[str, str], codes: tuple[int, ...], where: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )  # fmt: skip
    assert done.returncode in codes, f"{where}: {words[-1]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert not re.search(r"Traceback|Warning", done.stderr), f"{where}: {words[-1]}\n{done.stderr}"
    return done.stdout


# The plan of the paper's ledger counts the memory of 83 models.
LONG_CODE = ("guides/compare.md",)
RUN = [
    pytest.param(page, marks=pytest.mark.long if name(page) in LONG_CODE else (), id=name(page))
    for page in PAGES
    if any(block.mark == "run" for block in blocks(page))
]


@pytest.mark.parametrize("page", RUN)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    run = [block for block in blocks(page) if block.mark == "run"]
    for line in (line for block in run if block.language == "sh" for line in commands(block.code)):
        perform(["sh", "-c", line], tmp_path, environment, (0,), name(page))
    code = "\n".join(block.code for block in run if block.language == "python")
    perform([sys.executable, "-c", code], tmp_path, environment, (0,), name(page))


def test_every_page_of_the_story_is_in_it() -> None:
    told = (name(page) for page in PAGES if any(block.mark in ("story", "place") for block in blocks(page)))
    assert set(told) == set(STORY)


def simulated(line: str) -> str:
    """Return a command of the guide to a place with the simulated city in place of the network."""
    line = line.replace("2023-04-01/2024-03-31", "2019-04-01/2020-03-31").replace("--workers 8", "--workers 2")
    line = line.replace("--place Augsburg", "--aoi out/archive/aoi.geojson")
    command = line.split()[1]
    if command in ("plan", "build", "drift"):
        line += " --stac out/archive/catalog.json"
    if command == "build":
        line += " --osm out/archive/osm/city.osm --set patches.stride=32"
    return line + (" --allow-holes" if command == "plan" else "")


@pytest.mark.slow
def test_the_quick_start_runs_as_written(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "docs").symlink_to(DOCS)
    for page in STORY:
        # The quick start has no findings; elsewhere exit code 3 reports the findings that the text explains.
        codes = (0,) if page == "quickstart.md" else (0, 3)
        for block in (block for block in blocks(DOCS / page) if block.mark in ("story", "place")):
            if block.language == "python":
                perform([sys.executable, "-c", block.code], tmp_path, environment, codes, page)
                continue
            for line in commands(block.code):
                # As written, except for shorter training.
                short = re.sub(r"(-demo-(tiny|baseline|moco)) ", r"\1 --set training.epochs=1 ", line)
                short = simulated(short) if block.mark == "place" else short
                perform(["sh", "-c", short], tmp_path, environment, codes, page)
    for made in ("build-page", "ponds-page", "build-own-page", "release/my-city-1.1-page"):
        assert (tmp_path / "out" / made / "index.html").is_file(), made
    assert (tmp_path / "out" / "map" / "classes.tif").is_file()


def test_the_example_of_an_own_dataset_makes_shards(tmp_path: Path, environment: dict[str, str]) -> None:
    words = [sys.executable, str(DOCS / "guides" / "own_dataset.py"), str(tmp_path / "ponds")]
    perform(words, tmp_path, environment, (0,), "own_dataset.py")
    assert shard_index.read_index(tmp_path / "ponds").num_rows == 24
    assert files.read_plain(tmp_path / "ponds" / "contract.json")["splits"] == {"train": 16, "val": 8}


# --- the API pages -------------------------------------------------------------------------


def identifiers() -> list[str]:
    pages = sorted((DOCS / "reference" / "api").glob("*.md"))
    return [each for page in pages for each in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def without_members() -> set[str]:
    """Return the classes whose methods are described elsewhere, with the class they inherit from."""
    text = "".join(page.read_text() for page in (DOCS / "reference" / "api").glob("*.md"))
    return set(re.findall(r"^::: (\S+)\n    options: \{members: false", text, re.MULTILINE))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def located(dotted: str) -> ast.AST | None:
    """Return the module, class or function of a dotted name without importing it; for re-exported names the module."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if not path.is_file():
            continue
        node: Any = parsed(path)
        for part in parts[cut:]:
            node = defined(node, exported=path.name == "__init__.py").get(part)
            if node is None:
                return None
        return node  # type: ignore[no-any-return]
    return None


def defined(scope: ast.AST, *, exported: bool) -> dict[str, ast.AST]:
    """Return what a module or class defines by name: the definition, or the scope for assigned and imported names.

    Packages that load on first use name what they export in a table of texts (`exported`).
    """
    names: dict[str, ast.AST] = {}
    statements = list(getattr(scope, "body", []))
    while statements:
        each = statements.pop(0)
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            names.setdefault(each.name, each)
        elif isinstance(each, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: scope for alias in each.names}
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            names |= {name.id: scope for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            if exported and isinstance(each.value, ast.Dict | ast.List | ast.Tuple):
                texts = (text.value for text in ast.walk(each.value) if isinstance(text, ast.Constant))
                names |= {text: scope for text in texts if isinstance(text, str)}
        else:
            statements = [*getattr(each, "body", []), *getattr(each, "orelse", []), *statements]
    return names


def functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Return the function itself, or the public methods of a class."""
    if isinstance(node, ast.FunctionDef):
        yield node
    elif isinstance(node, ast.ClassDef):
        yield from (
            each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        )  # fmt: skip


def lacking(node: ast.FunctionDef) -> list[str]:
    """Return the sections that the docstring of a function should have but lacks."""
    text = ast.get_docstring(node) or ""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    takes = [each for each in every if each.arg not in ("self", "cls")]
    is_property = any("property" in ast.unparse(each) for each in node.decorator_list)
    returns = node.returns is not None and ast.unparse(node.returns) not in ("None", "Iterator[None]", "bool")
    raises = any(isinstance(each, ast.Raise) and each.exc is not None for each in ast.walk(node))
    # As in Google's guide, a first line that begins with "Return" or "Yield" replaces the section.
    returns = returns and not text.startswith(("Return ", "Yield "))
    wanted = {"Args": bool(takes), "Returns": returns and bool(takes) and not is_property, "Raises": raises}
    sections = {"Returns": ("Returns:", "Yields:")}
    return [
        section
        for section, needed in wanted.items()
        if needed and not any(f"{header}\n" in text for header in sections.get(section, (f"{section}:",)))
    ] + ([] if text else ["docstring"])


def test_everything_on_the_api_pages_exists_and_is_documented() -> None:
    assert len(identifiers()) > 80
    missing = [each for each in identifiers() if located(each) is None]
    assert not missing
    bare = [each for each in identifiers() if isinstance(node := located(each), ast.ClassDef | ast.FunctionDef) and not ast.get_docstring(node)]  # fmt: skip # noqa: E501
    assert not bare


def test_functions_of_the_api_pages_have_args_returns_and_raises() -> None:
    found = {
        f"{dotted}.{function.name}" if isinstance(node, ast.ClassDef) else dotted: sections
        for dotted in identifiers()
        if (node := located(dotted)) is not None and dotted not in without_members()
        for function in functions(node)
        if (sections := lacking(function))
    }
    listed = "\n".join(f"{dotted}: {', '.join(sections)}" for dotted, sections in found.items())
    assert not found, f"{len(found)} docstrings lack sections:\n{listed}"


# --- pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    # Pages that the build generates: docs/hooks.py.
    generated = {
        "contributing.md",
        "changelog.md",
        "reference/sgdata.md",
        "reference/sgmodel.md",
        "reference/recipes.md",
        "reference/cards.md",
    }
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve() if link else page
        in_docs = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else ""
        assert target.exists() or in_docs in generated, f"{name(page)}: {link}"
        if anchor and target.exists():
            assert anchor in anchors(target), f"{name(page)}: {link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, made as Markdown's extension `toc` makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in map(name, sorted(DOCS.rglob("*.md"))) if f": {page}\n" not in text] == []


def names_in_table(page: str, heading: str) -> set[str]:
    """Return the code words in the first column of the first table below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"# {heading}\n")[2]
    rows = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows, f"{page}: no table below {heading!r}"
    return {row.partition("`")[2].partition("`")[0] for row in rows[1].splitlines()}


def test_tables_of_the_docs_name_every_rule_dataset_and_command() -> None:
    from sgdata.composite.rules import RULES
    from sgdata.datasets import cards

    assert names_in_table("concepts/composites.md", "Rules") == set(RULES)
    assert names_in_table("guides/published.md", "Published datasets") == set(cards.names())
    texts = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    for script in ("sgdata", "sgmodel"):
        assert [name for name in program(script).commands if f"{script} {name}" not in texts] == []


def test_messages_of_the_troubleshooting_page_are_printed_by_the_packages() -> None:
    sources = [path for package in ("sgdata", "sgmodel") for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(parsed(path))]
    texts = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    page = (DOCS / "reference" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 20
    # The longest part without a value: numbers, names in quotes, "N", "PATH" and "..." stand for what varies.
    fixed = {each: max(re.split(r"'[^']*'|\.\.\.|\b[A-Z]+\b|\d+|[()=\]]", each), key=len).strip() for each in messages}
    assert {message: part for message, part in fixed.items() if part not in texts} == {}


def test_the_list_of_backbones_is_that_of_the_factory() -> None:
    from baselines import BASELINES

    # The cases of the factory are its table; "spectralgpt" comes before them.
    tree = parsed(ROOT / "sgmodel" / "models" / "factory.py")
    cases = {node.value.value for node in ast.walk(tree) if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant)}  # fmt: skip # noqa: E501
    known = {*cases, "spectralgpt"}
    assert len(known) > 4
    section = (DOCS / "guides" / "finetune.md").read_text(encoding="utf-8").partition("## Baselines\n")[2]
    listed = re.search(r"selects the model: (.*?)\.\n", section, re.DOTALL)
    assert listed
    assert {name.partition(":")[0] for name in re.findall(r"`([^`]+)`", listed[1])} == known
    assert {recipe.backbone.partition(":")[0] for recipe in BASELINES.values()} == known
    built = [ast.unparse(node.value.func) for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Call)]  # fmt: skip # noqa: E501
    described = {each.rpartition(".")[2] for each in identifiers()}
    classes = {name.rpartition(".")[2] for name in built} - {"baseline"}
    assert len(classes) > 4
    assert classes <= described


def test_the_readme_stays_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pictures_are_small() -> None:
    assert all(path.stat().st_size < 200_000 for path in DOCS.rglob("*") if path.suffix in {".png", ".svg"})


def test_nothing_is_left_to_fill_in() -> None:
    assert [name(page) for page in PAGES if re.search(r"\b(TODO|TBD|FIXME)\b", page.read_text(encoding="utf-8"))] == []


def test_the_citation_has_the_required_fields() -> None:
    """Check the required keys of Citation File Format 1.2.0 and the version of the package."""
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
    for key in ("message", "title", "authors", "license", "version"):
        assert re.search(rf"^{key}:", text, re.MULTILINE), key
    assert f"version: {sgdata.__version__}" in text
    assert re.search(r"^  - (name|family-names): ", text, re.MULTILINE)


def test_the_file_tree_is_that_of_the_packages() -> None:
    source = importlib.util.spec_from_file_location("file_tree", DOCS / "file_tree.py")
    assert source and source.loader
    file_tree = importlib.util.module_from_spec(source)
    source.loader.exec_module(file_tree)
    page = file_tree.PAGE.read_text()
    assert page.count("<!-- generated: ") == 3
    assert page == file_tree.generate(page), "run python docs/file_tree.py"
