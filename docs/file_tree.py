"""Write the generated parts of docs/architecture.md: python docs/file_tree.py.

The file tree has the first paragraph of each module, and the rows of folders are those
of tests/test_layers.py. They are committed, so that the page can be read in the
repository too; a test compares them with the code.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def generate(page: str) -> str:
    """Return the text of a page with what lies between its marks generated anew."""

    def part(match: re.Match[str]) -> str:
        lines = rows() if match[1] == "rows" else tree(ROOT / match[1])
        text = "\n".join(lines).strip()
        return f"<!-- generated: {match[1]} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(
        r"<!-- generated: (\w+) -->.*?<!-- end -->", part, page, flags=re.DOTALL
    )


def tree(package: Path) -> Iterator[str]:
    """Yield a table of files per folder, with the start of their docstrings."""
    folders = [
        package,
        *sorted(path for path in package.iterdir() if (path / "__init__.py").is_file()),
    ]
    for folder in folders:
        name = folder.relative_to(ROOT).as_posix()
        about = (
            summary(folder / "__init__.py")
            if folder != package
            else "modules that several stages share"
        )
        yield f"\n**`{name}/`** {about}\n"
        yield "| file | |\n|---|---|"
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                yield f"| `{path.name}` | {cell(summary(path))} |"
    yield ""


def rows() -> Iterator[str]:
    """Yield a table of the rows of folders in tests/test_layers.py."""
    statements = ast.parse(
        (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    ).body
    layers = next(
        ast.literal_eval(each.value)
        for each in statements
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "LAYERS"
    )
    yield "| row | `sgdata` | `sgmodel` |\n|---|---|---|"
    for number, cells in enumerate(
        itertools.zip_longest(*layers.values(), fillvalue=()), 1
    ):
        names = (
            ", ".join(f"`{name}`" if name else "modules at the root" for name in cell)
            for cell in cells
        )
        yield f"| {number} | {' | '.join(names)} |"


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def cell(text: str) -> str:
    """Return text as a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(generate(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
