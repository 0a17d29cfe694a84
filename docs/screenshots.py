"""Takes the pictures of report and leaderboard in this folder: `python docs/screenshots.py runs/A runs/B runs/heads`.

`report.png` is the upper part of run A's report, `report-clips.png` shows run B's plots and one of its clips in the
viewer, and `leaderboard.png` is the first table of the sweep in runs/heads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parent


def main(first: Path, second: Path, sweep: Path) -> None:
    """Start a browser and write the pictures into this folder."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        take_pictures(browser, first, second, sweep, DOCS)
        browser.close()


def take_pictures(browser: Browser, first: Path, second: Path, sweep: Path, out: Path) -> None:
    """Write the pictures of two runs and of a sweep into a folder."""
    page = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme="light")
    page.goto((first / "report.html").resolve().as_uri())
    last = page.locator(".clip").nth(2).bounding_box()
    assert last is not None
    area = {"x": 0, "y": 0, "width": 1240, "height": last["y"] + last["height"] + 16}
    page.screenshot(path=out / "report.png", full_page=True, clip=area)

    page.emulate_media(color_scheme="dark")
    page.goto((second / "report.html").resolve().as_uri())
    clip = page.locator(".clip").nth(1)
    clip.locator(".strip .frame").nth(5).click()
    page.mouse.move(0, 0)
    start, end = page.locator("#predictions").bounding_box(), clip.bounding_box()
    assert start is not None and end is not None
    height = end["y"] + end["height"] - start["y"] + 32
    area = {"x": 0, "y": start["y"] + page.evaluate("scrollY") - 16, "width": 1240, "height": height}
    page.screenshot(path=out / "report-clips.png", full_page=True, clip=area)

    _take_leaderboard(browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light"), sweep, out)
    for name in ("report.png", "report-clips.png", "leaderboard.png"):  # with 256 colours, a third of the bytes
        picture = Image.open(out / name).convert("RGB")
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out / name, optimize=True)


def _take_leaderboard(page: Page, sweep: Path, out: Path) -> None:
    """Write the picture of the page down to the end of the first table."""
    page.goto((sweep / "leaderboard.html").resolve().as_uri())
    table = page.locator(".board").first.bounding_box()
    assert table is not None
    area = {"x": 0, "y": 0, "width": 1440, "height": table["y"] + table["height"] + 16}
    page.screenshot(path=out / "leaderboard.png", full_page=True, clip=area)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
