"""Run the notebooks of the docs as a kernel would: cell by cell in one process without a `__main__` file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In this order: the second uses the build of the first.
NOTEBOOKS = [ROOT / "docs" / "notebooks" / f"{name}.ipynb" for name in ("build_a_place", "use_the_model")]

# Expressions at the end of a cell are shown, by `_repr_png_` or `repr`, as a notebook shows them.
KERNEL = """
import ast, json, sys

names = {"__name__": "__main__"}
for number, code in enumerate(json.load(sys.stdin)):
    tree = ast.parse(code, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        show = getattr(value, "_repr_png_", None)
        print(number, repr(value) if show is None else len(show()))
"""


def cells(notebook: Path) -> list[dict[str, object]]:
    document = json.loads(notebook.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    found: list[dict[str, object]] = document["cells"]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert len({cell["id"] for cell in cells(notebook)}) == len(cells(notebook))


def test_every_notebook_is_run() -> None:
    assert set(NOTEBOOKS) == set((ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.slow
def test_notebooks_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    for notebook in NOTEBOOKS:
        code = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-c", KERNEL], input=json.dumps(code), cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{notebook.name}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        assert "Warning" not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "out" / "map" / "classes.tif").is_file()
