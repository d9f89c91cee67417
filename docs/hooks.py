"""Generate the pages that repeat facts of the code: commands, recipes, cards, contributing guide, changelog."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Pages of the site that are files at the top of the repository.
ADOPTED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]["scripts"]
    for name in scripts:
        app = importlib.import_module(f"{name}.cli").app
        page = "\n".join(command_page(name, typer.main.get_command(app)))
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    content = "\n".join(recipe_page())
    files.append(File.generated(config, "reference/recipes.md", content=content))
    content = "\n".join(card_page())
    files.append(File.generated(config, "reference/cards.md", content=content))
    for page, source in ADOPTED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        # Links of these files start at the top of the repository, those of the site in docs/.
        files.append(
            File.generated(config, page, content=text.replace("](docs/", "]("))
        )
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put drawings into the page: only inline do they follow the colours that the reader has chosen."""

    def inline(match: re.Match[str]) -> str:
        source = Path(config["docs_dir"]) / Path(page.file.src_uri).parent / match[1]
        return source.read_text(encoding="utf-8")

    return re.sub(r'<p><img [^>]*src="([^"]+\.svg)"[^>]*></p>', inline, html)


# --- commands ------------------------------------------------------------------------------


def command_page(name: str, group: Any) -> Iterator[str]:
    """Yield the lines of the page of one program: a section per command."""
    yield f"# The `{name}` command\n"
    yield f"{plain(group.help)}\n"
    yield "Generated from the program itself; `--help` prints the same. Exit codes: [one table](errors.md).\n"
    for command_name, command in group.commands.items():
        if not command.hidden:
            yield from command_section(f"{name} {command_name}", command)


def command_section(name: str, command: Any) -> Iterator[str]:
    """Yield the lines of one command: help, usage, arguments and options, example."""
    if hasattr(command, "list_rules"):
        command.list_rules()
    parameters = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    words = [value(each) if each.required else f"[{value(each)}]" for each in arguments]
    yield f"## `{name}`\n"
    yield f"{plain(command.help)}\n"
    yield f"```text\n{' '.join([name, *words, '[OPTIONS]'])}\n```\n"
    if parameters:
        yield "| argument or option | meaning | default |\n|---|---|---|"
    for parameter in [
        *arguments,
        *(each for each in parameters if each not in arguments),
    ]:
        yield row(parameter)
    yield ""
    example = plain(command.epilog).removeprefix("Example: ")
    if example:
        yield f"Example: `{example}`\n"


def row(parameter: Any) -> str:
    """Return one row of a table of parameters."""
    name = value(parameter)
    if parameter.param_type_name == "option":
        name = ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {name}")
    default = "required" if parameter.required else ""
    if (
        not parameter.required
        and isinstance(parameter.default, str | int | float | Path)
        and parameter.default
    ):
        default = f"`{parameter.default}`"
    return f"| `{name}` | {plain(parameter.help)} | {default} |"


def value(parameter: Any) -> str:
    """Return the placeholder of a parameter's value."""
    return str(parameter.metavar or parameter.name.upper())


def plain(text: str | None) -> str:
    """Return help text as one paragraph of Markdown, on one line."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def recipe_page() -> Iterator[str]:
    """Yield the lines of the page of recipes: those of each program with their purpose, and its settings."""
    from sgdata.builds.build_recipe import BuildRecipe
    from sgdata.datasets.types import ShardRecipe
    from sgmodel import recipe_files
    from sgmodel.inference.predict import PredictRecipe
    from sgmodel.ledger.experiments import LedgerRecipe
    from sgmodel.recipes.programs import PROGRAMS

    yield "# Recipes\n"
    yield "The keys of each kind of recipe, as `--settings` of its command prints them, and the recipes of `sgmodel` that"
    yield "come with the package, as `sgmodel recipes` prints them. Costs are estimates. Below, *required* means that a"
    yield "recipe file has to set the key, *unset* that it may.\n"
    kinds = {"sgdata build": BuildRecipe, "sgdata shard": ShardRecipe}
    for command, kind in kinds.items():
        folder = command.removeprefix("sgdata ")
        names = sorted(path.stem for path in (ROOT / "recipes" / folder).glob("*.toml"))
        yield f"## `{command}`\n"
        yield f"In `recipes/{folder}`: {', '.join(f'`{name}`' for name in names)}.\n"
        yield f"### Settings of `{command}`\n"
        yield from setting_rows(kind)
    for program, files in itertools.groupby(
        recipe_files.recipe_files(), lambda file: file.program
    ):
        yield f"## `sgmodel {program.replace('_', '-')}`\n"
        for file in files:
            yield f"`{file.path.stem}`\n:   {plain(file.what)} *Needs:* {plain(file.needs)} *Cost:* {plain(file.cost)}\n"
        others = {"predict": PredictRecipe, "reproduce": LedgerRecipe}
        kind = others.get(program) or PROGRAMS[program]().recipe
        yield f"### Settings of `sgmodel {program.replace('_', '-')}`\n"
        yield from setting_rows(kind)


def card_page() -> Iterator[str]:
    """Yield the lines of the page of the fields of a dataset card."""
    from sgdata.datasets import cards
    from sgdata.datasets.types import DatasetCard

    yield "# Dataset cards\n"
    yield "A dataset of the catalogue is described by `catalogs/NAME.toml`: `sgdata catalog NAME` prints it, `sgdata fetch`"
    yield "downloads what it lists, and `sgdata shard` checks files against it. Cards are read strictly: an unknown or missing"
    yield "key is refused by name. [Contributing](../contributing.md) says what else a dataset needs.\n"
    names = ", ".join(f"`{name}`" for name in cards.names())
    yield f"There are cards of {names}. *Required* means that every card sets the key.\n"
    yield from setting_rows(DatasetCard)


def setting_rows(kind: type[Any]) -> Iterator[str]:
    """Yield the lines of the table of the settings of a recipe class, or of the fields of another document."""
    from sgdata import recipe_settings

    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for setting in recipe_settings.settings(kind):
        cells = (
            f"`{setting.key}`",
            *map(plain, (setting.type, setting.default, setting.meaning)),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
