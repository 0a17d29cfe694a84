"""Extraction with and without optical flow and tracks, and flow and tracks alone."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.timing import Row, ratio, seconds, take_turns
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


def measure(clips: int = 64, rounds: int = 5) -> list[Row]:
    """One row per backbone. Milliseconds are CPU time per frame; a frame's vehicles count together."""
    return [_measure_backbone(name, clips, rounds) for name in BACKBONES]


def _measure_backbone(name: str, clips: int, rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder, "data"), Path(folder, "store.h5")
        render_sample_set(data, seed=1, train=clips, validation=0, test=0, progress=False)
        config = Config(data=DataConfig(layout="sample", path=str(data), fps=10.0), backbone=BACKBONES[name])
        engine = Engine(build_trunk(config), config.extract.batch)
        catalogue = scan(config.data)

        def run(motion: bool, tracks: bool) -> None:
            store.unlink(missing_ok=True)
            options = config.model_copy(update={"extract": ExtractConfig(motion=motion, tracks=tracks)})
            extract(options, store, scan(config.data), engine=engine)

        streams = {"plain": (False, False), "tracks": (False, True), "both": (True, True)}
        timings = take_turns({kind: partial(run, *options) for kind, options in streams.items()}, rounds)
        images = [list(clip.source.read(0, clip.sequence.length)) for clip in catalogue.clips]

    def track() -> None:  # in one thread at a time, as extraction does
        for clip, frames in zip(catalogue.clips, images, strict=True):
            track_vehicles(clip.sequence, frames)

    def flow(frames: list[Image]) -> None:
        flow_entries([flow_strip(frame) for frame in frames], starts_sequence=True)

    cv2.setNumThreads(1)
    track_wall, track_cpu = seconds(track)
    with ThreadPoolExecutor(cpu_count()) as pool:
        _, flow_cpu = seconds(lambda: list(pool.map(flow, images)))
    frames = sum(map(len, images))
    vehicles = sum(len(tracked_vehicles(c.sequence)) * len(i) for c, i in zip(catalogue.clips, images, strict=True))
    tracks_wall, tracks_cpu = ratio(timings["tracks"], timings["plain"])
    both_wall, both_cpu = ratio(timings["both"], timings["plain"])
    return {
        "backbone": name,
        "plain frames/s": frames / np.median(timings["plain"][:, 0]),
        "flow + tracks frames/s": frames / np.median(timings["both"][:, 0]),
        "tracks / plain": tracks_wall,
        "tracks / plain, by CPU": tracks_cpu,
        "flow + tracks / plain": both_wall,
        "flow + tracks / plain, by CPU": both_cpu,
        "vehicle frames/s": vehicles / track_wall,
        "track ms/frame": 1e3 * track_cpu / frames,
        "flow ms/frame": 1e3 * flow_cpu / frames,
    }
