"""Build, shard, verify and release Sentinel-2 datasets from Python.

    sgdata.build_recipe(...)     load a build recipe and set area, dates and other settings
    sgdata.build(recipe, sgdata.BuildPaths(out=...))   build a dataset of an area      (sgdata build)
    sgdata.open_build(folder)    open a build as an xarray.Dataset
    sgdata.shard(...)            pack a dataset into WebDataset shards                 (sgdata shard)

Names are imported on first use, so that `import sgdata` and `sgdata --help` stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdata.builds.build_folder import open_build as open_build
    from sgdata.builds.build_recipe import BuildPaths as BuildPaths
    from sgdata.builds.build_recipe import recipe_for as build_recipe
    from sgdata.builds.pipeline import build as build
    from sgdata.packing.pack import pack as shard

__version__ = "0.1.0"
__all__ = ["BuildPaths", "build", "build_recipe", "open_build", "shard"]

# Public name: module and attribute.
_HOME = {
    "BuildPaths": ("builds.build_recipe", "BuildPaths"),
    "build": ("builds.pipeline", "build"),
    "build_recipe": ("builds.build_recipe", "recipe_for"),
    "open_build": ("builds.build_folder", "open_build"),
    "shard": ("packing.pack", "pack"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sgdata' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__all__"])
