"""Build, shard, verify and release Sentinel-2 datasets from Python.

    sgdata.build("segmunich", bbox=..., dates=..., out=...)   the command `sgdata build`, with the same arguments
    sgdata.open_build(folder)                                  open a build as an xarray.Dataset

Every command is a function that takes the same arguments and returns its result. `build_recipe` and `BuildPaths` make
the arguments of `sgdata.builds.pipeline.build`. Names are imported on first use, so that `import sgdata` and
`sgdata --help` stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdata.builds.build_folder import open_build as open_build
    from sgdata.builds.build_recipe import BuildPaths as BuildPaths
    from sgdata.builds.build_recipe import recipe_for as build_recipe
    from sgdata.builds.open_scenes import open_scenes as open_scenes
    from sgdata.commands.builds import build as build
    from sgdata.commands.builds import clouds as clouds
    from sgdata.commands.builds import drift as drift
    from sgdata.commands.builds import plan as plan
    from sgdata.commands.checks import audit as audit
    from sgdata.commands.checks import compare as compare
    from sgdata.commands.checks import draw_splits as draw_splits
    from sgdata.commands.checks import split as split
    from sgdata.commands.checks import status as list_status
    from sgdata.commands.checks import verify as verify
    from sgdata.commands.datasets import catalog as list_catalog
    from sgdata.commands.datasets import fetch as fetch
    from sgdata.commands.datasets import shard as shard
    from sgdata.commands.publish import diff as diff
    from sgdata.commands.publish import export as export
    from sgdata.commands.publish import release as release
    from sgdata.commands.publish import show as show
    from sgdata.commands.simulation import demo as run_demo
    from sgdata.commands.simulation import simulate as simulate
    from sgdata.results.open_map import open_map as open_map
    from sgdata.shards.open_shards import open_shards as open_shards

__version__ = "0.1.0"

# Public name: module and attribute. Three differ from their command, since `catalog`, `demo` and `status` are modules.
_HOME = {
    "BuildPaths": ("builds.build_recipe", "BuildPaths"),
    "audit": ("commands.checks", "audit"),
    "build": ("commands.builds", "build"),
    "build_recipe": ("builds.build_recipe", "recipe_for"),
    "clouds": ("commands.builds", "clouds"),
    "compare": ("commands.checks", "compare"),
    "diff": ("commands.publish", "diff"),
    "draw_splits": ("commands.checks", "draw_splits"),
    "drift": ("commands.builds", "drift"),
    "export": ("commands.publish", "export"),
    "fetch": ("commands.datasets", "fetch"),
    "list_catalog": ("commands.datasets", "catalog"),
    "list_status": ("commands.checks", "status"),
    "open_build": ("builds.build_folder", "open_build"),
    "open_map": ("results.open_map", "open_map"),
    "open_scenes": ("builds.open_scenes", "open_scenes"),
    "open_shards": ("shards.open_shards", "open_shards"),
    "plan": ("commands.builds", "plan"),
    "release": ("commands.publish", "release"),
    "run_demo": ("commands.simulation", "demo"),
    "shard": ("commands.datasets", "shard"),
    "show": ("commands.publish", "show"),
    "simulate": ("commands.simulation", "simulate"),
    "split": ("commands.checks", "split"),
    "verify": ("commands.checks", "verify"),
}
__all__ = [
    "BuildPaths",
    "audit",
    "build",
    "build_recipe",
    "clouds",
    "compare",
    "diff",
    "draw_splits",
    "drift",
    "export",
    "fetch",
    "list_catalog",
    "list_status",
    "open_build",
    "open_map",
    "open_scenes",
    "open_shards",
    "plan",
    "release",
    "run_demo",
    "shard",
    "show",
    "simulate",
    "split",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sgdata' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__all__"])
