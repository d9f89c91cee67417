"""Test the page: its files, and its behaviour in a real browser (Chromium through Playwright)."""

from __future__ import annotations

import json
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgdata import files, output_names, verification
from sgdata.errors import OutputError, SourceError
from sgdata.pages import charts, html, output_page, raster_tiles, run, samples
from sgdata.rasters import cog
from sgdata.scenes import lock
from sgdata.shards import tar_format
from sgdata.types import Array, Window
from tests import synthetic_build, synthetic_shards

SHAPE = (300, 420)
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_build.write(tmp_path_factory.mktemp("show") / "build", SHAPE)


@pytest.fixture(scope="session")
def shown(built: Path) -> Path:
    return output_page.write(built, built.with_name("page"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Write a run folder with the files that a page is made from."""
    out = synthetic_shards.write(tmp_path / "shards").with_name("run")
    (out / "pictures").mkdir(parents=True)
    shutil.copy(out.parent / "shards" / "contract.json", out)
    steps = [{"step": n, "loss": 2.0 / (n + 1), "loss_B02": 1.0, "lr": 0.1} for n in range(9)]
    steps += [{"step": n, "miou": 0.1 * n, "epoch": n} for n in (4, 8)]
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    scores = {"dark": 0.5, "left": None, "right": 1.0, "bright": 0.25}
    confusion = [[5, 0, 0, 1], [0, 0, 0, 0], [0, 0, 9, 0], [2, 0, 0, 2]]
    results = {"miou": 0.58, "interval": [0.5, 0.6], "per_class_iou": scores, "confusion": confusion, "word": "dark"}
    (out / "results.json").write_text(json.dumps(results))
    (out / "checkpoint-last").mkdir()
    (out / run.CHECKPOINT_CARD).write_text(json.dumps({"model": {"kind": "segmenter"}}))
    for step in (1, 8):
        html.write_png(out / "pictures" / f"step-{step:06d}.png", np.full((4, 4, 3), step, np.uint8))
    files.write_sums(out)
    return out


# --- pieces --------------------------------------------------------------------------------


def undone(text: bytes) -> tuple[str, Array]:
    """Decode a file of pixel values by its documented format, one value after the other."""
    call = text.decode("utf-16")
    match = re.fullmatch(r'sg\.put\("([^"]+)",(\[[0-9, ]+\]),"([^"]*)"\)\n', call)
    assert match
    planes, height, width, size = json.loads(match[2])
    bits = "".join(f"{ord(letter) - 0x2A00:015b}" for letter in match[3])
    packed = bytes(int(bits[i : i + 8], 2) for i in range(0, 8 * size, 8))
    raw = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(2, planes, height, width).astype(int)
    folded = raw[0] << 8 | raw[1]
    out = np.zeros((planes, height, width), np.uint16)
    for p, y, x in np.ndindex(*out.shape):
        left = int(out[p, y, x - 1]) if x else 0
        up = int(out[p, y - 1, x]) if y else 0
        corner = int(out[p, y - 1, x - 1]) if x and y else 0
        guess = sorted((left, up, left + up - corner))[1]
        number = int(folded[p, y, x])
        out[p, y, x] = (guess + (number // 2 if number % 2 == 0 else -(number + 1) // 2)) % 65536
    return match[1], out


@settings(max_examples=50)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 65535)))
def test_a_value_file_contains_its_values(tmp_path_factory: pytest.TempPathFactory, values: Array) -> None:
    place = tmp_path_factory.mktemp("pieces") / "values"
    raster_tiles.write_piece(place, "t-0-1", values)
    name, back = undone((place / "t-0-1.js").read_bytes())
    assert name == "values/t-0-1"
    np.testing.assert_array_equal(back, values)


def test_tiles_and_overview_equal_the_values_of_rasterio(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster_tiles, "OVERVIEW_PX", 100)  # 420 columns: every fifth
    planes = [
        raster_tiles.Plane(name="B04", path=built / "image.tif", band=4),
        raster_tiles.Plane(name="l", path=built / "labels.tif"),
    ]
    written = raster_tiles.write(tmp_path / "values", planes)
    with rasterio.open(built / "image.tif") as raster:
        values = raster.read(4)
    assert (written.shape, written.step) == (SHAPE, 5)
    np.testing.assert_array_equal(written.overview["B04"], values[::5, ::5])
    _, corner = undone((tmp_path / "values" / "t-1-1.js").read_bytes())
    np.testing.assert_array_equal(corner[0], values[256:, 256:])
    assert len(list((tmp_path / "values").glob("t-*.js"))) == 4


# --- pages ---------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(built: Path, shown: Path, tmp_path: Path) -> None:
    again = output_page.write(built, tmp_path / "elsewhere" / "page")
    assert (again.parent / output_names.SUMS).read_bytes() == (shown.parent / output_names.SUMS).read_bytes()
    assert verification.verify(shown.parent) == []
    # A second page over the first leaves nothing of it.
    (again.parent / "values" / "old.js").write_text("old")
    output_page.write(built, again.parent)
    assert verification.verify(again.parent) == []


@pytest.mark.parametrize(("bands", "layers"), [(5, 5), (4, 4), (3, 0)])
def test_builds_of_older_composites_are_shown_without_bright_targets(bands: int, layers: int, tmp_path: Path) -> None:
    build = synthetic_build.write(tmp_path / "build", (256, 256))
    path, usage_path = build / output_names.PROVENANCE, build / output_names.USAGE
    grid = lock.read(build / lock.NAME).grid
    with rasterio.open(path) as held:
        stored = held.read()[:bands]
    style = cog.RasterStyle(descriptions=output_names.PROVENANCE_BANDS[:bands], nodata=65535)
    cog.write(path, grid, [(Window(row=0, col=0, height=256, width=256), stored)], style=style)
    usage = json.loads(usage_path.read_text())
    if bands < 5:
        del usage["bright_target_share"], usage["never_clear_share"]
    usage_path.write_text(json.dumps(usage))
    files.write_sums(build)
    if not layers:
        with pytest.raises(SourceError, match=r"provenance.tif: has 3 bands.*build it again"):
            output_page.write(build, tmp_path / "page")
        return
    text = output_page.write(build, tmp_path / "page").read_text()
    assert (bands == 5) == ("Bright targets" in text) == ("cloud on all dates" in text)
    assert "Valid observations" in text


def test_other_folders_are_neither_shown_nor_replaced(built: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds none of image\.tif"):
        output_page.write(tmp_path, tmp_path / "page")
    with pytest.raises(SourceError, match="no such file"):
        output_page.write(tmp_path / "absent", tmp_path / "page")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="files that are not an earlier page"):
        output_page.write(built, tmp_path / "work")
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"
    # The refusal above left a begun page behind: it is ours.
    assert output_page.write(built, tmp_path / "page").is_file()


def test_texts_are_escaped_and_findings_shown(shown: Path) -> None:
    text = shown.read_text("utf-8")
    assert "B09 is &lt;constant&gt;" in text
    assert "residual cloud" in text
    assert not re.search(r'(src|href)="(?!#|bokeh|samples|[\w-]+\.png)', text)
    assert "http" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_a_name_cannot_end_its_element(tmp_path: Path) -> None:
    block = html.Chart(title="x", figure='{"a": "</script><b>"}', label='"<')
    text = html.write(tmp_path / "index.html", title="<i>", intro="&", blocks=[block]).read_text("utf-8")
    assert '{"a": "\\u003c/script>\\u003cb>"}' in text
    assert "<i>" not in text


def test_ids_of_figures_do_not_depend_on_earlier_figures() -> None:
    first, second = (charts.lines({"loss": [(0, 1.0), (1, 0.5)]}, "step") for _ in range(2))
    assert first == second


def test_a_run_has_losses_scores_and_its_last_picture(trained: Path, tmp_path: Path) -> None:
    blocks = {block.title: block for block in run.build_blocks(trained, tmp_path)}
    assert list(blocks) == [
        "Loss",
        "Validation",
        "Learning rate",
        "Loss per band",
        "Figures",
        "per class iou",
        "Confusion matrix",
        "Predictions",
    ]
    rows = (("miou", "0.5800"), ("interval", "0.5000 to 0.6000"), ("word", "dark"))
    assert blocks["Figures"] == html.Table(title="Figures", columns=("figure", "value"), rows=rows)
    bars = blocks["per class iou"]
    assert isinstance(bars, html.Bars)
    assert bars.bars[1] == ("left", "#3050a0", (None,))
    assert (tmp_path / "run.png").read_bytes() == (trained / "pictures" / "step-000008.png").read_bytes()


@pytest.mark.parametrize(
    ("card", "title"),
    [
        ({"model": {"kind": "autoencoder"}}, "Reconstructions"),
        ({"model": {"kind": "a new kind"}}, "Pictures"),
        ({"model": "none"}, "Pictures"),
        (None, "Pictures"),
    ],
)
def test_pictures_have_the_title_of_the_model_on_the_card(
    card: dict[str, Any] | None, title: str, trained: Path, tmp_path: Path
) -> None:
    place = trained / run.CHECKPOINT_CARD
    place.unlink()
    if card:
        place.write_text(json.dumps(card))
    assert run.build_blocks(trained, tmp_path / "page")[-1].title == title


def test_a_folder_of_runs_with_its_ledger(trained: Path, tmp_path: Path) -> None:
    figure = {"published": None, "values": [0.5], "mean": 0.5, "interval": None}
    row = {"name": "base", "start": "random", "state": "run", "figures": {"miou": figure}, "reasons": [], "runs": []}
    table = {"name": "City", "metrics": ["miou"], "note": "", "data": None, "rows": [row]}
    ledger = {"title": "City", "tables": [{**table, "sentences": ["so be it"], "audit": [], "audited": False}]}
    (trained.parent / "ledger.json").write_text(json.dumps(ledger))
    (trained.parent / "shards" / output_names.INDEX).unlink()
    text = output_page.write(trained.parent, tmp_path / "page").read_text("utf-8")
    assert "City: miou" in text
    assert "run: Confusion matrix" in text


def test_samples_are_spread_over_splits() -> None:
    rows = [{"split": "train" if n < 950 else "val", "key": n} for n in range(1000)]
    chosen = samples.spread(rows, 100)
    assert sum(row["split"] == "val" for row in chosen) == 10
    assert chosen[0]["key"] == 0
    assert chosen[-1]["key"] == 999


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_labelled_scenes_have_their_classes_in_words(task: Any, tmp_path: Path) -> None:
    source = synthetic_shards.write_scenes(tmp_path / "shards", task=task)
    gallery, bars, *_ = samples.build_blocks(source, tmp_path / "page")
    assert isinstance(gallery, html.Gallery)
    assert len(gallery.cards) == 20
    assert gallery.cards[0].values["class"] == ("dark",)
    assert isinstance(bars, html.Bars)
    assert sum(values[0] or 0 for _, _, values in bars.bars) == pytest.approx(1)


# --- in a browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    programs = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]
    if not programs:
        pytest.skip("no Chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=programs[0], args=list(OPTIONS), timeout=PATIENCE_MS)
        yield started
        started.close()


def opened(browser: Any, index: Path, **options: Any) -> Any:
    """Open the page; any console error and any request that leaves the disk fails the test."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
    tab.set_default_timeout(PATIENCE_MS)
    tab.faults = []
    tab.on("console", lambda message: tab.faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "blob:", "data:")) else tab.faults.append(asked.url),
    )
    tab.goto(index.as_uri())
    tab.wait_for_selector("html[data-ready]", state="attached")
    return tab


