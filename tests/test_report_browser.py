"""The report in a real browser: drawn, quiet, offline, in both colour schemes, and without JavaScript."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report import VELOCITY, make_run

from stage2_temporal.report import write_report

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "speed": make_run(folder / "sample-ego_speed"),
        "velocity": make_run(folder / "tusimple-velocity", VELOCITY),
        "flat": make_run(folder / "flat", VELOCITY, shrink=0.04, trained_backbone=False, weights="random"),
        "dense": make_run(folder / "video", dense=True, clips=300),
    }
    return {name: write_report(*run) for name, run in runs.items()}


class Visit:
    """A page that was opened, and everything it asked for or complained about."""

    def __init__(self, browser: sync_api.Browser, path: Path, *, scheme: str, script: bool, width: int) -> None:
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            color_scheme=scheme, java_script_enabled=script, viewport={"width": width, "height": 900}
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri(), wait_until="load")

    def close(self) -> None:
        self.context.close()

    def picture(self, name: str) -> None:
        if folder := os.environ.get("FRAMEBANK_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("kind", "plots"), [("speed", 5), ("velocity", 8), ("flat", 8), ("dense", 6)])
def test_every_plot_is_drawn_quietly_and_offline(
    browser: sync_api.Browser, reports: dict[str, Path], kind: str, plots: int, scheme: str
) -> None:
    visit = Visit(browser, reports[kind], scheme=scheme, script=True, width=1240)
    page = visit.page
    page.locator(".plot.drawn .xy").nth(plots - 1).wait_for(state="attached")
    marks = ".scatterlayer .js-line, .scatterlayer .point, .barlayer .point"
    drawn, stale = (
        page.evaluate(f"[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('{what}').length)")
        for what in (marks, ":scope > svg")
    )
    assert len(drawn) == plots and min(drawn) > 0 and max(stale) == 0
    clouds = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.scatterlayer .point').length)"
    )
    assert max(clouds) == (300 if kind == "dense" else 40)
    page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.picture(f"{kind}-{scheme}")
    assert visit.faults == []
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data"}
    assert [url for url in visit.requests if url.startswith("file")] == [reports[kind].as_uri()]
    visit.close()


def test_the_plots_follow_the_scheme(browser: sync_api.Browser, reports: dict[str, Path]) -> None:
    visit = Visit(browser, reports["speed"], scheme="light", script=True, width=1240)
    colour = "getComputedStyle(document.querySelectorAll('.scatterlayer .point')[5]).fill"
    light = visit.page.evaluate(colour)
    visit.page.emulate_media(color_scheme="dark")
    sync_api.expect(visit.page.locator(".scatterlayer .point").nth(5)).to_have_css("fill", "rgb(125, 176, 255)")
    assert light == "rgb(31, 95, 208)"
    assert visit.faults == []
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_without_javascript_everything_is_there(
    browser: sync_api.Browser, reports: dict[str, Path], scheme: str
) -> None:
    visit = Visit(browser, reports["speed"], scheme=scheme, script=False, width=1240)
    page = visit.page
    assert page.locator(".plot > svg").count() == 5
    for i in range(5):
        box = page.locator(".plot > svg").nth(i).bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 200
    assert page.locator(".clip img").count() == 88
    assert page.get_by_text("Better than a constant on the test split").is_visible()
    assert page.locator("tr.constant").first.is_visible()
    visit.picture(f"speed-{scheme}-no-script")
    assert visit.faults == []
    visit.close()


def test_a_narrow_window_needs_no_sideways_scrolling(browser: sync_api.Browser, reports: dict[str, Path]) -> None:
    visit = Visit(browser, reports["velocity"], scheme="light", script=True, width=390)
    visit.page.locator(".plot.drawn .xy").nth(7).wait_for(state="attached")
    visit.picture("velocity-narrow")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.close()


def test_a_name_from_the_data_is_text_in_a_hover_label(browser: sync_api.Browser, tmp_path: Path) -> None:
    folder, store = make_run(tmp_path / "run")
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace("test/", "<i>test</i>/"))
    store.sequences = tuple(
        type(s)(**{**vars(s), "id": s.id.replace("test/", "<i>test</i>/")}) for s in store.sequences
    )
    visit = Visit(browser, write_report(folder, store), scheme="light", script=True, width=1240)
    place = visit.page.locator(".plot", has=visit.page.locator(".scatterlayer .point")).nth(2)
    place.scroll_into_view_if_needed()
    place.locator(".scatterlayer .point").nth(3).hover(force=True)
    visit.page.wait_for_selector(".hoverlayer .hovertext")
    assert "<i>test</i>/" in (visit.page.locator(".hoverlayer .hovertext").first.text_content() or "")
    assert visit.faults == []
    visit.close()
