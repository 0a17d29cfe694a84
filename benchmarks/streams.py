"""What do flow and tracks add to extraction? With and without them, in turn in one run, and each of them alone.

python -m benchmarks.streams
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2

from features._common.quiet_imports import quiet_imports
from features.config import BackboneConfig, Config, DataConfig, ExtractConfig
from features.tracks import tracked_vehicles

with quiet_imports():
    from stage1_extract import optical_flow
    from stage1_extract.backbone.trunk import build_trunk
    from stage1_extract.datasets import scan
    from stage1_extract.datasets.clip import Image
    from stage1_extract.engines.engine import Engine
    from stage1_extract.extract import extract
    from stage1_extract.sample import render_sample_set
    from stage1_extract.tracking.sequence_tracks import track_vehicles

CASES = {
    "EfficientNetLite0 at block3b_add": BackboneConfig(cut="block3b_add", top=False),  # as configs/sample.toml has it
    "InceptionResNetV2": BackboneConfig(name="InceptionResNetV2", weights="random"),
}
KINDS = {"plain": (False, False), "tracks": (False, True), "both": (True, True)}


def measure(case: str, clips: int = 64, rounds: int = 5) -> dict[str, float | str]:
    """Medians over rounds of whole extractions against those without streams, and rates of each stream alone.

    `track_fps` counts a vehicle's frame as one; `flow_ms` and `track_ms` are CPU time a frame, a frame's vehicles
    together.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render_sample_set(root / "data", seed=1, train=clips, validation=0, test=0, progress=False)
        config = Config(data=DataConfig(layout="sample", path=str(root / "data"), fps=10.0), backbone=CASES[case])
        engine = Engine(build_trunk(config), config.extract.batch)
        catalogue = scan(config.data)

        def whole(flow: bool, tracks: bool) -> None:
            (root / "store.h5").unlink(missing_ok=True)
            asked = config.model_copy(update={"extract": ExtractConfig(motion=flow, tracks=tracks)})
            extract(asked, root / "store.h5", scan(config.data), engine=engine)

        whole(True, True)
        rows = [{kind: _times(lambda on=on: whole(*on)) for kind, on in KINDS.items()} for _ in range(rounds)]  # type: ignore[misc]
        images = [list(clip.source.read(0, clip.sequence.length)) for clip in catalogue.clips]
    frames = sum(map(len, images))
    followed = [tracked_vehicles(clip.sequence) for clip in catalogue.clips]

    def track() -> None:  # in one thread at a time, as extraction does
        for clip, own in zip(catalogue.clips, images, strict=True):
            track_vehicles(clip.sequence, own)

    def flow(own: list[Image]) -> None:
        optical_flow.flow_entries([optical_flow.flow_strip(image) for image in own], starts_sequence=True)

    cv2.setNumThreads(1)
    track_s, track_cpu = _times(track)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        flow_cpu = _times(lambda: list(pool.map(flow, images)))[1]
    return {
        "backbone": case,
        "frames": frames,
        "plain_fps": frames / statistics.median(r["plain"][0] for r in rows),
        "both_fps": frames / statistics.median(r["both"][0] for r in rows),
        "tracks_over_plain": statistics.median(r["tracks"][0] / r["plain"][0] for r in rows),
        "both_over_plain": statistics.median(r["both"][0] / r["plain"][0] for r in rows),
        "tracks_over_plain_cpu": statistics.median(r["tracks"][1] / r["plain"][1] for r in rows),
        "both_over_plain_cpu": statistics.median(r["both"][1] / r["plain"][1] for r in rows),
        "track_fps": sum(len(own) * len(seen) for own, seen in zip(followed, images, strict=True)) / track_s,
        "track_ms": 1e3 * track_cpu / frames,
        "flow_ms": 1e3 * flow_cpu / frames,
    }


def _times(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds of all threads, which what else runs on the machine hardly changes."""
    begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


HEADING = (
    f"{'backbone':<36}{'plain':>8}{'both':>8}{'tracks/plain':>14}{'both/plain':>12}{'by CPU':>8}{'':>7}"
    f"{'vehicles/s':>12}{'track ms':>10}{'flow ms':>9}"
)
ROW = (
    "{backbone:<36}{plain_fps:>8.1f}{both_fps:>8.1f}{tracks_over_plain:>14.3f}{both_over_plain:>12.3f}"
    "{tracks_over_plain_cpu:>8.3f}{both_over_plain_cpu:>7.3f}"
    "{track_fps:>12.0f}{track_ms:>10.2f}{flow_ms:>9.2f}"
)

if __name__ == "__main__":
    print("extraction with flow and tracks against without, frames/s\n" + HEADING)
    for case in CASES:
        print(ROW.format(**measure(case)))
