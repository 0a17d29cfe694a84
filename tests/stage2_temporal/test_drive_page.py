"""The page of a drive in a real browser: offline, stepped by buttons, keys and slider, readable without a script."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from stage2_temporal.evaluation.uncertainty import UncertainPredictions
from stage2_temporal.report.drive_page import (
    MAX_CHARTED,
    MAX_PICTURES,
    Drive,
    drive_html,
    shown_frames,
    write_drive_page,
)
from tests.helpers import IN_BROWSER

COUNT, FIRST = 60, 7


def make_drive(count: int = COUNT, *, old: bool = False) -> Drive:
    """A drive at a varying speed; the last ten windows are flagged. An `old` run knows no intervals."""
    values = (15 + 5 * np.sin(np.arange(count) / 8))[:, None]
    unlike = np.arange(count) >= count - 10
    times, frames = 0.1 * np.arange(count + FIRST), FIRST + np.arange(count)
    if old:
        unknown = np.full(values.shape, np.nan)
        return Drive("drive.mp4", times, frames, UncertainPredictions(values, unknown, unknown, np.nan), ["ego_speed"])
    above = 1 / (1 + np.exp(15 - values))
    predictions = UncertainPredictions(values, values - 2, values + 2, 0.9, unlike, above, 15.0)
    return Drive("drive.mp4", times, frames, predictions, ["ego_speed"])


def make_vehicles_drive() -> Drive:
    """Two vehicles: `1` in frames 7 to 26, whose last five windows are flagged, `<b>` in frames 17 to 26."""
    seen = [(frame, name) for frame in range(7, 27) for name in ("1", "<b>") if name == "1" or frame >= 17]
    frames, names = np.array([frame for frame, _ in seen]), [name for _, name in seen]
    values = np.array([[frame / 10, 0.5] if name == "1" else [-3.0, -0.5] for frame, name in seen])
    unlike = np.array([name == "1" and frame >= 22 for frame, name in seen])
    predictions = UncertainPredictions(values, values - 1, values + 1, 0.9, unlike)
    return Drive("drive.mp4", 0.1 * np.arange(30), frames, predictions, ["vx", "vy"], names)


def make_pictures(drive: Drive) -> dict[int, bytes]:
    images = {frame: np.full((54, 96, 3), 3 * (frame % 80), np.uint8) for frame in shown_frames(drive)}
    return {frame: cv2.imencode(".jpg", image)[1].tobytes() for frame, image in images.items()}


def test_long_drive_shows_some_frames_and_rows_and_says_so() -> None:
    drive = make_drive(20_000)
    assert len(shown_frames(drive)) == MAX_PICTURES
    page = drive_html(drive, make_pictures(drive))
    assert "240 of 20,000 frames" in page
    assert len(page) < 2_000_000


def test_drive_of_a_run_without_intervals_has_no_band() -> None:
    drive = make_drive(old=True)
    page = drive_html(drive, make_pictures(drive))
    assert 'class="band' not in page
    assert "interval</th>" not in page
    assert "nan" not in page.lower()


def test_drive_of_vehicles_has_a_picture_per_frame_and_a_row_per_prediction() -> None:
    drive = make_vehicles_drive()
    assert shown_frames(drive) == list(range(7, 27))
    page = drive_html(drive, make_pictures(drive))
    assert "30 predictions of vx, vy for 2 vehicles from 0.7 to 2.6 s" in page
    assert page.count("<td>1</td>") == 20 and page.count("<td>&lt;b&gt;</td>") == 10
    assert "<b>" not in page.replace("<dd><b></b>", "").replace('"<b>"', "")


def test_only_the_vehicles_seen_longest_have_charts() -> None:
    counts = range(3, 3 + MAX_CHARTED + 2)  # vehicle i is in so many frames
    seen = sorted((frame, f"v{i}") for i, count in enumerate(counts) for frame in range(count))
    frames, names = np.array([frame for frame, _ in seen]), [name for _, name in seen]
    values = np.zeros((len(seen), 1))
    drive = Drive("d", 0.1 * np.arange(20), frames, UncertainPredictions(values, values, values, 0.9), ["vx"], names)
    page = drive_html(drive, make_pictures(drive))
    assert page.count("<h3>vehicle v") == MAX_CHARTED
    assert "<h3>vehicle v0<" not in page and "<h3>vehicle v1<" not in page
    assert f"The {MAX_CHARTED} vehicles that were seen longest" in page


def numbers_in(path: str | None) -> list[str]:
    """The numbers in an SVG path."""
    return re.findall(r"[\d.]+", path or "")


sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drive, path = make_drive(), tmp_path_factory.mktemp("drive") / "drive.html"
    write_drive_page(path, drive, make_pictures(drive))
    return path


class TestInBrowser:
    pytestmark = IN_BROWSER

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1240, 390])
    def test_page_is_stepped_by_buttons_keys_slider_and_chart(
        self, browser: sync_api.Browser, path: Path, scheme: str, width: int
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, errors, requests = context.new_page(), [], []
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: requests.append(r.url))
        page.goto(path.as_uri(), wait_until="load")
        when, image = page.locator(".when"), page.locator("#viewer img")
        assert when.text_content() == "0.70 s, frame 7"
        first, cursor = image.get_attribute("src"), page.locator(".cursor").get_attribute("d")
        page.locator(".next").click()
        assert when.text_content() == "0.80 s, frame 8"
        assert image.get_attribute("src") != first
        assert page.locator(".cursor").get_attribute("d") != cursor
        page.locator("h1").click()
        page.keyboard.press("ArrowLeft")
        assert when.text_content() == "0.70 s, frame 7"
        page.keyboard.press("End")
        assert when.text_content() == "6.60 s, frame 66"
        assert page.locator(".readout .unlike").is_visible()
        assert page.locator(".next").is_disabled()
        page.locator("#viewer input").fill("10")
        assert when.text_content() == "1.70 s, frame 17"
        assert (
            page.locator(".readout .interval").text_content()
            == f"{15 + 5 * np.sin(10 / 8) - 2:.1f} to {15 + 5 * np.sin(10 / 8) + 2:.1f}"
        )
        page.evaluate("document.querySelector('.plot > svg').scrollIntoView({ block: 'center' })")
        box = page.locator(".plot > svg .band").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] - 2 if width > 400 else box["x"] + 40, box["y"] + 60)
        assert when.text_content() != "1.70 s, frame 17"
        page.locator("h1").scroll_into_view_if_needed()
        page.locator(".play").click()
        page.locator(".play[aria-label='Pause']").click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 24)"}[scheme]
        assert errors == []
        assert {url.split(":")[0] for url in requests} <= {"file", "data"}
        assert len([url for url in requests if url.startswith("file")]) == 1
        context.close()

    def test_page_is_readable_without_a_script(self, browser: sync_api.Browser, path: Path) -> None:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(path.as_uri())
        assert not page.locator("#viewer").is_visible()
        assert page.locator(".stills img").count() == 8
        assert page.locator(".rows tbody tr").count() == COUNT
        assert page.locator(".rows tbody tr").first.inner_text().split("\t") == [
            "0.70", "7", "15.0", "13.0 to 17.0", "50 %", "as in training",
        ]  # fmt: skip
        for part in (".band", ".line", ".dashed", ".points"):
            assert numbers_in(page.locator(f".plot > svg {part}").get_attribute("d"))
        assert "10 of 60 windows" in page.locator(".banner").inner_text()
        context.close()

    @pytest.mark.parametrize(("scheme", "width"), [("light", 1240), ("dark", 390)])
    def test_page_of_vehicles_shows_those_in_the_frame(
        self, browser: sync_api.Browser, tmp_path: Path, scheme: str, width: int
    ) -> None:
        drive = make_vehicles_drive()
        write_drive_page(tmp_path / "drive.html", drive, make_pictures(drive))
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, errors = context.new_page(), []
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto((tmp_path / "drive.html").as_uri(), wait_until="load")
        readings = page.locator(".reading")
        assert readings.locator("h3").all_inner_texts() == ["vehicle 1"]
        assert readings.locator("b").all_inner_texts() == ["0.7", "0.5"]
        assert page.locator(".plot > svg .band").count() == 4
        page.locator("h1").click()
        page.keyboard.press("End")
        assert readings.locator("h3").all_inner_texts() == ["vehicle 1", "vehicle <b>"]
        assert readings.locator("b").all_inner_texts() == ["2.6", "0.5", "−3.0", "−0.5"]
        assert [readings.nth(i).locator(".unlike").is_visible() for i in (0, 1)] == [True, False]
        assert page.locator(".cursor").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert errors == []
        context.close()
