"""Describe what is simulated: area, granule, passes, weather, processing baselines. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np

from sgdata.errors import SettingError
from sgdata.types import Grid, Window

CRS = "EPSG:32632"
TILE = "32UPU"
CENTRE = (684_000, 5_336_400)
# Rows above, columns left of, rows below and columns right of the area that a granule holds beyond it. Four different
# numbers, none a multiple of a block: a reader that forgets the window, or swaps its sides, is seen at once.
MARGIN_PX = (66, 42, 30, 36)
SNAP_M = 60  # the least common multiple of 10, 20 and 60 m: only then do the three grids nest


GROUNDS = ("plain", "context")
"""Kinds of ground: spectra of pixels distinguish the classes, or the arrangement of materials that they share."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Sky of one pass: cloud share, cloud size and height, cirrus, haze and snow strengths (0 to 1)."""

    name: str
    cloud: float
    cell_px: float = 120
    height_m: float = 1500
    cirrus: float = 0
    haze: float = 0
    snow: float = 0


@dataclass(frozen=True, kw_only=True)
class SimulatedScene:
    """One pass over the granule as it will lie in the catalogue."""

    index: int
    id: str
    time: datetime
    platform: str
    orbit: int
    epoch: int
    baseline: str
    offset_in_pixels: bool
    weather: Weather
    sun_azimuth: float
    sun_elevation: float


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that decides the bytes of an archive."""

    seed: int
    size_km: float
    dates: int
    layout: str = "earth-search"
    ground: str = "plain"

    @cached_property
    def area(self) -> Grid:
        """The area asked for, snapped to 60 m, 10 m pixels."""
        pixels = round(self.size_km * 1000 / SNAP_M) * SNAP_M // 10
        # Half of the side, snapped too: the origin must fall on the 60 m grid, not only the size.
        half = round(pixels * 5 / SNAP_M) * SNAP_M
        return Grid(crs=CRS, origin=(CENTRE[0] - half, CENTRE[1] + half), gsd_m=10, shape=(pixels, pixels))

    @cached_property
    def granule(self) -> Grid:
        """The grid of the scene files: the area and a margin."""
        top, left, bottom, right = MARGIN_PX
        west, north = self.area.origin
        height, width = self.area.shape
        shape = (height + top + bottom, width + left + right)
        return Grid(crs=CRS, origin=(west - left * 10, north + top * 10), gsd_m=10, shape=shape)

    @property
    def area_window(self) -> Window:
        """Window of the area in the granule."""
        return Window(row=MARGIN_PX[0], col=MARGIN_PX[1], height=self.area.shape[0], width=self.area.shape[1])


def create(seed: int, size_km: float, dates: int, layout: str = "earth-search", ground: str = "plain") -> Scenario:
    """Create a scenario. Raises SettingError if the ground is unknown, or size or dates are out of range."""
    if ground not in GROUNDS:
        raise SettingError(f"--ground {ground}: expected one of {', '.join(GROUNDS)}")
    for name, value, low, high in (("size", size_km, 2, 40), ("dates", dates, 3, 400), ("seed", seed, 0, 2**31 - 1)):
        if not low <= value <= high:
            unit = " (km)" if name == "size" else ""
            raise SettingError(f"--{name} {value}: expected {low} to {high}{unit}")
    return Scenario(seed=seed, size_km=size_km, dates=dates, layout=layout, ground=ground)


# --- passes --------------------------------------------------------------------------------

# One known overpass of each (platform, relative orbit); each repeats after ten days.
ANCHORS = (
    ("S2A", 65, datetime(2021, 5, 26, 10, 27, 27, tzinfo=UTC)),
    ("S2B", 65, datetime(2021, 5, 31, 10, 27, 27, tzinfo=UTC)),
    ("S2A", 22, datetime(2021, 5, 23, 10, 17, 33, tzinfo=UTC)),
    ("S2B", 22, datetime(2021, 5, 28, 10, 17, 33, tzinfo=UTC)),
)
# Its swath ends within the tile: half of such a scene is nodata, which a composite must not take for dark ground.
PARTIAL_ORBIT = 22
EMPTY_MONTH, HOLE_FROM = "2019-11", 24
"""From so many dates on an archive has a month without any pass, as catalogues do."""
OLDEST = "02.06"
"""Baseline of a twin: what was processed first, and should not be chosen."""
Pass = tuple[datetime, str, int]


def passes(start: datetime, end: datetime, partial_platforms: tuple[str, ...]) -> list[Pass]:
    """Return the overpasses in [start, end), by time; the orbit that covers a part only of the platforms named."""
    passes = []
    for platform, orbit, anchor in ANCHORS:
        if orbit == PARTIAL_ORBIT and platform not in partial_platforms:
            continue
        # The first pass of the ten-day repeat cycle that is not before `start`.
        time = anchor + timedelta(days=10) * math.ceil((start - anchor) / timedelta(days=10))
        while time < end:
            passes.append((time, platform, orbit))
            time += timedelta(days=10)
    return sorted(passes)


def _choose_spread(candidates: list[Pass], count: int, rng: np.random.Generator) -> list[Pass]:
    """Choose `count` passes spread over the candidates, one in each equal piece."""
    # Stratified: a plain draw of a dozen days may leave a whole season out.
    ratio = len(candidates) / count
    picks = [int(i * ratio + rng.random() * (ratio - 1)) for i in range(count)]
    return [candidates[pick] for pick in picks]


def scenes(scenario: Scenario) -> list[SimulatedScene]:
    """Return the scenes of both epochs by time: `scenario.dates` before April 2020, a quarter of that in 2022."""
    rng = np.random.Generator(np.random.Philox(key=scenario.seed))
    # The paper's composite draws on three years to April 2020. One year of that has 110 passes; a small archive stays
    # in it, so that its seasons are covered evenly.
    year, partial = (2019, ("S2A",)) if scenario.dates <= 100 else (2017, ("S2A", "S2B"))
    first = passes(datetime(year, 4, 1, tzinfo=UTC), datetime(2020, 4, 1, tzinfo=UTC), partial)
    if scenario.dates >= HOLE_FROM:
        first = [overpass for overpass in first if f"{overpass[0]:%Y-%m}" != EMPTY_MONTH]
    second = passes(datetime(2022, 4, 1, tzinfo=UTC), datetime(2022, 10, 1, tzinfo=UTC), ("S2A", "S2B"))
    before = _choose_spread(first, scenario.dates, rng)
    after = _choose_spread(second, min(max(3, scenario.dates // 4), len(second)), rng)
    weathers = _draw_weather(before, rng) + _draw_weather(after, rng)
    return [
        _scene(index, overpass, weather, 1 if index < len(before) else 2, scenario.layout)
        for index, (overpass, weather) in enumerate(zip(before + after, weathers, strict=True))
    ]


def _scene(index: int, overpass: Pass, weather: Weather, epoch: int, layout: str) -> SimulatedScene:
    time, platform, orbit = overpass
    azimuth, elevation = sun(time)
    baseline, with_offset = _processing(time, index, epoch, layout)
    scene = SimulatedScene(
        index=index,
        id="",
        time=time,
        platform=platform,
        orbit=orbit,
        epoch=epoch,
        baseline=baseline,
        offset_in_pixels=with_offset,
        weather=weather,
        sun_azimuth=azimuth,
        sun_elevation=elevation,
    )
    return replace(scene, id=item_id(scene, layout, sequence=1 if baseline == "05.00" else 0))


def item_id(scene: SimulatedScene, layout: str, *, sequence: int, tile: str = TILE) -> str:
    """Return the item id in the style of a provider: short with a sequence digit, or most of the product name."""
    if layout == "earth-search":
        return f"{scene.platform}_{tile}_{scene.time:%Y%m%d}_{sequence}_L2A"
    number = f"N{scene.baseline.replace('.', '')}_" if layout in {"cdse", "eopf"} else ""
    stem = f"{scene.platform}_MSIL2A_{scene.time:%Y%m%dT%H%M%S}_{number}R{scene.orbit:03d}_T{tile}"
    return f"{stem}_{processing_time(scene):%Y%m%dT%H%M%S}"


def processing_time(scene: SimulatedScene) -> datetime:
    """Return when the product was processed: on the day itself, or years later."""
    reprocessed = scene.baseline in {"04.00", "05.00"} and scene.epoch == 1
    if reprocessed or scene.baseline == "05.00":
        return datetime(2023, 3, 1, 0, 24, 41)
    return scene.time.replace(hour=13 if scene.baseline == OLDEST else 14)


def _processing(time: datetime, index: int, epoch: int, layout: str) -> tuple[str, bool]:
    """Return the processing baseline, and whether the offset of 1000 is in the pixels.

    Earth Search: as first produced, but every third scene reprocessed as 05.00, shifted or not. Planetary Computer:
    all of 2020 and before processed once more in 2020. Copernicus Data Space: Collection 1, as ESA's EOPF products.
    """
    if layout in {"cdse", "eopf"}:
        return "05.00", True
    if layout == "planetary-computer":
        return ("04.00", True) if epoch == 2 else ("02.12", False)
    # From 04.00 (January 2022) on, DN are 1000 higher and BOA_ADD_OFFSET says -1000. Archives
    # hold old scenes with and without the offset; every combination occurs.
    if epoch == 2:
        return "04.00", index % 3 == 0
    if index % 3 == 1:
        return "05.00", index % 2 == 1
    # The days on which ESA changed its processor from 02.11 to 02.12 and to 02.13.
    if time < datetime(2019, 5, 6, tzinfo=UTC):
        return "02.11", False
    return ("02.12" if time < datetime(2019, 11, 18, tzinfo=UTC) else "02.13"), False


def sun(time: datetime) -> tuple[float, float]:
    """Return azimuth and elevation in degrees at the city; declination and equation of time after Spencer (1971)."""
    longitude, latitude = 11.5, math.radians(48.15)
    # Fractional year in radians; the Fourier coefficients of Spencer, good to 0.0006 rad and half a minute.
    g = 2 * math.pi * (time.timetuple().tm_yday - 1) / 365
    declination = 0.006918 - 0.399912 * math.cos(g) + 0.070257 * math.sin(g) - 0.006758 * math.cos(2 * g)
    minutes = 0.000075 + 0.001868 * math.cos(g) - 0.032077 * math.sin(g)
    # 229.18 = 1440 / 2 pi: radians of the earth's turn to minutes.
    minutes = 229.18 * (minutes - 0.014615 * math.cos(2 * g) - 0.040849 * math.sin(2 * g))
    hours = time.hour + time.minute / 60 + longitude / 15 + minutes / 60 - 12
    # Hour angle: 15 degrees an hour, from true solar noon.
    angle = math.radians(15 * hours)
    sine = math.sin(latitude) * math.sin(declination)
    sine += math.cos(latitude) * math.cos(declination) * math.cos(angle)
    elevation = math.asin(sine)
    east = -math.cos(declination) * math.sin(angle)
    north = math.sin(declination) * math.cos(latitude)
    north -= math.cos(declination) * math.sin(latitude) * math.cos(angle)
    return math.degrees(math.atan2(east, north)) % 360, math.degrees(elevation)


# --- weather -------------------------------------------------------------------------------


def _draw_weather(overpasses: list[Pass], rng: np.random.Generator) -> list[Weather]:
    """Draw the weather of each pass: a quarter clear, the rest scattered to overcast; mean cloud share near 0.4.

    The clear days are first those of the orbit that covers everything and outside winter, so that every place is
    seen clear; the clearest winter day has snow.
    """
    count = len(overpasses)
    # Most of the ground is clear at least once in a small archive too.
    kinds = np.array(["clear", "scattered", "broken", "overcast" if count >= 6 else "broken", "cirrus"])
    shares = np.array([0.25, 0.32, 0.19, 0.16, 0.08])
    # Quantiles, not draws: twelve independent draws might hold no clear day at all.
    ranks = (np.arange(count) + 0.5) / count
    day_kinds = list(kinds[np.searchsorted(shares.cumsum(), ranks, side="right").clip(0, 4)])
    in_winter = [time.month in (12, 1, 2) for time, _, _ in overpasses]
    order = sorted(range(count), key=lambda i: (overpasses[i][2] == PARTIAL_ORBIT or in_winter[i], float(rng.random())))
    clear = order[: day_kinds.count("clear")]
    other_days = [i for i in range(count) if i not in clear]
    rng.shuffle(other_days)
    weathers = [_draw_sky("clear", rng)] * count
    for index, kind in zip(clear + other_days, day_kinds, strict=True):
        weathers[index] = _draw_sky(kind, rng)
    winter = [i for i in other_days if in_winter[i]]
    if winter and count >= 6:
        # Snow under cloud would not be visible.
        clearest = min(winter, key=lambda i: weathers[i].cloud)
        weathers[clearest] = Weather(name="snow", cloud=0.05, cell_px=90, snow=0.9)
    return weathers


def _draw_sky(kind: str, rng: np.random.Generator) -> Weather:
    low, high = {"clear": (0, 0.03), "scattered": (0.2, 0.5), "broken": (0.5, 0.8)}.get(kind, (0.05, 0.2))
    cloud, size, height = rng.uniform(low, high), rng.uniform(70, 200), rng.uniform(900, 2600)
    # Broken decks are wide sheets, fair-weather cumulus is small.
    size = size if kind == "broken" else size * 0.45
    haze = float(rng.random() < 0.5) * rng.uniform(0.1, 0.6)
    if kind == "overcast":
        return Weather(name=kind, cloud=rng.uniform(0.93, 1.0), cell_px=300, height_m=height, haze=haze)
    cirrus = rng.uniform(0.4, 0.8) if kind == "cirrus" else 0.0
    return Weather(name=kind, cloud=cloud, cell_px=size, height_m=height, cirrus=cirrus, haze=haze)
