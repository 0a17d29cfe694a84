"""Report and leaderboard in a real browser: offline, interactive, in both colour schemes, and without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs.screenshots import take_pictures
from features.tracks import Track
from stage2_temporal.report import write_report
from stage2_temporal.report.leaderboard_page import write_leaderboard
from stage2_temporal.runs.leaderboard import boards, find_runs
from stage2_temporal.runs.results import Results, read_results
from tests.helpers import IN_BROWSER
from tests.leaderboard_runs import write_runs
from tests.report_runs import VELOCITY, MemoryStore, make_run

sync_api = pytest.importorskip("playwright.sync_api")

WIDE, NARROW = {"width": 1240, "height": 900}, {"width": 390, "height": 844}

pytestmark = IN_BROWSER


def add_tracks(store: MemoryStore) -> None:
    """Add a track to every sequence: it moves 8 units to the right per frame and is lost in frame 2."""
    for s in store.sequences:
        boxes = np.array([[64.0 * f + 80, 320.0, 64.0 * f + 240, 400.0] for f in range(s.length)])
        boxes[2] = np.nan
        store.tracks[s.id, 0] = Track(boxes, np.ones(s.length))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a speed, of a velocity, and of one long sequence per split."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "speed": make_run(folder / "sample-ego_speed"),
        "velocity": make_run(folder / "tusimple-velocity", VELOCITY),
        "dense": make_run(folder / "video", dense=True, clips=300),
    }
    add_tracks(runs["velocity"][1])
    return {name: write_report(*run) for name, run in runs.items()}


class Visit:
    """A page in a browser, with the errors that it logged and the addresses that it requested."""

    def __init__(self, browser: sync_api.Browser, *, script: bool = True) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(java_script_enabled=script, viewport=WIDE)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def open(self, path: Path) -> sync_api.Page:
        self.page.goto(path.as_uri(), wait_until="load")
        return self.page


@pytest.fixture(scope="module")
def window(browser: sync_api.Browser) -> Iterator[Visit]:
    """The window that the tests with JavaScript share."""
    visit = Visit(browser)
    yield visit
    visit.context.close()


@pytest.fixture
def visit(window: Visit) -> Iterator[Visit]:
    """The shared window; it checks that pages neither log errors nor load anything."""
    window.errors.clear()
    window.requests.clear()
    window.page.set_viewport_size(WIDE)
    window.page.emulate_media(color_scheme="light", media="screen")
    yield window
    assert window.errors == []
    assert {url.split(":")[0] for url in window.requests} <= {"file", "data"}
    assert all(url.endswith(("report.html", "leaderboard.html")) for url in window.requests if url.startswith("file"))


@pytest.fixture(scope="module")
def velocity(reports: dict[str, Path]) -> Results:
    return read_results(reports["velocity"].parent)


def fits(page: sync_api.Page) -> bool:
    """Whether nothing is wider than the window."""
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
def test_plots_are_drawn_in_both_colour_schemes_and_widths(
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
def test_text_has_enough_contrast(visit: Visit, reports: dict[str, Path], scheme: str) -> None:
    """WCAG 2.2 asks for 4.5 to 1 for small text."""
    visit.page.emulate_media(color_scheme=scheme)
    assert visit.open(reports["velocity"]).evaluate(CONTRASTS) == []


def test_dot_shows_its_values_and_opens_its_clip(visit: Visit, reports: dict[str, Path], velocity: Results) -> None:
    page = visit.open(reports["velocity"])
    example = velocity.verdict_examples[7]
    tip = page.locator("#tip")
    assert not tip.is_visible()
    x, y = hover(page, 1, 7)
    text = tip.inner_text()
    assert example.sequence in text and "frames 0–7" in text and f"{example.distance:.1f} m away" in text
    for column, true, predicted in zip(VELOCITY, example.true, example.predicted, strict=True):
        assert f"{column}: true {true:.2f}, predicted {predicted:.2f} m/s".replace("-", "−") in text
    page.mouse.click(x, y)
    viewer = page.locator("#viewer")
    assert viewer.locator("h4").inner_text() == example.sequence
    cells = viewer.locator("tbody td").all_inner_texts()
    assert cells[0] == f"{example.true[0]:.2f}".replace("-", "−")
    assert f"{example.distance:.1f} m away" in viewer.locator("h4 + .where").inner_text()
    viewer.locator("img").evaluate("image => image.decode()")
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_pointing_at_a_bar_or_epoch_shows_its_values(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["speed"])
    page.locator(".plot .column").nth(4).hover()
    assert page.locator("#tip").inner_text().startswith("epoch 5: training ")
    page.locator(".plot .bars + .steps ~ .column").nth(3).hover()
    assert re.fullmatch(r"\S+ to \S+: model \d+, constant \d+", page.locator("#tip").inner_text())


def test_filter_changes_plots_and_metrics(visit: Visit, reports: dict[str, Path], velocity: Results) -> None:
    page = visit.open(reports["velocity"])
    selection = page.locator("#selection")
    s = velocity.metrics.splits["test"]
    assert selection.locator(".count").inner_text() == "40 of 40"
    assert selection.locator(".rmse").inner_text() == f"{s.model.rmse:.2f}"
    assert selection.locator(".constant-rmse").inner_text() == f"{s.constant.rmse:.2f}"
    assert selection.locator(".skill").inner_text() == f"{s.model.skill:.2f}"

    bars = page.locator(".plot .bars").first
    unfiltered = bars.get_attribute("d")
    for band, low, high in (("near", 0, 20), ("medium", 20, 45), ("far", 45, 1e9)):
        page.get_by_role("button", name=band).click()
        within = [e for e in velocity.verdict_examples if low <= e.distance < high]
        assert 0 < len(within) < 40
        assert selection.locator(".count").inner_text() == f"{len(within)} of 40"
        assert [dots(page, i) for i in range(4)] == [len(within)] * 4
        error = np.sqrt(np.mean([np.subtract(e.true, e.predicted) ** 2 for e in within]))
        assert selection.locator(".rmse").inner_text() == f"{error:.2f}"
        assert bars.get_attribute("d") != unfiltered
        texts = page.locator(".plot .bars + .steps ~ .column").evaluate_all("all => all.map(c => c.dataset.text)")
        counts = [int(n) for text in texts for n in re.findall(r"model (\d+)", text)]
        assert sum(counts) == 2 * len(within)  # in each component's histogram

    page.get_by_label("Nearest distance").focus()
    page.keyboard.press("ArrowRight")
    farther = sum(e.distance >= 46 for e in velocity.verdict_examples)
    assert selection.locator(".count").inner_text() == f"{farther} of 40"
    page.get_by_role("button", name="all").click()
    assert selection.locator(".count").inner_text() == "40 of 40" and bars.get_attribute("d") == unfiltered


def test_empty_selection_shows_dashes(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["velocity"])
    page.get_by_label("Farthest distance").fill("0")
    text = " ".join(page.locator("#selection").inner_text().split())
    assert text == "selected 0 of 40 RMSE – m/s RMSE of constant – m/s skill – skill of constant –"
    assert page.get_by_role("button", name="better").is_disabled()


def test_viewer_steps_with_keys_slider_and_play(visit: Visit, reports: dict[str, Path], velocity: Results) -> None:
    page = visit.open(reports["velocity"])
    worst = sorted(velocity.verdict_examples, key=lambda e: -e.error)
    second = page.locator(".clip").nth(1)
    second.locator(".strip .frame").nth(3).click()
    viewer = second.locator("#viewer")
    assert viewer.locator("h4").inner_text() == worst[1].sequence
    slider, image = viewer.get_by_label("Frame", exact=True), viewer.locator("img")
    size = image.bounding_box()
    assert size is not None and size["width"] > 500
    box, arrow = viewer.locator(".over .box"), viewer.locator(".over .true")

    def state() -> tuple[str, str | None, str | None, str | None]:
        drawing = (box.get_attribute("x"), arrow.get_attribute("d"), image.get_attribute("src"))
        return (viewer.locator("output").inner_text(), *drawing)

    assert slider.input_value() == "3" and state()[0] == "frame 3" and state()[1] == "34"
    third = state()
    page.keyboard.press("ArrowRight")  # the slider has the focus
    assert state()[0] == "frame 4" and state()[1] == "42"
    assert all(now != then for now, then in zip(state(), third, strict=True))
    slider.fill("0")
    assert state()[0] == "frame 0" and state()[1] == "10"
    static_arrow = second.locator(".strip .over .true").first.get_attribute("d")  # drawn by Python
    assert numbers(state()[2]) == pytest.approx(numbers(static_arrow), abs=0.06)
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


def test_clip_opens_with_the_keyboard(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.open(reports["speed"])
    last = page.locator(".clip").last
    last.get_by_role("button", name="Step through").press("Enter")
    viewer = last.locator("#viewer")
    assert viewer.get_by_label("Frame", exact=True).evaluate("slider => slider === document.activeElement")
    bars = [numbers(bar.get_attribute("d")) for bar in last.locator(".bars path").all()]
    assert [*bars[2], *bars[3]] == pytest.approx([*bars[0], *bars[1]], abs=0.06)  # the viewer's and the filmstrip's


@pytest.mark.parametrize("kind", ["speed", "velocity"])
def test_report_is_complete_without_javascript(browser: sync_api.Browser, reports: dict[str, Path], kind: str) -> None:
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
    assert visit.errors == []
    visit.context.close()


def test_name_from_the_data_is_shown_as_text(visit: Visit, tmp_path: Path) -> None:
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


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_runs(tmp_path_factory.mktemp("leaderboard"))
    return write_leaderboard(boards(find_runs(root)[0]), root)


def column(page: sync_api.Page, name: str, board: int = 0) -> list[str]:
    """A column's cells from top to bottom."""
    script = """([board, name]) => {
      const table = document.querySelectorAll('.board')[board];
      const k = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
      return [...table.tBodies[0].rows].map(row => (row.cells[k].firstElementChild ?? row.cells[k]).textContent);
    }"""
    return list(page.evaluate(script, [board, name]))