def read_popup(tab: Any, row: int, col: int) -> dict[str, str]:
    """Return the values that the page shows for a pixel, once they are shown."""
    tab.wait_for_selector(f'.map[data-picked="{row},{col}"]', state="attached")
    names, values = (
        tab.eval_on_selector_all(f".pixel-values {tag}", "all => all.map(e => e.textContent)") for tag in ("dt", "dd")
    )
    cells = tab.eval_on_selector_all(".values tbody tr", "all => all.map(e => [...e.children].map(c => c.textContent))")
    return dict(zip(names, values, strict=True)) | {band: value for band, value, _ in cells}


def expected(built: Path, row: int, col: int) -> dict[str, str]:
    """Return the same values from the rasters."""
    window = rasterio.windows.Window(col, row, 1, 1)
    with rasterio.open(built / "image.tif") as raster:
        said = {
            band: str(value)
            for band, value in zip(raster.descriptions, raster.read(window=window).ravel(), strict=True)
        }
    with rasterio.open(built / "provenance.tif") as raster:
        index, valid, day, score, target = (int(value) for value in raster.read(window=window).ravel())
    with rasterio.open(built / "labels.tif") as raster:
        said["Labels"] = raster.tags()[f"class_{int(raster.read(1, window=window)[0, 0]):03d}"]
    return said | {
        "Scene": synthetic_build.SCENES[index], "Valid observations": str(valid), "Date": str(np.datetime64(day, "D")),
        "Score": f"{score / 10000:.4f}", "Bright targets": {0: "none", 2: "cloud on all dates"}[target],
    }  # fmt: skip


