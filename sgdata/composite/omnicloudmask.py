"""Cloud masks by OmniCloudMask (extra `clouds`): one raster per scene of a lock, for `sgdata build --masks`.

Wright et al. 2025, doi:10.1016/j.rse.2025.114694: red, green and near infrared of 10 to 50 m, each normalised by
itself, so that an offset in the DN does not matter. Classes: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from sgdata import files, output_lock, progress, reuse, urls
from sgdata.errors import SettingError
from sgdata.rasters import cog
from sgdata.remote import file_identity
from sgdata.remote.allowed_addresses import Access, access_of
from sgdata.safe_names import file_name
from sgdata.scenes import search, signing
from sgdata.scenes.lock import Lock
from sgdata.scenes.types import Scene
from sgdata.staging import scene_files, window_staging
from sgdata.types import Array, Grid, Window

log = logging.getLogger("sgdata")

BANDS = ("B04", "B03", "B8A")
CLASSES = {
    0: ("clear", "#000000"),
    1: ("thick cloud", "#ff800d"),
    2: ("thin cloud", "#2ca02c"),
    3: ("shadow", "#d62728"),
}


def engine(weights: Path | None) -> Callable[[Array], Array]:
    """Return a function that predicts (H, W) uint8 classes from (3, H, W) DN of BANDS.

    Args:
        weights: Folder with the files of OmniCloudMask; None to download them at the first scene.

    Raises:
        SettingError: The package or, when predicting, the weights cannot be loaded.
    """
    try:
        import omnicloudmask
    except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises the second
        raise SettingError(f"omnicloudmask cannot be loaded ({error!s:.120}); pip install 'sgdata[clouds]'") from None

    def predict(image: Array) -> Array:
        try:
            with warnings.catch_warnings(action="ignore"):  # about patches that it shrinks to small areas
                classes: Array = omnicloudmask.predict_from_array(image, destination_model_dir=weights)[0]
        except Exception as error:  # a download, a file of weights and a network: each has errors of its own
            origin = weights or "the hub"
            raise SettingError(
                f"omnicloudmask, weights of {origin}: {type(error).__name__}: {error!s:.120}; give --weights FOLDER"
            ) from None
        return classes

    return predict


def write(
    planned: Lock, out: Path, address: str, predict: Callable[[Array], Array], *, allow_private_hosts: bool = False
) -> Path:
    """Write `<item id>.tif` into `out` for each item of the lock, unless an earlier run wrote it from the same files.

    Args:
        planned: Lock with the items and the grid.
        out: Output folder.
        address: URL or path of the catalogue that hrefs are relative to.
        predict: Function from (3, H, W) DN to classes, as `engine` returns it.
        allow_private_hosts: Whether a remote catalogue may name hosts of the local network.

    Raises:
        SettingError: The lock lacks a band that masks need.
        SourceError: A file cannot be read.
    """
    if missing := set(BANDS) - set(planned.items[0].scene.assets):
        raise SettingError(f"clouds: the lock has no {', '.join(sorted(missing))}; plan with {', '.join(BANDS)}")
    style = cog.RasterStyle(descriptions=("omnicloudmask",), dtype="uint8", overviews="mode", classes=CLASSES)
    whole = Window(row=0, col=0, height=planned.grid.shape[0], width=planned.grid.shape[1])
    scratch = out / ".scratch"
    access = access_of(address, allow_private_hosts=allow_private_hosts)
    untold = 0
    with output_lock.only_writer(out, ""):
        for item in progress.track(planned.items, label="clouds", total=len(planned.items)):
            path = out / f"{file_name(item.scene.id)}.tif"
            scene = search.resolve_hrefs(item.scene, address)
            hrefs = [scene.assets[band].href for band in BANDS]
            sources = [file_identity.identify_address(urls.recall(href), access) for href in hrefs]
            made_from = files.sha256(files.canonical_json([planned.grid, hrefs, sources]))
            if not reuse.is_unchanged(path, made_from):
                # Left by a killed run, possibly of another area.
                shutil.rmtree(scratch, ignore_errors=True)
                classes = predict(_image(scene, planned.grid, scratch, access))
                cog.write(path, planned.grid, [(whole, classes[None])], style=style)
                reuse.write_note(path, made_from)
                shutil.rmtree(scratch)
            elif not all(sources):
                untold += 1
    if untold:
        log.warning(
            "%d masks are reused, but servers give no date of their scenes; remove %s if any has changed", untold, out
        )
    return out


def _image(scene: Scene, grid: Grid, scratch: Path, access: Access) -> Array:
    """Return (3, H, W) DN of BANDS on the grid."""

    def read(band: str) -> Array:
        asset = replace(scene.assets[band], crs=scene.assets[band].crs or scene.crs)
        request = scene_files.WindowRequest(
            name=f"{scene.id} {band}", asset=asset, crs=grid.crs, bounds=grid.bounds,
            target=scratch / file_name(band), kernel="bilinear", tokens=signing.service(scene.provider, asset.href),
            access=access,
        )  # fmt: skip
        return window_staging.read_on_grid(window_staging.stage(request), grid, kernel="bilinear")

    with ThreadPoolExecutor() as readers:
        return np.stack(list(readers.map(read, BANDS)))
