"""Extraction with and without optical flow and tracks, and flow and tracks alone."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from benchmarks.timing import Row, ratio, speed, take_turns
from features._common.cpu import cpu_count
from features._common.types import Image
from features.config import BackboneConfig, Config, DataConfig, ExtractConfig
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
    """One row per backbone and function; a frame's vehicles count together."""
    return [row for name in BACKBONES for row in _measure_backbone(name, clips, rounds)]


def _measure_backbone(name: str, clips: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder, "data"), Path(folder, "store.h5")
        render_sample_set(data, seed=1, train=clips, validation=0, test=0, progress=False)
        config = Config(data=DataConfig(layout="sample", path=str(data), fps=10.0), backbone=BACKBONES[name])
        engine = Engine(build_trunk(config), config.extract.batch)
        catalogue = scan(config.data)
        images = [list(clip.source.read(0, clip.sequence.length)) for clip in catalogue.clips]

        def run(motion: bool, tracks: bool) -> None:
            store.unlink(missing_ok=True)
            options = config.model_copy(update={"extract": ExtractConfig(motion=motion, tracks=tracks)})
            extract(options, store, scan(config.data), engine=engine)

        def track() -> None:  # in one thread at a time, as extraction does
            for clip, frames in zip(catalogue.clips, images, strict=True):
                track_vehicles(clip.sequence, frames)

        def flow(frames: list[Image]) -> None:
            flow_entries([flow_strip(frame) for frame in frames], starts_sequence=True)

        cv2.setNumThreads(1)
        with ThreadPoolExecutor(cpu_count()) as pool:
            functions = {
                "extraction": lambda: run(motion=False, tracks=False),
                "extraction with tracks": lambda: run(motion=False, tracks=True),
                "extraction with flow and tracks": lambda: run(motion=True, tracks=True),
                "tracks alone": track,
                "flow alone": lambda: list(pool.map(flow, images)),
            }
            timings = take_turns(functions, rounds)
    frames = sum(map(len, images))
    return [
        {"backbone": name, "function": function}
        | speed(times, frames)
        | ratio("this / extraction", times, timings["extraction"])
        for function, times in timings.items()
    ]