def click(tab: Any, row: int, col: int, shape: tuple[int, int]) -> None:
    tab.locator(".view").scroll_into_view_if_needed()
    box = tab.locator(".view").bounding_box()
    tab.mouse.click(box["x"] + (col + 0.5) / shape[1] * box["width"], box["y"] + (row + 0.5) / shape[0] * box["height"])


def seen(tab: Any) -> Array:
    """Return the pixels of the map as on the screen."""
    import io

    from PIL import Image

    tab.wait_for_timeout(400)
    return np.asarray(Image.open(io.BytesIO(tab.locator(".view").screenshot())).convert("RGB")).astype(int)


def test_a_clicked_pixel_shows_the_values_of_rasterio(browser: Any, built: Path, shown: Path) -> None:
    tab = opened(browser, shown)
    for row, col in ((182, 92), (150, 200), (40, 333), (299, 419)):
        click(tab, row, col, SHAPE)
        said, right = read_popup(tab, row, col), expected(built, row, col)
        assert {key: said[key] for key in right} == right
    assert said["patches here"] == "none"
    # Without data there is no spectrum, and no scene.
    click(tab, 3, 3, SHAPE)
    assert read_popup(tab, 3, 3) | {"B02": "0", "Scene": "none", "Date": "none"} == read_popup(tab, 3, 3)
    assert tab.faults == []
    tab.close()


