"""Writes the sample set: scene decides what a clip shows, ground and sprites draw its parts, render its frames."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed

from features._common.atomic import exclusive_write_lock, fsync_path
from features._common.bounded_file import read_bounded
from features._common.console import progress_bar
from features._common.leftovers import writer_name
from features._common.processes import become_worker
from features._common.strict_json import parse_json
from features.errors import DataError
from features.limits import TEXT_BYTES
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import (
    LAST_FRAME,
    TUSIMPLE_CAMERA,
    Scene,
    SceneCamera,
    random_scene,
    random_wide_scene,
    vehicle_box,
)

RENDERER = 1  # version; increase it whenever the same seed gives other bytes
MARKER_FILE = "sample.json"
JPEG_QUALITY = 88  # about 115 kB per frame
SPLIT_FOLDERS = ("Train", "Validation", "Test")
_CALIBRATION = """Intrinsic matrix:
{fx:.4f}    0.      {cx:.4f}
   0.      {fy:.4f}   {cy:.4f}
   0.        0.        1.    

Camera Height:

{above_road:.2f}m
"""  # noqa: W291 — the competition's file has these spaces


def calibration_text(camera: SceneCamera, horizon: float | None = None) -> str:
    """A camera's numbers in the competition's format, and the row of the horizon if it is given."""
    text = _CALIBRATION.format(**vars(camera))
    return text if horizon is None else f"{text}\nHorizon:\n\n{horizon:.2f}\n"


CALIBRATION = calibration_text(TUSIMPLE_CAMERA)


def render_sample_set(
    out: Path,
    *,
    kind: Literal["standard", "wide"] = "standard",
    seed: int = 0,
    train: int = 200,
    validation: int = 60,
    test: int = 60,
    workers: int | None = None,
) -> None:
    """Write the sample set into a folder; do nothing if it is there already.

    Each clip has 8 frames at 10 frames per second, of 1280x720 px in the standard set; `annotation.json`, the vehicles
    in the last frame, the target first; and `ego.json`, the car's own speed in m/s, in the wide set also its yaw rate
    in rad/s, to the right. There is a `calibration.txt` for the set, or for each clip of the wide set. The folder gets
    its name only when it is complete.

    Args:
        kind: `standard`, with one camera, straight roads and 5 to 32 m/s, or `wide`, with several cameras, turns,
            standing cars and up to 40 m/s.
        seed: a clip's bytes depend only on it, the split and the clip's number.
        train, validation, test: number of clips in each split.
        workers: number of processes; None: one per core.

    Raises:
        DataError: `out` holds something else, or cannot be written.
        StoreError: another process is rendering it.
    """
    settings: dict[str, Any] = {"renderer": RENDERER, "seed": seed}
    settings |= {"train": train, "validation": validation, "test": test}
    if kind != "standard":  # of which the marker of the standard set never spoke
        settings["kind"] = kind
    try:
        if _is_complete(out, settings):
            return
        with exclusive_write_lock(out):
            if not _is_complete(out, settings):
                _write_set(out, settings, workers)
    except OSError as e:
        raise DataError(
            f"{out}: the sample set cannot be written: {e.strerror or e}",
            hint="free some space (the set takes 0.3 GB), or choose another folder with --data.path",
        ) from e
    except BrokenProcessPool:
        raise DataError(
            f"{out}: a process that renders clips was killed, most likely because memory ran out",
            hint="close other programs, and run the same command again",
        ) from None


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the set with these settings; False if it is missing or empty."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        got: object = parse_json(read_bounded(out / MARKER_FILE, TEXT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        got = f"other files (no {MARKER_FILE})"
    except ValueError:
        got = f"a {MARKER_FILE} that is not JSON"
    if got == settings:
        return True
    raise DataError(
        f"{out}: not the requested sample set",
        expected=settings,
        got=got,
        hint="if these are your own clips, name their layout: --data.layout competition (or tusimple, video, "
        "manifest); for a rendered set choose a new folder: --data.path FOLDER",
    )


def _write_set(out: Path, settings: dict[str, Any], workers: int | None) -> None:
    for stale in out.parent.glob(f".{out.name}.*.partial"):  # from killed processes: the lock excludes running ones
        shutil.rmtree(stale, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.{writer_name()}.partial")
    counts = (settings["train"], settings["validation"], settings["test"])
    clips = [(split, number) for split, count in enumerate(counts) for number in range(1, count + 1)]
    try:
        temporary.mkdir()
        wide = settings.get("kind") == "wide"
        if not wide:
            (temporary / "calibration.txt").write_text(CALIBRATION, encoding="utf-8")
        for split in SPLIT_FOLDERS:
            (temporary / split / split).mkdir(parents=True)
        jobs = workers or cpu_count()
        processes = {"backend": "loky", "initializer": become_worker, "initargs": (os.getpid(),)} if jobs > 1 else {}
        parallel = Parallel(jobs, return_as="generator_unordered", **processes)
        tasks = (delayed(_write_clip)(temporary, settings["seed"], split, number, wide) for split, number in clips)
        with progress_bar(len(clips), "sample", "clips") as progress:
            for _ in parallel(tasks):
                progress.update()
        (temporary / MARKER_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        fsync_path(temporary / MARKER_FILE)
        temporary.replace(out)
        fsync_path(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clip_scene(seed: int, split: int, number: int, *, wide: bool = False) -> Scene:
    """Decide what a clip shows, by the set's seed, the split (0 train, 1 validation, 2 test), and its number from 1."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, number)))
    return random_wide_scene(rng) if wide else random_scene(rng)


def _write_clip(root: Path, seed: int, split: int, number: int, wide: bool) -> None:
    scene = clip_scene(seed, split, number, wide=wide)
    folder = root / SPLIT_FOLDERS[split] / SPLIT_FOLDERS[split] / str(number)
    folder.mkdir()  # without parents, lest a worker left by a killed process creates its folder again
    (folder / "imgs").mkdir()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes already use all cores
    try:
        for i, frame in enumerate(render_frames(scene), 1):
            jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (folder / "imgs" / f"{i:03d}.jpg").write_bytes(jpeg.tobytes())
    finally:
        cv2.setNumThreads(threads)
    (folder / "annotation.json").write_text(json.dumps(clip_annotation(scene)), encoding="utf-8")
    ego = {"speed": scene.speed}
    if wide:
        ego["yaw_rate"] = scene.yaw_rate
        horizon = float(np.mean(scene.horizons))
        (folder / "calibration.txt").write_text(calibration_text(scene.camera, horizon), encoding="utf-8")
    (folder / "ego.json").write_text(json.dumps(ego), encoding="utf-8")


def clip_annotation(scene: Scene) -> list[dict[str, object]]:
    """The vehicles of a clip in its last frame, in TuSimple's format."""
    boxes = [vehicle_box(scene, vehicle, LAST_FRAME) for vehicle in scene.vehicles]
    return [
        {
            "velocity": list(vehicle.velocity),
            "bbox": {"top": top, "right": right, "bottom": bottom, "left": left},
            "position": list(vehicle.position),
        }
        for vehicle, (left, top, right, bottom) in zip(scene.vehicles, boxes, strict=True)
    ]
