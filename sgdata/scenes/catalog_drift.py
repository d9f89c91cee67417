"""Compare a lock with the catalogue of today: scenes that vanished, changed or are new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgdata.scenes import aoi, coverage, search
from sgdata.scenes.types import Unusable

if TYPE_CHECKING:
    from sgdata.scenes.lock import Lock


def find_drift(planned: Lock, address: str, *, allow_private_hosts: bool = False) -> list[str]:
    """Compare the scenes of a catalogue with those of a lock.

    Args:
        planned: The lock.
        address: URL or path of the catalogue.
        allow_private_hosts: Follow links of a remote catalogue to hosts of the local network.

    Returns:
        One line per scene that vanished, changed or is new; empty if there are no differences.

    Raises:
        ServiceError: The catalogue cannot be reached after several retries.
        SourceError: No item has what is needed, or two different items have one id.
        SettingError: No scene matches, or an item to leave out does not exist.
    """
    query = search.Query(
        collection=planned.collection,
        bounds=aoi.in_degrees(planned.grid),
        dates=planned.dates,
        bands=tuple(planned.items[0].scene.assets),
        leave_out=tuple(dropped.id for dropped in planned.dropped if dropped.reason == search.LEFT_OUT),
        baselines=planned.baselines,
    )
    counted, others = search.search(address, query, allow_private_hosts=allow_private_hosts)
    # Select as the plan did, so that neighbours that it left out are not reported as new.
    unusable = [one for one in others if isinstance(one, Unusable)]
    usable, elsewhere = coverage.select_tiles(counted, planned.grid, unusable, outline=planned.outline)
    today = {scene.id: scene for scene in usable}
    known = {item.scene.id: item.scene for item in planned.items}
    left_out = {dropped.id for dropped in planned.dropped}
    lines = []
    for name, scene in known.items():
        if name not in today:
            reason = next((d.reason for d in (*elsewhere, *others) if d.id == name), "not in the catalogue any more")
            lines.append(f"vanished: {name}: {reason}")
        elif today[name] != scene:
            fields = [key for key, value in vars(scene).items() if getattr(today[name], key) != value]
            lines.append(f"changed: {name}: {', '.join(fields)}")
    return lines + [f"new: {name}" for name in today if name not in known and name not in left_out]