def test_leaderboard_sorts_by_mouse_and_keyboard(visit: Visit, leaderboard: Path) -> None:
    page = visit.open(leaderboard)
    table = page.locator(".board").first
    assert column(page, "rank") == ["1", "2", "–", "3"]
    assert table.locator("[aria-sort]").all_inner_texts() == ["rank"]

    table.get_by_role("button", name="MAE").click()
    assert column(page, "MAE [m/s]") == sorted(column(page, "MAE [m/s]"), key=float)
    assert table.locator("[aria-sort=ascending]").all_inner_texts() == ["MAE [m/s]"]
    table.get_by_role("button", name="MAE").click()
    assert column(page, "MAE [m/s]") == sorted(column(page, "MAE [m/s]"), key=float, reverse=True)
    assert table.locator("[aria-sort=descending]").all_inner_texts() == ["MAE [m/s]"]
    assert column(page, "rank", board=1) == ["1", "2", "3", "–"]  # the other tables keep their order

    page.keyboard.press("Tab")  # from MAE to skill
    page.keyboard.press("Enter")
    assert column(page, "skill") == ["−0.300", "0.000", "0.400", "0.800"]
    assert table.locator("[aria-sort]").all_inner_texts() == ["skill"]
    page.keyboard.press("Space")
    assert column(page, "skill") == ["0.800", "0.400", "0.000", "−0.300"]

    for _ in range(2):  # an empty cell comes last in either direction
        table.get_by_role("button", name="parameters").click()
        assert column(page, "head")[-1] == "constant"
    table.get_by_role("button", name="head").click()
    assert column(page, "head") == ["constant", "flatten_lstm", "pooled_lstm", "pooled_lstm"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_leaderboard_is_legible_and_scrolls_its_tables(visit: Visit, leaderboard: Path, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    page = visit.open(leaderboard)
    assert page.evaluate(CONTRASTS) == []
    assert fits(page)
    page.set_viewport_size(NARROW)
    assert fits(page)


def test_leaderboard_is_complete_without_javascript(browser: sync_api.Browser, leaderboard: Path) -> None:
    visit = Visit(browser, script=False)
    page = visit.open(leaderboard)
    assert page.locator(".board").count() == 6
    assert page.locator(".board tbody tr").count() == 2 * (4 + 4 + 2)
    assert page.locator(".board button").count() == 0
    assert page.locator("tr.constant").first.is_visible()
    assert page.get_by_text("Best: pooled_lstm, skill 0.80").is_visible()
    page.get_by_role("link", name="good").first.click()
    assert page.title() == "report"
    assert visit.errors == []
    visit.context.close()


@pytest.mark.soak
def test_documentation_screenshots_can_be_taken(
    browser: sync_api.Browser, reports: dict[str, Path], leaderboard: Path, tmp_path: Path
) -> None:
    take_pictures(browser, reports["speed"].parent, reports["velocity"].parent, leaderboard.parent, tmp_path)
    for name in ("report.png", "report-clips.png", "leaderboard.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width in (1240, 1440) and picture.height > 300
            assert len(picture.convert("RGB").getcolors(1 << 16) or []) > 16  # it is not blank
