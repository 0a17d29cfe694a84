"""Does extraction cost its parts and nothing more? Decoding, the trunk and the whole, in turn in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from features.config import Backbone, Config, Data, Frames
from stage1_extract.clips import Clip
from stage1_extract.decode import resize
from stage1_extract.engine import Engine, build_trunk
from stage1_extract.extract import extract
from stage1_extract.layouts import scan
from stage1_extract.sample import render


def measure(name: str, clips: int = 32, rounds: int = 5) -> dict[str, float | str]:
    """Median over rounds of whole / (trunk + decode), and the three rates in frames/s.

    Args:
        name: backbone; its trunk is cut as `unfreeze = 4` says, with random weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render(root / "data", seed=1, train=clips, validation=0, test=0, progress=False)
        config = Config(
            data=Data(layout="sample", path=str(root / "data"), fps=10.0),
            frames=Frames(interpolation="cubic"),
            backbone=Backbone(name=name, weights="random"),
        )
        catalogue = scan(config.data)
        engine = Engine(build_trunk(config), config.extract.batch)
        frames = np.concatenate(_decode(catalogue.clips, config.frames))
        engine(frames[: engine.batch])  # traces and warms up

        def trunk_alone() -> None:
            for at in range(0, len(frames), engine.batch):
                engine(frames[at : at + engine.batch])

        def whole() -> None:
            store = root / "store.h5"
            store.unlink(missing_ok=True)
            extract(config, store, scan(config.data), engine=engine)

        whole()
        times = [
            (_time(lambda: _decode(catalogue.clips, config.frames)), _time(trunk_alone), _time(whole))
            for _ in range(rounds)
        ]
    decode_s, trunk_s, whole_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "backbone": name,
        "frames": len(frames),
        "decode_fps": len(frames) / decode_s,
        "trunk_fps": len(frames) / trunk_s,
        "whole_fps": len(frames) / whole_s,
        "whole_over_parts": statistics.median(w / (d + t) for d, t, w in times),
    }


def _decode(clips: tuple[Clip, ...], frames: Frames) -> list[np.ndarray]:
    """Decoding alone, on all cores: read, decode, resize; no thumbnails, nothing kept but the small frames."""

    def one(clip: Clip) -> np.ndarray:
        return np.stack([resize(image, frames) for image in clip.source.read(0, clip.sequence.length)])

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, clips))


def _time(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