def test_layers_and_colours_change_the_map(browser: Any, shown: Path) -> None:
    tab = opened(browser, shown)
    plain = seen(tab)
    assert plain.std() > 10
    for name in (
        "labels",
        "label_source",
        "item_index",
        "valid_count",
        "days_since_1970",
        "score_x10000",
        "bright_target",
        "patches",
    ):
        tab.check(f'[name="show-{name}"]')
        assert np.abs(seen(tab) - plain).mean() > 1, name
        tab.uncheck(f'[name="show-{name}"]')
    assert np.abs(seen(tab) - plain).mean() < 0.01
    tab.click(".layer summary")
    tab.select_option('[name="preset"]', label="false colour")
    assert tab.input_value('[name="band-0"]') == "B08"
    assert np.abs(seen(tab) - plain).mean() > 1
    tab.select_option('[name="band-0"]', "B12")
    assert tab.input_value('[name="preset"]') == ""
    # A half transparent layer is between none and all of it.
    tab.check('[name="show-labels"]')
    whole = seen(tab)
    tab.fill('[name="opacity-labels"]', "20")
    assert np.abs(seen(tab) - whole).mean() > 1
    assert tab.faults == []
    tab.close()


def test_the_keyboard_reaches_every_value(browser: Any, built: Path, shown: Path) -> None:
    tab = opened(browser, shown)
    row, col = SHAPE[0] // 2, SHAPE[1] // 2
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.classList.contains('view')"):
            break
    else:
        pytest.fail("the map is not among the first 40 stops of the Tab key")
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "Shift+ArrowDown"):
        tab.keyboard.press(key)
    said = read_popup(tab, row + 31, col - 2)
    assert said["B8A"] == expected(built, row + 31, col - 2)["B8A"]
    before = seen(tab)
    tab.keyboard.press("+")
    assert np.abs(seen(tab) - before).mean() > 1
    tab.keyboard.press("0")
    assert np.abs(seen(tab) - before).mean() < 0.01
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.dataset.zoom") == "0.5"
    assert tab.faults == []
    tab.close()


