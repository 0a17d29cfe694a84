"""The leaderboard in a real browser: sorted by mouse and keyboard, quiet, offline, and readable without JavaScript."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_leaderboard import fill
from test_report_browser import Visit, browser, pytestmark, reports, sync_api

from docs.screenshots import pictures
from stage2_temporal.report.leaderboard_page import write_leaderboard
from stage2_temporal.runs.leaderboard import boards, find_runs

__all__ = ["browser", "pytestmark", "reports"]  # pytest finds them here by name


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fill(tmp_path_factory.mktemp("runs"))
    return write_leaderboard(boards(find_runs(root)[0]), root)


def visited(browser: sync_api.Browser, page: Path, *, width: int, scheme: str = "light", script: bool = True) -> Visit:
    """The page, opened."""
    visit = Visit(browser, script=script)
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 900})
    visit.open(page)
    return visit


def column(visit: Visit, name: str, board: int = 0) -> list[str]:
    """A column's cells from top to bottom."""
    script = """([board, name]) => {
      const table = document.querySelectorAll('.board')[board];
      const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
      return [...table.tBodies[0].rows].map(row => (row.cells[at].firstElementChild ?? row.cells[at]).textContent);
    }"""
    return list(visit.page.evaluate(script, [board, name]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_headers_sort_by_mouse_and_keyboard(browser: sync_api.Browser, page_file: Path, scheme: str) -> None:
    visit = visited(browser, page_file, scheme=scheme, width=1440)
    table = visit.page.locator(".board").first
    assert column(visit, "rank") == ["1", "2", "–", "3"]
    assert table.locator("[aria-sort]").all_inner_texts() == ["rank"]

    table.get_by_role("button", name="MAE").click()
    assert column(visit, "MAE [m/s]") == sorted(column(visit, "MAE [m/s]"), key=float)
    assert table.locator("[aria-sort=ascending]").all_inner_texts() == ["MAE [m/s]"]
    table.get_by_role("button", name="MAE").click()
    assert column(visit, "MAE [m/s]") == sorted(column(visit, "MAE [m/s]"), key=float, reverse=True)
    assert table.locator("[aria-sort=descending]").all_inner_texts() == ["MAE [m/s]"]
    assert column(visit, "rank", board=1) == ["1", "2", "3", "–"]  # the others stay as they are

    visit.page.keyboard.press("Tab")  # from MAE to skill
    visit.page.keyboard.press("Enter")
    assert column(visit, "skill") == ["−0.300", "0.000", "0.400", "0.800"]
    assert table.locator("[aria-sort]").all_inner_texts() == ["skill"]
    visit.page.keyboard.press("Space")
    assert column(visit, "skill") == ["0.800", "0.400", "0.000", "−0.300"]

    for _ in range(2):  # what has no value stays at the end, whichever way
        table.get_by_role("button", name="parameters").click()
        assert column(visit, "head")[-1] == "constant"
    table.get_by_role("button", name="head").click()
    assert column(visit, "head") == ["constant", "flatten_lstm", "pooled_lstm", "pooled_lstm"]

    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.faults == []
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data"}
    assert [url for url in visit.requests if url.startswith("file")] == [page_file.as_uri()]
    visit.context.close()


def test_without_javascript_it_is_all_there(browser: sync_api.Browser, page_file: Path) -> None:
    visit = visited(browser, page_file, script=False, width=1240)
    page = visit.page
    assert page.locator(".board").count() == 6
    assert page.locator(".board tbody tr").count() == 2 * (4 + 4 + 2)
    assert page.locator(".board button").count() == 0
    assert page.locator("tr.constant").first.is_visible()
    assert page.get_by_text("Best: pooled_lstm, skill 0.80").is_visible()
    page.get_by_role("link", name="good").first.click()
    assert page.title() == "report"
    assert visit.faults == []
    visit.context.close()


def test_a_narrow_window_scrolls_the_table_not_the_page(browser: sync_api.Browser, page_file: Path) -> None:
    visit = visited(browser, page_file, width=390)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.faults == []
    visit.context.close()


def test_the_documentations_pictures(
    browser: sync_api.Browser, reports: dict[str, Path], page_file: Path, tmp_path: Path
) -> None:
    """Taken by the very code that takes those in docs/."""
    pictures(browser, reports["speed"].parent, reports["velocity"].parent, page_file.parent, tmp_path)
    for name in ("report.png", "report-clips.png", "leaderboard.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width in (1240, 1440) and picture.height > 300
            assert len(picture.convert("RGB").getcolors(1 << 16) or []) > 16  # there is something on it
