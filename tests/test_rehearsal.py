"""Rehearse an unattended build: real servers behind a proxy with faults at realistic rates."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import rehearsal
import served

from sgdata import files, package_data
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.errors import ExitCode
from sgdata.scenes import lock, types
from sgdata.scenes.aoi import Area

NGINX = shutil.which("nginx") or (Path("/usr/sbin/nginx").exists() and "/usr/sbin/nginx")


def sgdata(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgdata.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def recipe_file(path: Path, archive: rehearsal.Archive, **source: object) -> Path:
    """Write a recipe of the rehearsal's area, with changes to its source."""
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    recipe = replace(
        published,
        area=Area(grid=archive.area),
        source=replace(published.source, **source),  # type: ignore[arg-type]
        patches=replace(published.patches, size=60, stride=60),
        split=replace(published.split, block_px=60, gap_px=0),
    )
    files.write(path, files.toml(recipe))
    return path


def rehearse(folder: Path, *, dates: int, lacking: int, damaged: float, sign_for: int, least: float) -> None:
    """Plan and build behind the proxy, then compare with a build from disk of the same scenes."""
    workers = ("--workers", "2")
    archive = rehearsal.make(folder, dates=dates, lacking=lacking, workers=2)
    with ExitStack() as stack:
        command, upstream = served.nginx(archive.folder, folder / "nginx")
        stack.enter_context(served.process(command, f"{upstream}catalog.json"))
        store = rehearsal.Proxy(upstream=upstream, seed=4, busy=0.01, damaged=damaged, sign_for=sign_for)
        stack.enter_context(rehearsal.running(store))
        collection = served.item_collection(archive.folder, store.url, folder / "items.json")
        command, upstream = served.rustac(collection)
        stack.enter_context(served.process(command, upstream))
        # An API gets few requests: more of them fail, or none would.
        api = rehearsal.Proxy(upstream=upstream, seed=2, busy=0.2)
        stack.enter_context(rehearsal.running(api))
        west, south, east, north = rehearsal.in_degrees(archive.area)
        overpass = rehearsal.Overpass(archive.overpass, most=(east - west) * (north - south))
        stack.enter_context(rehearsal.running(overpass))

        recipe = recipe_file(folder / "recipe.toml", archive, stac=api.url, tokens=f"{store.url}/token")
        # The simulator leaves one month without a pass.
        planned = sgdata("plan", "--recipe", recipe, "--out", folder / "plan", "--allow-holes")
        assert planned.returncode in {ExitCode.DONE, ExitCode.FINDINGS}, planned.stderr
        built = sgdata("build", "--recipe", recipe, "--out", folder / "b", "--osm", overpass.url, "-q", *workers)
        assert built.returncode in {ExitCode.DONE, ExitCode.FINDINGS}, built.stderr
    print(store.counts, api.counts, store.issued, overpass.queries, overpass.timed_out)
    print(built.stdout, built.stderr)

    # Every item is used, or named with the reason.
    found = lock.read(folder / "b")
    used, dropped = {item.scene.id for item in found.items}, {one.id: one.reason for one in found.dropped}
    assert used | dropped.keys() == set(archive.ids)
    assert not used & dropped.keys()
    lost = {one.id for one in types.lost(found.dropped)}
    twins = {name for name, reason in dropped.items() if reason.startswith("twin of")}
    assert lost | twins == dropped.keys()
    assert len(used) >= least * (len(used) + len(lost))
    assert set(archive.lacking) <= lost
    broken = {path.split("/")[-2] for path in store.asked if store.damage(path.split()[1])}
    assert lost - set(archive.lacking) == broken & (used | lost)
    assert (built.returncode == ExitCode.FINDINGS) or not broken & lost
    # What the faults were.
    assert {"403", "429", "503"} <= store.counts.keys()
    assert store.issued > 1
    assert overpass.timed_out

    # Without faults, from disk, the same scenes: the same pixels and labels.
    out = set(lost) | {name for name in twins if any(f"twin of {one} " in dropped[name] for one in lost)}
    plain = recipe_file(folder / "plain.toml", archive, stac=str(archive.folder))
    named = ", ".join(f'"{name}"' for name in sorted(out))
    again = sgdata(
        "build", "--recipe", plain, "--out", folder / "c", "--osm", archive.osm, "-q", "--set", f"leave_out=[{named}]",
        *workers,
    )  # fmt: skip
    assert again.returncode in {ExitCode.DONE, ExitCode.FINDINGS}, again.stderr
    same = lock.read(folder / "c")
    assert {item.scene.id for item in same.items} == used
    assert same.outputs == found.outputs


needs_servers = pytest.mark.skipif(not NGINX, reason="nginx is not installed")


@needs_servers
@pytest.mark.long
def test_a_small_rehearsal(tmp_path: Path) -> None:
    pytest.importorskip("rustac", reason="rustac is not installed")
    rehearse(tmp_path, dates=12, lacking=1, damaged=0.004, sign_for=300, least=0.85)


@needs_servers
@pytest.mark.slow
def test_the_rehearsal_of_a_plan_of_400_items(tmp_path: Path) -> None:
    pytest.importorskip("rustac", reason="rustac is not installed")
    rehearse(tmp_path, dates=111, lacking=5, damaged=0.002, sign_for=1500, least=0.95)
