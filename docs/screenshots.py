"""The pictures of reports in this folder: `python docs/screenshots.py runs/A runs/B runs/heads`.

`report.png` is the upper part of run A's report, `report-clips.png` run B's plots and one of its clips, stepped into,
`leaderboard.png` the best settings of the sweep under runs/heads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent


def main(first: Path, second: Path, sweep: Path) -> None:
    """Write the pictures."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        pictures(browser, first, second, sweep, HERE)
        browser.close()


def pictures(browser: Browser, first: Path, second: Path, sweep: Path, out: Path) -> None:
    """Write the pictures into a folder; the browser's tests take them of their own runs."""
    page = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme="light")
    page.goto((first / "report.html").resolve().as_uri())
    end = page.locator(".clip").nth(2).bounding_box()
    assert end is not None
    area = {"x": 0, "y": 0, "width": 1240, "height": end["y"] + end["height"] + 16}
    page.screenshot(path=out / "report.png", full_page=True, clip=area)

    page.emulate_media(color_scheme="dark")
    page.goto((second / "report.html").resolve().as_uri())
    clip = page.locator(".clip").nth(1)
    clip.locator(".strip .frame").nth(5).click()
    page.mouse.move(0, 0)
    start, end = page.locator("#predictions").bounding_box(), clip.bounding_box()
    assert start is not None and end is not None
    above = page.evaluate("scrollY")
    height = end["y"] + end["height"] - start["y"] + 32
    area = {"x": 0, "y": start["y"] + above - 16, "width": 1240, "height": height}
    page.screenshot(path=out / "report-clips.png", full_page=True, clip=area)

    leaderboard(browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light"), sweep, out)
    for name in ("report.png", "report-clips.png", "leaderboard.png"):  # 256 colours are a third of the bytes
        picture = Image.open(out / name).convert("RGB")
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out / name, optimize=True)


def leaderboard(page: Page, sweep: Path, out: Path) -> None:
    """The page down to the end of the first table."""
    page.goto((sweep / "leaderboard.html").resolve().as_uri())
    table = page.locator(".board").first.bounding_box()
    assert table is not None
    area = {"x": 0, "y": 0, "width": 1440, "height": table["y"] + table["height"] + 16}
    page.screenshot(path=out / "leaderboard.png", full_page=True, clip=area)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
