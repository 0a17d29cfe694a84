"""The report in a real browser: quiet, offline, interactive, in both colour schemes, and whole without JavaScript."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from features.tracks import Track
from stage2_temporal.report import write_report
from stage2_temporal.runs.results import Results, read_results
from tests.report_runs import VELOCITY, Stored, make_run

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE, NARROW = {"width": 1240, "height": 900}, {"width": 390, "height": 844}

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


def tracked(store: Stored) -> Stored:
    """The store with a track for every sequence: 8 units to the right a frame, lost on frame 2."""
    for s in store.sequences:
        boxes = np.array([[64.0 * f + 80, 320.0, 64.0 * f + 240, 400.0] for f in range(s.length)])
        boxes[2] = np.nan
        store.tracks[s.id, 0] = Track(boxes, np.ones(s.length))
    return store


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "speed": make_run(folder / "sample-ego_speed"),
        "velocity": make_run(folder / "tusimple-velocity", VELOCITY),
        "dense": make_run(folder / "video", dense=True, clips=300),
    }
    tracked(runs["velocity"][1])
    return {name: write_report(*run) for name, run in runs.items()}


class Visit:
    """A page of the browser, and everything it asked for or complained about."""

    def __init__(self, browser: sync_api.Browser, *, script: bool = True) -> None:
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(java_script_enabled=script, viewport=WIDE)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def open(self, path: Path) -> sync_api.Page:
        self.page.goto(path.as_uri(), wait_until="load")
        return self.page


@pytest.fixture(scope="module")
def window(browser: sync_api.Browser) -> Iterator[Visit]:
    """The window that all tests with JavaScript share."""
    visit = Visit(browser)
    yield visit
    visit.context.close()


@pytest.fixture
def visit(window: Visit) -> Iterator[Visit]:
    """The shared window; whatever a test does there, nothing complains and nothing is fetched."""
    window.faults.clear()
    window.requests.clear()
    window.page.set_viewport_size(WIDE)
    window.page.emulate_media(color_scheme="light", media="screen")
    yield window
    assert window.faults == []
    assert {url.split(":")[0] for url in window.requests} <= {"file", "data"}
    assert all(url.endswith("report.html") for url in window.requests if url.startswith("file"))


@pytest.fixture(scope="module")
def velocity(reports: dict[str, Path]) -> Results:
    return read_results(reports["velocity"].parent)


def fits(page: sync_api.Page) -> bool:
    """Whether nothing sticks out sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def dots(page: sync_api.Page, plot: int) -> int:
    """How many dots a plot shows."""
    return (page.locator(".plot .points").nth(plot).get_attribute("d") or "").count("M")


def numbers(path: str | None) -> list[float]:
    """The numbers in an SVG path."""
    return [float(v) for v in re.findall(r"-?[\d.]+(?:e-?\d+)?", path or "")]


def hover(page: sync_api.Page, plot: int, dot: int) -> tuple[float, float]:
    """Put the pointer on a dot; where it is."""
    x, y = page.evaluate(
        """([plot, dot]) => {
            const path = document.querySelectorAll(".plot .points")[plot];
            path.ownerSVGElement.scrollIntoView({ block: "center" });
            const place = path.getAttribute("d").split("M")[dot + 1].split("h")[0].split(" ").map(Number);
            const at = new DOMPoint(...place).matrixTransform(path.ownerSVGElement.getScreenCTM());
            return [at.x, at.y];
        }""",
        [plot, dot],
    )
    page.mouse.move(x, y)
    return x, y


@pytest.mark.parametrize(("kind", "plots", "cloud"), [("speed", 5, 40), ("velocity", 8, 40), ("dense", 6, 300)])
def test_every_plot_is_drawn_in_both_schemes_and_widths(
    visit: Visit, reports: dict[str, Path], kind: str, plots: int, cloud: int
) -> None:
    page = visit.open(reports[kind])
    assert page.locator(".plot > svg").count() == plots
    assert dots(page, 0) == cloud
    page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for size in (WIDE, NARROW):
            page.set_viewport_size(size)
            assert fits(page)
        colours.add(page.evaluate("getComputedStyle(document.querySelector('.plot .points')).stroke"))
    assert colours == {"rgb(31, 95, 208)", "rgb(125, 176, 255)"}
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#viewer").is_visible() and page.locator(".clip").first.is_visible()