CONTRAST = """() => {
  const part = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map((v) => part(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = document.querySelectorAll("h1,h2,h3,p,a,td,th,dt,dd,label,summary,figcaption,button,select,li");
  return Math.min(...[...texts].map((e) => {
    const [low, high] = [light(getComputedStyle(e).color), ground].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  }));
}"""
"""The least contrast of any text with the page's ground, by the formula of WCAG 2."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_light_and_dark_and_at_360_pixels(browser: Any, shown: Path, scheme: str, tmp_path: Path) -> None:
    tab = opened(browser, shown, color_scheme=scheme)
    assert tab.evaluate(CONTRAST) >= 4.5
    ground = seen(tab)
    assert ground.any()
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    # Every control has a distinct accessible name.
    assert tab.eval_on_selector_all("img", "all => all.every(e => e.alt)")
    assert tab.eval_on_selector_all(
        "input, select, button", "all => all.every(e => e.labels?.length || e.ariaLabel || e.textContent.trim())"
    )
    tab.screenshot(path=str(tmp_path / f"{scheme}.png"), full_page=True)
    assert tab.faults == []
    tab.close()


def test_samples_are_filtered(browser: Any, tmp_path: Path) -> None:
    source = synthetic_shards.write(tmp_path / "shards", train=9, val=3)
    tab = opened(browser, output_page.write(source, tmp_path / "page"))
    assert tab.inner_text(".gallery [role=status]") == "12 shown"
    tab.select_option('.gallery [name="split"]', "val")
    assert tab.locator(".card:visible").count() == 3
    tab.select_option('.gallery [name="split"]', "")
    tab.select_option('.gallery [name="class"]', "left")
    held = [row for row in tar_format.samples(source) if 1 in row.arrays["mask"]]
    assert tab.locator(".card:visible").count() == len(held)
    assert tab.faults == []
    tab.close()


def test_a_run_is_drawn(browser: Any, trained: Path, tmp_path: Path) -> None:
    tab = opened(browser, output_page.write(trained, tmp_path / "page"))
    assert tab.locator(".chart canvas").count() >= 3
    assert tab.locator(".matrix td").count() == 17
    assert tab.faults == []
    tab.close()


@pytest.mark.slow
def test_the_whole_of_munich_opens_at_once(browser: Any, tmp_path: Path) -> None:
    shape = (3847, 2958)
    large = synthetic_build.write(tmp_path / "build", shape)
    index = output_page.write(large, tmp_path / "page")
    sizes = {path: path.stat().st_size for path in index.parent.rglob("*") if path.is_file()}
    # Less than the rasters themselves, and little of it is read to open the page.
    assert sum(sizes.values()) < sum(path.stat().st_size for path in large.glob("*.tif"))
    start = time.monotonic()
    tab = opened(browser, index)
    taken = time.monotonic() - start
    print(f"{sum(sizes.values()) / 1e6:.0f} MB in {len(sizes)} files, open after {taken:.1f} s")
    for row, col in ((2000, 1500), (3846, 2957), (1023, 1024)):
        # A pixel of the screen holds several of the map: the cursor is brought there by the page's own means.
        click(tab, row, col, shape)
        tab.wait_for_function("old => document.querySelector('.map').dataset.picked !== old", arg="")
        tab.wait_for_timeout(500)
        near = [int(part) for part in tab.get_attribute(".map", "data-picked").split(",")]
        assert abs(near[0] - row) < 8
        said, right = read_popup(tab, *near), expected(large, *near)
        assert {key: said[key] for key in right} == right
    coarse = seen(tab)
    for _ in range(5):
        tab.click('[data-zoom="0.5"]')
    tab.wait_for_timeout(1500)
    assert np.abs(seen(tab) - coarse).mean() > 1
    assert tab.faults == []
    tab.close()
