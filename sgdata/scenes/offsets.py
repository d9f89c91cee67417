"""Decide whether a scene's DN still include the +1000 of processing baselines from 04.00 on. Pure.

Some catalogues correct the pixels, others do not, and their flags are often wrong: metadata give the expected offset,
the pixels are tested, and contradictions are never resolved silently. The origin of pixels is inferred from their
address, the collection, or the product metadata beside them, not from asset names, because mirrors rename assets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

import numpy as np

from sgdata.errors import SourceError
from sgdata.scenes.types import Scene
from sgdata.sentinel2 import MSI, SceneClass
from sgdata.types import Array, Level

OffsetSource = Literal["neither", "pixels", "metadata"]

ENOUGH_PIXELS = 1000
SHARE_PRESENT, SHARE_ABSENT = 0.05, 0.5
"""Pixels may include the offset if at most the first share of their values is dark, and do not from the second on."""
NEAR_DN, SHARE_NEAR = 1500, 0.1
"""They include it only if that share of their values is below this DN too: clouds taken for ground are far brighter."""
CLEAR_SHARE, CONTRADICTION_SHARE = 0.2, 0.05
"""Shares of the area that must be clear to prove the offset by the lack of dark pixels, and to contradict metadata."""

GROUND = (*MSI.classes.offset_test, SceneClass.NOT_VEGETATED)

ESA_STORES = ("eodata", "sentinel-s2-l1c", "sentinel-s2-l2a", "e84-earth-search-sentinel-data", "sentinel2l2a01")
"""Buckets of pixels as ESA delivered them: Copernicus Data Space, AWS (JP2), Earth Search (Collection 1), Microsoft."""
STORE_HOSTS = (".amazonaws.com", ".blob.core.windows.net", ".dataspace.copernicus.eu", ".cloudferro.com")
"""Ends of the hosts whose addresses begin with the name of a bucket."""


@dataclass(frozen=True, kw_only=True)
class OffsetSettings:
    """Settings that decide offsets where metadata and pixels do not agree.

    Attributes:
        untestable: Stop at, or leave out, a scene whose offset neither metadata nor pixels determine.
        source: The source to follow; with `neither`, both decide and must agree. With `pixels`, metadata count only
            where the pixel test is inconclusive. With `metadata`, pixels never count: the offset is the expected one,
            else the one that the item declares, else that of the baseline.
    """

    untestable: Literal["stop", "leave-out"]
    source: OffsetSource = "neither"


@dataclass(frozen=True, kw_only=True)
class OffsetEvidence:
    """The pixel test of one scene.

    Attributes:
        eligible: Clear vegetation and water pixels of the scene classification.
        ground: Pixels classified as clear ground of any kind.
        valid: Pixels of the area with data.
        dark_share: Share of the eligible values below the sensor's `dark_dn`, over all test bands.
        near_share: Share of them below NEAR_DN.
        product: Offset in the product's own XML, where it could be read.
        untested: Clear vegetation and water pixels in parts of the area of which no bands were read.
    """

    eligible: int
    ground: int
    valid: int
    dark_share: float
    near_share: float
    product: int | None = None
    untested: int = 0

    @property
    def clear_share(self) -> float:
        """Share of the pixels with data that are clear vegetation and water, tested or not."""
        return (self.eligible + self.untested) / max(self.valid, 1)

    def __str__(self) -> str:
        shares = f"{self.dark_share:.3f} below DN {MSI.offset.dark_dn}, {self.near_share:.3f} below {NEAR_DN}"
        return f"{self.eligible} clear pixels, {self.clear_share:.1%} of the area: {shares}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The offset of a scene, or why there is none.

    Attributes:
        offset: Offset to add to the DN; None if undecided.
        problem: Why it is undecided, of equal wording for scenes of one kind.
        untestable: Whether neither metadata nor pixels determine it, without a contradiction.
        warning: What to know of a decided offset.
    """

    offset: int | None
    problem: str = ""
    untestable: bool = False
    warning: str = ""


def expected_offset(
    scene: Scene, *, level: Level = "L2A", product: int | None = None, planned: bool = False
) -> int | None:
    """Return the offset in DN (0 or -1000) to expect by metadata; None if only the pixels can decide.

    The offset `product` of the product's XML takes precedence over the baseline; but where pixels were rewritten, it
    still describes those that ESA delivered.

    Args:
        scene: The scene.
        level: Product level.
        product: Offset in the product's own XML; None where it could not be read.
        planned: The product's XML has not been tried yet.

    Raises:
        SourceError: The baseline is needed and is not two numbers.
    """
    if product is not None:
        carried = product
    else:
        carried = MSI.offset.value if states_offset(scene.baseline) else 0
    if not carried or level != "L2A":
        return carried
    beside = _has_own_product(scene) and (planned or product is not None)
    is_collection_1 = "c1" in scene.collection.replace("_", "-").split("-")
    stores = {_store(asset.href) for band, asset in scene.assets.items() if band in MSI.by_name}
    is_from_esa = beside or is_collection_1 or (stores and stores <= set(ESA_STORES))
    # A flag that says otherwise leaves the decision to the pixels.
    return carried if is_from_esa and not scene.offset_applied else None


def _store(href: str) -> str:
    """Return the name of the bucket that a file is in; "" for any other place."""
    parts = urlsplit(href)
    host = parts.hostname or ""
    if parts.scheme == "s3":
        return host
    if not host.endswith(STORE_HOSTS):
        return ""
    first = host.split(".")[0]
    # Both https://bucket.s3.region.amazonaws.com/ and https://s3.region.amazonaws.com/bucket/ are in use.
    return parts.path.split("/")[1] if first == "s3" and parts.path.count("/") else first


