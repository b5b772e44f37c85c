"""The page in a real browser: it loads, zooms, compares, grows with a run, and runs no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from growing import GrowingRun, ramp, serving, write_output

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1200,800",
)  # fmt: skip
SECONDS = 20
EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> & "dunes"'
CENTRE = "const v = hires.panes[{0}].viewer.viewport; const c = v.getCenter();"
PLACE = CENTRE + "return [v.getZoom(), c.x, c.y]"
MOST_ZOOM = "return hires.panes[{0}].viewer.viewport.getMaxZoom()"
TILES = "return performance.getEntriesByType('resource').map(e => e.name)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"{CHROMIUM} and {DRIVER} are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[str], Any]]:
    """Opens a page, and looks for errors in the console when the test is over."""

    def open_page(url: str) -> Any:
        browser.get(url)
        until(lambda: browser.execute_script("return !!window.hires && hires.panes.length > 0"))
        return browser

    yield open_page
    entries = browser.get_log("browser")
    browser.get("about:blank")
    assert [entry["message"] for entry in entries] == []


def until(holds: Callable[[], Any], what: str = "it") -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen in {SECONDS} s")


def loaded(browser: Any, pane: int = 0) -> bool:
    script = f"const i = hires.panes[{pane}].item; return !!i && i.getFullyLoaded()"
    return bool(browser.execute_script(script))


def levels(browser: Any) -> set[int]:
    """The levels of the tiles that were fetched."""
    names = [name for name in browser.execute_script(TILES) if "/tiles/" in name]
    return {int(name.split("/")[-2]) for name in names}


def test_zooming_fetches_deeper_tiles(tmp_path: Path, opened: Callable) -> None:
    path = write_output(tmp_path / "dunes.tif", ramp(2048, 2048), tile_px=256)
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        until(lambda: loaded(browser), "loading")
        assert browser.title == "dunes.tif"
        first = levels(browser)
        assert first
        assert 11 not in first  # the whole picture, on a small window
        browser.find_element("id", "zoom").click()
        until(lambda: 11 in levels(browser), "fetching the deepest level")
        until(lambda: browser.find_element("id", "percent").text == "100%", "100%")
        browser.find_element("css selector", "body").send_keys("0")
        until(lambda: browser.find_element("id", "percent").text != "100%", "going home")
        origins = {name.split("/")[2] for name in browser.execute_script(TILES)}
        assert origins == {server.url.split("/")[2]}  # nothing is asked of anybody else


def test_colours_and_places_are_those_of_the_file(tmp_path: Path, opened: Callable) -> None:
    path = write_output(tmp_path / "dunes.tif", ramp(1000, 600), tile_px=256)
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        until(lambda: loaded(browser), "loading")
        time.sleep(0.5)  # tiles fade in
        # A canvas of one pixel, at a quarter of the width and three quarters of the height.
        pixel = browser.execute_script(
            "const p = hires.panes[0]; const w = p.viewer.viewport;"
            "const at = w.viewportToViewerElementCoordinates("
            "new OpenSeadragon.Point(0.25, 0.75 * 0.6));"
            "const c = p.viewer.drawer.canvas; const s = devicePixelRatio;"
            "return [...c.getContext('2d').getImageData(at.x * s, at.y * s, 1, 1).data]"
        )
    assert pixel[0] == pytest.approx(64, abs=6)
    assert pixel[1] == pytest.approx(191, abs=6)
    assert pixel[2] == pytest.approx(128, abs=6)


def test_stages_are_exchanged_in_place(tmp_path: Path, opened: Callable) -> None:
    output = tmp_path / "dunes.tif"
    run = GrowingRun(output, 1024)
    with serving(tmp_path, output) as server:
        browser = opened(server.url)
        until(lambda: "stage 1 of 3" in text(browser, "message"), "waiting for a stage")
        run.finish_stage(0)
        until(lambda: loaded(browser), "the first stage")
        assert "making stage 2 of 3" in text(browser, "panes")
        assert "showing stage 1" in text(browser, "panes")
        browser.execute_script(
            CENTRE.format(0) + "v.zoomTo(3, null, true);"
            "v.panTo(new OpenSeadragon.Point(0.3, 0.6), true)"
        )
        before, place = version(browser), browser.execute_script(PLACE.format(0))
        for step in (lambda: run.call(1, 0), lambda: run.finish_stage(1)):
            step()
        until(lambda: version(browser) != before, "the second stage")
        assert browser.execute_script(PLACE.format(0)) == pytest.approx(place)
        assert browser.execute_script("return hires.panes[0].item.source.dimensions.x") == 512
        run.finish_stage(2)
        run.finish()
        until(lambda: "1,024 \u00d7 1,024" in text(browser, "panes"), "the file")
        until(lambda: not browser.find_element("id", "bar").is_displayed(), "the bar's going")
        until(lambda: items(browser) == 1, "the old picture's going")
        assert browser.execute_script(PLACE.format(0)) == pytest.approx(place)


def test_two_pictures_zoom_together(tmp_path: Path, opened: Callable) -> None:
    one = write_output(tmp_path / "one.tif", ramp(512, 512), seed=1)
    two = write_output(tmp_path / "two.png", ramp(1024, 1024), seed=2, format="png")
    with serving(tmp_path, one, two) as server:
        browser = opened(server.url)
        until(lambda: loaded(browser, 0) and loaded(browser, 1), "loading")
        browser.find_element("id", "in").click()
        browser.find_element("css selector", "body").send_keys("\ue014")  # right arrow
        time.sleep(1)
        one_place, two_place = (browser.execute_script(PLACE.format(i)) for i in (0, 1))
        assert one_place[0] > 1.2
        assert two_place == pytest.approx(one_place, abs=1e-3)
        browser.find_element("css selector", "body").send_keys("i")
        until(lambda: "Recipe" in text(browser, "panel").title(), "showing the recipe")
        rows = browser.find_elements("css selector", "#panel tr.differs th")
        assert {row.text for row in rows} >= {"seed", "format", "width", "height"}
        limits = [browser.execute_script(MOST_ZOOM.format(i)) for i in (0, 1)]
        assert limits[0] == pytest.approx(limits[1])  # that of the larger one
        browser.find_element("css selector", "body").send_keys("s")
        assert browser.find_element("id", "cut").is_displayed()
        time.sleep(1)
        one_place, two_place = (browser.execute_script(PLACE.format(i)) for i in (0, 1))
        assert two_place == pytest.approx(one_place, abs=1e-3)


def test_a_phone(tmp_path: Path, opened: Callable) -> None:
    path = write_output(tmp_path / "dunes.tif", ramp(512, 512), prompt="dunes " * 200)
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        try:
            until(lambda: loaded(browser), "loading")
            browser.find_element("id", "info").click()
            until(lambda: "dunes" in text(browser, "told"), "showing the recipe")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            for name in ("tools", "panel", "scale"):
                box = browser.find_element("id", name).rect
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 360
                assert box["y"] + box["height"] <= 700
            browser.find_element("id", "close").click()
            browser.find_element("id", "zoom").click()
            until(lambda: text(browser, "percent") == "100%", "100%, two pixels to the point")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_text_of_files_is_text(tmp_path: Path, opened: Callable) -> None:
    path = write_output(tmp_path / "<b>x.tif", ramp(64, 64), prompt=EVIL)
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        browser.find_element("id", "info").click()
        quote = browser.find_element("css selector", "#panel blockquote")
        until(lambda: quote.text == EVIL, "showing the prompt")
        assert browser.execute_script("return window.hacked") is None
        assert "<b>x.tif" in text(browser, "panes")


def text(browser: Any, name: str) -> str:
    return str(browser.find_element("id", name).text)


def version(browser: Any) -> str:
    return str(browser.execute_script("return hires.panes[0].root.dataset.version"))


def items(browser: Any) -> int:
    return int(browser.execute_script("return hires.panes[0].viewer.world.getItemCount()"))


def test_parts_that_are_damaged_are_told(tmp_path: Path, browser: Any) -> None:
    path = write_output(tmp_path / "dunes.tif", ramp(1024, 1024), tile_px=128)
    with tifffile.TiffFile(path) as tiff:
        places = tiff.pages.first.dataoffsets
    with path.open("r+b") as file:
        for place in places:  # of the full level only
            file.seek(place)
            file.write(bytes(64))
    with serving(tmp_path, path) as server:
        browser.get(server.url)
        until(lambda: browser.execute_script("return !!window.hires && !!hires.panes.length"))
        until(lambda: "1,024" in text(browser, "panes"), "loading")
        browser.find_element("id", "zoom").click()
        until(lambda: "cannot be read" in text(browser, "panes"), "telling of the damage")
    browser.get("about:blank")
    browser.get_log("browser")


@pytest.mark.parametrize("zoom", [2.0, 2.3, 2.78, 4.0])
def test_no_lines_between_tiles(tmp_path: Path, opened: Callable, zoom: float) -> None:
    pixels = np.full((768, 768, 3), (60, 140, 200), np.uint8)
    path = write_output(tmp_path / "flat.tif", pixels, tile_px=128)
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        until(lambda: loaded(browser), "loading")
        browser.execute_script(
            "const p = hires.panes[0]; const v = p.viewer.viewport;"
            f"v.zoomTo(p.item.imageToViewportZoom({zoom} / devicePixelRatio), null, true);"
            "v.panTo(new OpenSeadragon.Point(0.501, 0.502), true)"
        )
        time.sleep(0.3)
        until(lambda: loaded(browser), "loading")
        time.sleep(0.5)  # tiles fade in
        spread = browser.execute_script(
            "const c = hires.panes[0].viewer.drawer.canvas;"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "const low = [255, 255, 255], high = [0, 0, 0];"
            "for (let i = 0; i < d.length; i++) if (i % 4 < 3) {"
            "low[i % 4] = Math.min(low[i % 4], d[i]); high[i % 4] = Math.max(high[i % 4], d[i]) }"
            "return low.map((v, i) => high[i] - v)"
        )
    assert max(spread) <= 2


def test_a_small_picture_at_100_percent(tmp_path: Path, opened: Callable) -> None:
    path = write_output(tmp_path / "small.tif", ramp(300, 200))
    with serving(tmp_path, path) as server:
        browser = opened(server.url)
        until(lambda: loaded(browser), "loading")
        browser.find_element("css selector", "body").send_keys("1")
        until(lambda: text(browser, "percent") == "100%", "100%")
        time.sleep(1)
        assert text(browser, "percent") == "100%"
