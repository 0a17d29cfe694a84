"""Compare extraction with and without optical flow and tracks, and time flow and tracks alone.

python -m benchmarks.streams
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2

from benchmarks.timing import measure_seconds, median_ratio, median_seconds, take_turns
from features._common.console import text_table
from features._common.cpu import cpu_count
from features._common.quiet_imports import quiet_imports
from features._common.types import Image
from features.config import BackboneConfig, Config, DataConfig, ExtractConfig
from features.tracks import tracked_vehicles

with quiet_imports():
    from stage1_extract.backbone.trunk import build_trunk
    from stage1_extract.datasets import scan
    from stage1_extract.engines.engine import Engine
    from stage1_extract.extract import extract
    from stage1_extract.optical_flow import flow_entries, flow_strip
    from stage1_extract.sample import render_sample_set
    from stage1_extract.tracking.sequence_tracks import track_vehicles

BACKBONES = {
    "EfficientNetLite0 at block3b_add": BackboneConfig(cut="block3b_add", top=False),  # as in configs/sample.toml
    "InceptionResNetV2": BackboneConfig(name="InceptionResNetV2", weights="random"),
}
HEADER = ("backbone", "plain fps", "flow + tracks fps", "tracks / plain", "by CPU", "flow + tracks / plain", "by CPU",
          "vehicle frames/s", "track ms/frame", "flow ms/frame")  # fmt: skip


def measure(name: str, clips: int = 64, rounds: int = 5) -> dict[str, Any]:
    """Measure one backbone. Milliseconds are CPU time per frame; a frame's vehicles count together."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render_sample_set(root / "data", seed=1, train=clips, validation=0, test=0, progress=False)
        config = Config(data=DataConfig(layout="sample", path=str(root / "data"), fps=10.0), backbone=BACKBONES[name])
        engine = Engine(build_trunk(config), config.extract.batch)
        catalogue = scan(config.data)

        def run(motion: bool, tracks: bool) -> None:
            (root / "store.h5").unlink(missing_ok=True)
            options = config.model_copy(update={"extract": ExtractConfig(motion=motion, tracks=tracks)})
            extract(options, root / "store.h5", scan(config.data), engine=engine)

        works = {"plain": (False, False), "tracks": (False, True), "both": (True, True)}
        timings = take_turns({kind: partial(run, *streams) for kind, streams in works.items()}, rounds)
        images = [list(clip.source.read(0, clip.sequence.length)) for clip in catalogue.clips]

    def track() -> None:  # in one thread at a time, as extraction does
        for clip, frames in zip(catalogue.clips, images, strict=True):
            track_vehicles(clip.sequence, frames)

    def flow(frames: list[Image]) -> None:
        flow_entries([flow_strip(frame) for frame in frames], starts_sequence=True)

    cv2.setNumThreads(1)
    track_seconds = measure_seconds(track)
    with ThreadPoolExecutor(cpu_count()) as pool:
        flow_seconds = measure_seconds(lambda: list(pool.map(flow, images)))
    frames = sum(map(len, images))
    vehicles = sum(len(tracked_vehicles(c.sequence)) * len(i) for c, i in zip(catalogue.clips, images, strict=True))
    tracks_ratio, both_ratio = (median_ratio(timings[kind], timings["plain"]) for kind in ("tracks", "both"))
    return {
        "backbone": name,
        "plain_fps": frames / median_seconds(timings["plain"]).wall,
        "both_fps": frames / median_seconds(timings["both"]).wall,
        "tracks_over_plain": tracks_ratio.wall,
        "tracks_over_plain_cpu": tracks_ratio.cpu,
        "both_over_plain": both_ratio.wall,
        "both_over_plain_cpu": both_ratio.cpu,
        "vehicle_frames_per_second": vehicles / track_seconds.wall,
        "track_ms": 1e3 * track_seconds.cpu / frames,
        "flow_ms": 1e3 * flow_seconds.cpu / frames,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows."""
    cells = [[v if isinstance(v, str) else f"{v:.{0 if v > 100 else 3}f}" for v in row.values()] for row in rows]
    return text_table(HEADER, cells)


if __name__ == "__main__":
    print(table([measure(backbone_name) for backbone_name in BACKBONES]))
