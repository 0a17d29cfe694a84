"""The sample set: clips rendered from a seed, in the competition's layout, so that everything runs with no download.

world decides what a clip shows, ground and sprites draw its parts, paint its frames; this module writes the set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed

from features._common.atomic import fsync_path
from features._common.lock import exclusive_write_lock
from features._common.progress import progress_bar
from features.errors import DataError
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import CAMERA_HEIGHT, CX, CY, FX, FY, LAST_FRAME, Scene, random_scene, vehicle_box

RENDERER = 1  # raise it whenever the same seed gives other bytes
MARKER_FILE = "sample.json"
JPEG_QUALITY = 88  # of the JPEGs: about 115 kB a frame
SPLIT_FOLDERS = ("Train", "Validation", "Test")
CALIBRATION = f"""Intrinsic matrix:
{FX:.4f}    0.      {CX:.4f}
   0.      {FY:.4f}   {CY:.4f}
   0.        0.        1.    

Camera Height:

{CAMERA_HEIGHT:.2f}m
"""  # noqa: W291 — as the competition's own file has it


def render_sample_set(
    out: Path,
    *,
    seed: int = 0,
    train: int = 200,
    validation: int = 60,
    test: int = 60,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write the sample set into a folder; where it already stands, do nothing.

    Each clip has 8 frames at 10 a second, 1280x720, `annotation.json` with one entry a vehicle (the first is the one
    asked about; labels hold for the last frame) and `ego.json` with the own speed in m/s. The bytes depend on the
    seed alone, not on the number of workers. The folder appears under its name only when it is whole.

    Args:
        out: the folder.
        seed: decides every clip; a clip's content depends on seed, split and number alone.
        train, validation, test: clips in each split.
        workers: processes; unset: one a core.
        progress: show a bar.

    Raises:
        DataError: `out` holds something else, or cannot be written.
        StoreError: another process is rendering it.
    """
    counts = (train, validation, test)
    wanted = {"renderer": RENDERER, "seed": seed, "train": train, "validation": validation, "test": test}
    try:
        if _is_complete(out, wanted):
            return
        with exclusive_write_lock(out):
            if _is_complete(out, wanted):
                return
            _write_set(out, wanted, seed, counts, workers, progress)
    except OSError as e:
        raise DataError(
            f"{out}: the sample set cannot be written: {e.strerror or e}",
            hint="free some space (the set takes 0.3 GB), or choose another folder with --data.path",
        ) from e


def _is_complete(out: Path, wanted: dict[str, int]) -> bool:
    """Whether the folder holds the wanted set; False where there is nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        got: object = json.loads((out / MARKER_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        got = f"files of another kind (no {MARKER_FILE})"
    except ValueError:
        got = f"a {MARKER_FILE} that is no JSON"
    if got == wanted:
        return True
    raise DataError(
        f"{out}: not the sample set that was asked for",
        expected=wanted,
        got=got,
        hint="if these are your own clips, say how they lie: --data.layout competition (or tusimple, video, manifest); "
        "for a rendered set choose a new folder: --data.path FOLDER",
    )


def _write_set(
    out: Path, wanted: dict[str, int], seed: int, counts: Iterable[int], workers: int | None, progress: bool
) -> None:
    for stale in out.parent.glob(f".{out.name}.*.partial"):  # of killed renders: the lock says that none is running
        shutil.rmtree(stale, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    clips = [(split, number) for split, count in enumerate(counts) for number in range(1, count + 1)]
    try:
        temporary.mkdir()
        (temporary / "calibration.txt").write_text(CALIBRATION, encoding="utf-8")
        for split in SPLIT_FOLDERS:
            (temporary / split / split).mkdir(parents=True)
        parallel = Parallel(n_jobs=workers or cpu_count(), return_as="generator_unordered")
        tasks = (delayed(_write_clip)(temporary, seed, split, number) for split, number in clips)
        with progress_bar(len(clips), "sample", "clips") if progress else nullcontext() as shown:
            for _ in parallel(tasks):
                if shown is not None:
                    shown.update()
        (temporary / MARKER_FILE).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
        fsync_path(temporary / MARKER_FILE)
        temporary.replace(out)
        fsync_path(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clip_scene(seed: int, split: int, number: int) -> Scene:
    """What clip `number` (from 1) of a split (0 train, 1 validation, 2 test) shows."""
    return random_scene(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, number))))


def _write_clip(root: Path, seed: int, split: int, number: int) -> None:
    """Render one clip into its folder."""
    world = clip_scene(seed, split, number)
    folder = root / SPLIT_FOLDERS[split] / SPLIT_FOLDERS[split] / str(number)
    folder.mkdir()  # not its parents: a worker left over from a killed render must not bring its folder back
    (folder / "imgs").mkdir()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes already fill the cores
    try:
        for i, frame in enumerate(render_frames(world), 1):
            jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (folder / "imgs" / f"{i:03d}.jpg").write_bytes(jpeg.tobytes())
    finally:
        cv2.setNumThreads(threads)
    (folder / "annotation.json").write_text(json.dumps(clip_annotation(world)), encoding="utf-8")
    (folder / "ego.json").write_text(json.dumps({"speed": world.speed}), encoding="utf-8")


def clip_annotation(world: Scene) -> list[dict[str, object]]:
    """One entry a vehicle in TuSimple's form, for the last frame."""
    entries: list[dict[str, object]] = []
    for vehicle in world.vehicles:
        left, top, right, bottom = vehicle_box(world, vehicle, LAST_FRAME)
        entries.append(
            {
                "velocity": list(vehicle.velocity),
                "bbox": {"top": top, "right": right, "bottom": bottom, "left": left},
                "position": list(vehicle.position),
            }
        )
    return entries
