"""The pictures of reports in this folder: `python docs/screenshots.py runs/A runs/B`.

`report.png` is the upper part of run A's report, `report-clips.png` run B's plots and one of its clips, stepped into.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent


def main(first: Path, second: Path) -> None:
    """Write both pictures."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme="light")
        page.goto((first / "report.html").resolve().as_uri())
        end = page.locator(".clip").nth(2).bounding_box()
        assert end is not None
        area = {"x": 0, "y": 0, "width": 1240, "height": end["y"] + end["height"] + 16}
        page.screenshot(path=HERE / "report.png", full_page=True, clip=area)

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
        page.screenshot(path=HERE / "report-clips.png", full_page=True, clip=area)
        browser.close()
    for name in ("report.png", "report-clips.png"):  # 256 colours are a third of the bytes
        picture = Image.open(HERE / name).convert("RGB")
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