CONTRASTS = """() => {
    const luminance = (colour) => {
        const linear = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(colour) ? behind(element.parentElement) : colour;
    };
    const low = [];
    for (const element of document.querySelectorAll("main *:not(:disabled)")) {
        if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
        const style = getComputedStyle(element);
        const colour = element.ownerSVGElement ? style.fill : style.color;
        const [a, b] = [colour, behind(element)].map(luminance).sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push([element.textContent.trim().slice(0, 40), colour, behind(element)]);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(visit: Visit, reports: dict[str, Path], scheme: str) -> None:
    """By WCAG 2.2's contrast for small text, 4.5 to 1."""
    visit.page.emulate_media(color_scheme=scheme)
    assert visit.open(reports["velocity"]).evaluate(CONTRASTS) == []


def test_a_dot_tells_its_values_and_shows_its_clip(visit: Visit, reports: dict[str, Path], velocity: Results) -> None:
    page = visit.open(reports["velocity"])
    example = velocity.counted[7]
    tip = page.locator("#tip")
    assert not tip.is_visible()
    x, y = hover(page, 1, 7)
    said = tip.inner_text()
    assert example.sequence in said and "frames 0–7" in said and f"{example.distance:.1f} m away" in said
    for column, true, predicted in zip(VELOCITY, example.true, example.predicted, strict=True):
        assert f"{column}: true {true:.2f}, predicted {predicted:.2f} m/s".replace("-", "−") in said
    page.mouse.click(x, y)
    viewer = page.locator("#viewer")
    assert viewer.locator("h4").inner_text() == example.sequence
    cells = viewer.locator("tbody td").all_inner_texts()
    assert cells[0] == f"{example.true[0]:.2f}".replace("-", "−")
    assert f"{example.distance:.1f} m away" in viewer.locator("h4 + .where").inner_text()
    viewer.locator("img").evaluate("image => image.decode()")
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_a_bar_and_an_epoch_tell_their_values(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["speed"])
    page.locator(".plot .column").nth(4).hover()
    assert page.locator("#tip").inner_text().startswith("epoch 5: training ")
    page.locator(".plot .bars + .steps ~ .column").nth(3).hover()
    assert re.fullmatch(r"\S+ to \S+: model \d+, constant \d+", page.locator("#tip").inner_text())


def test_the_filter_changes_plots_and_figures(visit: Visit, reports: dict[str, Path], velocity: Results) -> None:
    page = visit.open(reports["velocity"])
    shown = page.locator("#shown")
    s = velocity.metrics.splits["test"]
    assert shown.locator(".n").inner_text() == "40 of 40"
    assert shown.locator(".rmse").inner_text() == f"{s.model.rmse:.2f}"
    assert shown.locator(".blank").inner_text() == f"{s.constant.rmse:.2f}"
    assert shown.locator(".skill").inner_text() == f"{s.model.skill:.2f}"

    bars = page.locator(".plot .bars").first
    whole = bars.get_attribute("d")
    for band, low, high in (("near", 0, 20), ("medium", 20, 45), ("far", 45, 1e9)):
        page.get_by_role("button", name=band).click()
        within = [e for e in velocity.counted if low <= e.distance < high]
        assert 0 < len(within) < 40
        assert shown.locator(".n").inner_text() == f"{len(within)} of 40"
        assert [dots(page, i) for i in range(4)] == [len(within)] * 4
        error = np.sqrt(np.mean([np.subtract(e.true, e.predicted) ** 2 for e in within]))
        assert shown.locator(".rmse").inner_text() == f"{error:.2f}"
        assert bars.get_attribute("d") != whole
        said = page.locator(".plot .bars + .steps ~ .column").evaluate_all("all => all.map(c => c.dataset.say)")
        counts = [int(n) for text in said for n in re.findall(r"model (\d+)", text)]
        assert sum(counts) == 2 * len(within)  # in each component's histogram

    far = page.get_by_label("Nearest distance")
    far.focus()
    page.keyboard.press("ArrowRight")
    assert shown.locator(".n").inner_text() == f"{sum(e.distance >= 46 for e in velocity.counted)} of 40"
    page.get_by_role("button", name="all").click()
    assert shown.locator(".n").inner_text() == "40 of 40" and bars.get_attribute("d") == whole


def test_a_filter_that_leaves_nothing_says_so(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["velocity"])
    page.get_by_label("Farthest distance").fill("0")
    said = " ".join(page.locator("#shown").inner_text().split())
    assert said == "shown 0 of 40 RMSE – m/s constant’s RMSE – m/s skill – constant’s skill –"
    assert page.get_by_role("button", name="better").is_disabled()