def _has_own_product(scene: Scene) -> bool:
    """Return whether the product's metadata lie in the folder of the bands, or in the SAFE or Zarr folder around it."""
    if scene.product is None:
        return False
    folder = PurePosixPath(scene.product).parent
    folders = [PurePosixPath(asset.href).parent for band, asset in scene.assets.items() if band in MSI.by_name]
    is_product = folder.name.endswith((".SAFE", ".zarr"))
    return all(one == folder or (is_product and folder in one.parents) for one in folders)


def declared_offset(scene: Scene) -> int | None:
    """Return the offset that the item declares: 0 if its flag says so, which is more recent than that of its bands."""
    return 0 if scene.offset_applied else scene.declared_offset


def states_offset(baseline: str) -> bool:
    """Return whether products of a baseline state their offset, as they do from the first with an offset on."""
    return _number(baseline) >= MSI.offset.first_baseline


def _number(baseline: str) -> tuple[int, int]:
    try:
        major, minor = baseline.split(".")
        return int(major), int(minor)
    except ValueError:
        raise SourceError(
            f"processing baseline {baseline!r}: expected two numbers such as '05.00'; leave the item out"
        ) from None


def decide(
    scene: Scene, expected: int | None, evidence: OffsetEvidence, *, source: OffsetSource = "neither"
) -> Decision:
    """Decide the offset to add to the DN of a scene.

    Args:
        scene: The scene.
        expected: Offset by metadata, as `expected_offset` returns it.
        evidence: The pixel test.
        source: Which to follow.

    Returns:
        The offset, or why there is none.
    """
    pixels, declared = offset_from_pixels(evidence), declared_offset(scene)
    carried = MSI.offset.value if states_offset(scene.baseline) else 0
    if source == "metadata":
        stated = (expected, declared, carried)
        return Decision(offset=next(value for value in stated if value is not None))
    if source == "pixels" and pixels is not None:
        return Decision(offset=pixels)
    if expected is None:
        return _undecided(scene, evidence, pixels)
    if pixels is None or pixels == expected:
        return Decision(offset=expected)
    message = f"metadata give offset {expected}, the pixels {pixels}"
    if not carried and not expected:
        return Decision(offset=expected, warning=f"{message}, which baseline {scene.baseline} cannot have ({evidence})")
    if evidence.clear_share < CONTRADICTION_SHARE:
        return Decision(offset=expected, warning=f"{message} on too small a part of the area to count ({evidence})")
    return Decision(offset=None, problem=f"{message}; leave them out or give --offset-source pixels|metadata")


def _undecided(scene: Scene, evidence: OffsetEvidence, pixels: int | None) -> Decision:
    """Decide the offset where metadata do not determine the origin of the pixels."""
    if pixels is not None:
        return Decision(offset=pixels)
    # Neither is sufficient alone; they must agree.
    if (
        scene.declared_offset
        and not scene.offset_applied
        and offset_from_pixels(evidence, clear_share=0) == scene.declared_offset
    ):
        return Decision(offset=scene.declared_offset)
    # Bare ground is inconclusive; cloudy scenes are not worth keeping.
    is_ground = evidence.ground >= CLEAR_SHARE * max(evidence.valid, 1)
    if is_ground and scene.offset_applied and not scene.declared_offset and not _has_own_product(scene):
        warning = f"offset 0 by the item's flag alone, the pixel test is inconclusive ({evidence})"
        return Decision(offset=0, warning=warning)
    problem = (
        "metadata leave the offset undetermined and the pixel test is inconclusive; leave them out or give "
        "--offset-source metadata"
    )
    return Decision(offset=None, problem=problem, untestable=True)


def offset_from_pixels(evidence: OffsetEvidence, *, clear_share: float = CLEAR_SHARE) -> int | None:
    """Return the offset by the pixels; None if the test is inconclusive.

    Dark pixels prove that there is no offset. Their absence proves nothing unless a share `clear_share` of the area is
    clear and the darkest values are just above the offset.
    """
    # Between the two shares pixels may be mixed: no answer is better than an error of 0.1 in reflectance.
    if evidence.eligible < ENOUGH_PIXELS or SHARE_PRESENT < evidence.dark_share < SHARE_ABSENT:
        return None
    if evidence.dark_share >= SHARE_ABSENT:
        return 0
    is_near = evidence.near_share >= SHARE_NEAR and evidence.clear_share >= clear_share
    return MSI.offset.value if is_near else None


def describe_problems(undecided: Iterable[tuple[str, Decision, OffsetEvidence]]) -> str:
    """Return what keeps scenes (id, decision, evidence) from having an offset, in one line for all of them."""
    kinds: dict[str, list[str]] = {}
    for name, decision, evidence in undecided:
        kinds.setdefault(decision.problem, []).append(f"scene {name} ({evidence})")
    return "; ".join(f"{', '.join(scenes)}: {problem}" for problem, scenes in kinds.items())


def apply_offset(stored: Array, offset: int) -> Array:
    """Return stored DN with `offset` added: 0 stays no data, and valid pixels stay valid (at least 1).

    Args:
        stored: Unsigned integers of any shape, 0 where there are no data.
        offset: Offset in DN, as `decide` returns it.
    """
    if not offset:
        return stored
    # Limited first: unsigned integers must not wrap around below zero.
    shifted = np.maximum(stored, 1 - offset) + np.array(offset).astype(stored.dtype)
    return np.where(stored > 0, shifted, 0).astype(stored.dtype)
