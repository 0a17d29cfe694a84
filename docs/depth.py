"""Measures skill against the depth of the map and the frames' resolution, and draws docs/depth.svg.

`python docs/depth.py data/sample [FOLDER]` also prints a table. Stores and runs take 7 GB, in a temporary folder or in
FOLDER, where the next call finds them.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import framebank as fb

DOCS = Path(__file__).parent
SIZES = (160, 90), (320, 180), (480, 270)
BLOCKS = ("block1a_project_bn", "block2b_add", "block3b_add", "block4c_add", "block5c_add", "block6d_add")
STREAMS = {layer.split("_")[0]: layer for layer in BLOCKS} | {"top": "appearance"}  # name in the figure → stream
LSTM = "correlation_lstm"
HEADS: dict[str, dict[str, Any]] = {  # name in the figure → settings
    LSTM: {"name": LSTM, "members": 2},
    "ridge with differences": {"name": "ridge", "difference": True},
    "ridge without differences": {"name": "ridge"},
}
ROLES = {"head0": 5, "head1": -5, "head2": 0, "constant": 0}  # class in STYLE → offset, to tell intervals apart
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
UPPER, LOWER, LOWEST = 60, 340, -1.5  # edges of both panels; the skill at the lower edge
STYLE = """
svg { --page: #fff; --text: #16191d; --quiet: #5b6470; --orange: #ad4a06; --blue: #1f5fd0; --violet: #8250a0 }
@media (prefers-color-scheme: dark) {
  svg { --page: #111418; --text: #e7eaee; --quiet: #9aa5b1; --orange: #ff9d5c; --blue: #7db0ff; --violet: #d0a8ee }
}
text { font: 13px system-ui, sans-serif; fill: var(--text); text-anchor: middle }
.title { font-size: 15px; font-weight: 600 } .quiet { fill: var(--quiet) } .tick { text-anchor: end }
.legend { text-anchor: start } .turned { transform: translate(18px, 200px) rotate(-90deg) }
.head0 { --series: var(--blue) } .head1 { --series: var(--orange) } .head2 { --series: var(--violet) }
path { stroke: var(--series); stroke-width: 2; fill: none } circle, .value { fill: var(--series) }
.value { paint-order: stroke; stroke: var(--page); stroke-width: 3 } .constant { stroke-dasharray: 6 4 }
path.grid, path.constant { stroke: var(--quiet) } .grid { opacity: 0.3; stroke-width: 1 }
"""
# size of the map; each head's skill on the test split, with its 95 % interval; validation skill of correlation_lstm
Result = tuple[str, dict[str, tuple[float, float, float]], float]


def main(data: Path, folder: Path) -> None:
    """Measure what the two panels show, and write the figure."""
    depth = {block: measure(data, folder, SIZES[1], block) for block in STREAMS}
    best = max(depth, key=lambda block: depth[block][2])
    resolution = {f"{width}×{height}": measure(data, folder, (width, height), best) for width, height in SIZES}
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 440" width="960" height="440">\n'
    svg += f'<style>{STYLE}</style>\n<rect width="100%" height="100%" style="fill: var(--page)"/>\n'
    svg += text("quiet turned", 0, 0, "skill on the test split, log scale")
    svg += panel("Depth (frames of 320×180)", "block, and positions of its map", depth, 66, 600)
    svg += panel(f"Resolution ({best})", "frames, and positions of the map", resolution, 660, 945)
    for x, role, label in zip((120, 280, 480, 700), ROLES, [*HEADS, "constant predictor"], strict=True):
        svg += f'<path class="{role}" d="M{x} 420h24"/>{text("legend", x + 32, 424, label)}'
    (DOCS / "depth.svg").write_text(svg + "</svg>\n")


def measure(data: Path, folder: Path, size: tuple[int, int], block: str) -> Result:
    """Extract the maps, unless the store holds them, train each head on those of one block, and print its skill."""
    stream, settings = STREAMS[block], fb.read_config(DOCS.parent / "configs/sample.toml").model_dump()
    settings["data"]["path"], settings["train"]["epochs"] = str(data), 30
    settings["frames"] |= {"width": size[0], "height": size[1]}
    settings["backbone"] |= {"taps": BLOCKS if size == SIZES[1] else (stream,), "unfreeze": 0}
    settings["extract"] |= {"motion": False, "tracks": False}
    store = fb.extract(fb.Config.model_validate(settings), folder / f"{size[0]}x{size[1]}.h5")
    with fb.Store(store) as opened:
        rows, columns = opened.streams[stream].shape[:2]
    lower_rows = rows - rows // 3  # correlation_lstm leaves out the upper third
    grids = {"ridge": (min(8, rows), min(4, columns)), LSTM: (min(8, lower_rows), min(8, columns))}
    results, validation = {}, {}
    for label, head in HEADS.items():
        settings["head"] = {**head, "streams": (stream,), "grid": grids[head["name"]]}
        [run] = fb.train(fb.Config.model_validate(settings), store, str(folder / f"{store.stem} {stream} {label}"))
        splits = json.loads((run / "metrics.json").read_text())["splits"]
        skill, (low, high) = splits["test"]["model"]["skill"], splits["test"]["skill_interval"]
        results[label], validation[label] = (skill, low, high), splits["validation"]["model"]["skill"]
        print(f"{store.stem:8} {block:8} {columns:3}×{rows:<4} {label:25} {skill:6.3f} ({low:.3f} to {high:.3f})")
    return f"{columns}×{rows}", results, validation[LSTM]


def panel(title: str, x_title: str, points: dict[str, Result], left: int, right: int) -> str:
    """Draw the skill of each head over several maps."""
    centres = [left + (k + 0.5) * (right - left) / len(points) for k in range(len(points))]
    svg = text("title", (left + right) / 2, 30, title) + text("quiet", (left + right) / 2, LOWER + 56, x_title)
    for tick in TICKS:
        svg += f'<path class="{"grid" if tick else "constant"}" d="M{left} {to_y(tick):.1f}H{right}"/>'
        svg += text("quiet tick", left - 8, to_y(tick) + 4, f"{tick:g}")
    for x, (name, (map_size, *_)) in zip(centres, points.items(), strict=True):
        svg += text("", x, LOWER + 18, name) + text("", x, LOWER + 36, map_size)
    for label, (role, dx) in zip(HEADS, ROLES.items(), strict=False):
        skills = [results[label] for _, results, _ in points.values()]
        places = [(x + dx, *map(to_y, values)) for x, values in zip(centres, skills, strict=True)]
        svg += f'<path class="{role}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in places)}"/>\n'
        for (x, y, low, high), (skill, *_) in zip(places, skills, strict=True):
            svg += f'<path class="{role}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
            svg += f'<circle class="{role}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>\n'
            if dx >= 0:  # a number between the other two would hide their points
                svg += text(f"value {role}", x, high - 8 if dx > 0 or low == LOWER else low + 15, f"{skill:.2f}")
    return svg


def text(role: str, x: float, y: float, content: str) -> str:
    """A text whose style its role decides."""
    return f'<text class="{role}" x="{x:.1f}" y="{y:.1f}">{content.replace("-", "−")}</text>\n'


def to_y(skill: float) -> float:
    """Where a skill is drawn: the logarithm of what it leaves unexplained, 1 − skill, grows downwards."""
    bottom, top, unexplained = (math.log(1 - value) for value in (LOWEST, TICKS[-1], max(skill, LOWEST)))
    return UPPER + (unexplained - top) / (bottom - top) * (LOWER - UPPER)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]), Path(*sys.argv[2:3] or [temporary]))