def test_clips_are_stepped_through_with_keys_slider_and_play(
    visit: Visit, reports: dict[str, Path], velocity: Results
) -> None:
    page = visit.open(reports["velocity"])
    worst = sorted(velocity.counted, key=lambda e: -e.error)
    second = page.locator(".clip").nth(1)
    second.locator(".strip .frame").nth(3).click()
    viewer = second.locator("#viewer")
    assert viewer.locator("h4").inner_text() == worst[1].sequence
    slider, image = viewer.get_by_label("Frame", exact=True), viewer.locator("img")
    size = image.bounding_box()
    assert size is not None and size["width"] > 500
    box, arrow = viewer.locator(".over .box"), viewer.locator(".over .true")

    def state() -> tuple[str, str | None, str | None, str | None]:
        shown = (box.get_attribute("x"), arrow.get_attribute("d"), image.get_attribute("src"))
        return (viewer.locator("output").inner_text(), *shown)

    assert slider.input_value() == "3" and state()[0] == "frame 3" and state()[1] == "34"
    third = state()
    page.keyboard.press("ArrowRight")  # the slider has the focus
    assert state()[0] == "frame 4" and state()[1] == "42"
    assert all(now != then for now, then in zip(state(), third, strict=True))
    slider.fill("0")
    assert state()[0] == "frame 0" and state()[1] == "10"
    still = second.locator(".strip .over .true").first.get_attribute("d")  # drawn without the script
    assert numbers(state()[2]) == pytest.approx(numbers(still), abs=0.06)
    slider.fill("2")  # the track is lost there
    assert state()[0] == "frame 2" and (box.get_attribute("width"), state()[2]) == ("0", "")
    play = viewer.get_by_role("button", name="Play")
    play.focus()
    page.keyboard.press("ArrowLeft")  # anywhere in the viewer
    assert state()[0] == "frame 1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert state()[0] == "frame 7"
    play.click()
    sync_api.expect(viewer.locator("output")).to_have_text("frame 1")
    viewer.get_by_role("button", name="Pause").click()
    assert viewer.get_by_role("button", name="Play").is_visible()
    viewer.get_by_role("button", name="better").click()
    assert viewer.locator("h4").inner_text() == worst[2].sequence


def test_a_clip_is_opened_by_keyboard(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["speed"])
    last = page.locator(".clip").last
    last.get_by_role("button", name="Step through").press("Enter")
    viewer = last.locator("#viewer")
    assert viewer.get_by_label("Frame", exact=True).evaluate("slider => slider === document.activeElement")
    bars = [numbers(bar.get_attribute("d")) for bar in last.locator(".bars path").all()]
    assert [*bars[2], *bars[3]] == pytest.approx([*bars[0], *bars[1]], abs=0.06)  # the viewer's and the filmstrip's


@pytest.mark.parametrize("kind", ["speed", "velocity"])
def test_without_javascript_everything_is_there(browser: sync_api.Browser, reports: dict[str, Path], kind: str) -> None:
    visit = Visit(browser, script=False)
    page = visit.open(reports[kind])
    for plot in page.locator(".plot > svg").all():
        box = plot.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 200
    assert page.locator(".clip img").count() == 88
    assert page.locator(".clip .top, .clip .bars").count() == 11
    assert page.locator(".clip .over .model[d]").count() == (77 if kind == "velocity" else 0)  # lost on one of 8
    assert page.get_by_text("Better than a constant on the test split").is_visible()
    assert page.locator("tr.constant").first.is_visible()
    assert not any(page.locator(f"#{part}").is_visible() for part in ("viewer", "tip"))
    assert not any(button.is_visible() for button in page.locator("button").all())
    page.set_viewport_size(NARROW)
    assert fits(page)
    assert visit.faults == []
    visit.context.close()


def test_a_name_from_the_data_is_text_everywhere(visit: Visit, tmp_path: Path) -> None:
    folder, store = make_run(tmp_path / "run")
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace("test/", "<i>test</i>/"))
    store.sequences = tuple(
        type(s)(**{**vars(s), "id": s.id.replace("test/", "<i>test</i>/")}) for s in store.sequences
    )
    page = visit.open(write_report(folder, store))
    x, y = hover(page, 0, 3)
    assert "<i>test</i>/" in page.locator("#tip").inner_text()
    page.mouse.click(x, y)
    assert "<i>test</i>/" in page.locator("#viewer h4").inner_text()
    assert page.locator("i").count() == 0
