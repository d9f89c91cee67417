"""Stage the windows of scenes as a build does, with this commit or 7dbe2a5: python stage_windows.py REQUESTS.json.

REQUESTS.json has `folder`, `headers`, `crs`, `bounds` and `scenes`, each a list of addresses. Prints one line of JSON:
seconds, CPU seconds, and the pixel hash of every window.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

# Imported before the clock starts: a build needs them in any case.
import imagecodecs  # noqa: F401
import obstore  # noqa: F401
import rasterio.warp  # noqa: F401
import requests  # noqa: F401
import tenacity  # noqa: F401

from sgdata import pool

try:
    from sgdata.builds.fetch_scenes import SCENES_AT_ONCE
except ImportError:  # 7dbe2a5
    SCENES_AT_ONCE = 2


def requests_of(plan: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return the function that stages a scene, and the scenes in the types of this commit."""
    folder, crs, bounds = Path(plan["folder"]), plan["crs"], tuple(plan["bounds"])
    scenes: list[Any] = []
    try:
        from sgdata.scenes.types import Asset
        from sgdata.staging import scene_files, scene_staging
    except ImportError:  # 7dbe2a5
        from sgdata import observe, staging  # type: ignore[attr-defined]
        from sgdata.types import Asset  # type: ignore[attr-defined,assignment,no-redef]

        for number, hrefs in enumerate(plan["scenes"]):
            windows: dict[str, Any] = {}
            for at, href in enumerate(hrefs):
                target = folder / f"{number}-{at}"
                piece = staging.Piece(
                    name=f"{number} {at}", asset=Asset(href=href), crs=crs, bounds=bounds, target=target
                )
                windows[str(at)] = piece
            scenes.append(observe.Visit(id=str(number), overpass="", day=0, pieces=windows))
        return observe.scout, scenes
    for number, hrefs in enumerate(plan["scenes"]):
        windows = {}
        for at, href in enumerate(hrefs):
            windows[str(at)] = scene_files.WindowRequest(
                name=f"{number} {at}", asset=Asset(href=href), crs=crs, bounds=bounds,
                target=folder / f"{number}-{at}", headers=Path(plan["headers"]),
            )  # fmt: skip
        scenes.append(scene_staging.SceneRequest(id=str(number), overpass="", day=0, windows=windows, required=True))
    return scene_staging.stage_files, scenes


def main() -> None:
    task, scenes = requests_of(json.loads(Path(sys.argv[1]).read_text()))
    began, used = time.monotonic(), time.process_time()
    staged = list(pool.run(task, scenes, workers=1, threads=SCENES_AT_ONCE))
    figures = {
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - used,
        "sha256": [window.sha256 for scene in staged for _, window in sorted(scene.files.items())],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
