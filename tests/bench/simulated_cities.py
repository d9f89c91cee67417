"""Simulate cities of different seeds at different places, in two UTM zones, and write a table of them."""

from __future__ import annotations

from pathlib import Path

from sgdata.simulation import archive, osm_xml, scenarios

CITIES = (("ulm", 1, 32), ("bonn", 2, 32), ("hof", 3, 32), ("graz", 4, 33), ("brno", 5, 33))
"""Name, seed and UTM zone."""
APART_M = 9_000


def write(folder: Path, *, size_km: float = 3, dates: int = 8, cities: int = len(CITIES)) -> Path:
    """Write the archives of cities, and return their table.

    The simulator has one place. Its zone and centre are moved here: the UTM zones are congruent.
    """
    rows = ["name\taoi\tstac\tosm\n"]
    crs, centre = scenarios.CRS, scenarios.CENTRE
    try:
        for number, (name, seed, zone) in enumerate(CITIES[:cities]):
            scenarios.CRS = osm_xml.CRS = f"EPSG:326{zone}"
            scenarios.CENTRE = (centre[0] - APART_M * number, centre[1])
            archive.simulate(folder / name, seed=seed, size_km=size_km, dates=dates)
            rows.append(f"{name}\t{name}/aoi.geojson\t{name}/catalog.json\t{name}/osm/city.osm\n")
    finally:
        scenarios.CRS, scenarios.CENTRE, osm_xml.CRS = crs, centre, crs
    table = folder / "cities.tsv"
    table.write_text("".join(rows))
    return table
