"""Clips of image files: every file is read once, by several threads, for its size and its digest."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import PIL.Image
from joblib import cpu_count
from tqdm.contrib.concurrent import thread_map

from features._common.console import is_quiet, logger
from features._common.types import Image, Size
from features.errors import DataError
from features.sequences import Camera, FrameSequence, Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.clip import Catalogue, Clip, add_fault, error_to_fault
from stage1_extract.datasets.image_file import ImageInfo, decode_image, read_info
from stage1_extract.datasets.scan_cache import NOT_REMEMBERED, ScanCache

CHECKS_PER_PARSE = 1000  # JSON texts: a call for each takes four times as long, one for all takes a lot of memory
DEPTHS = (8, 10, 12, 14, 16)  # bits per channel that cameras have

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ImageFiles:
    """A `FrameSource` with one image file per frame, which any number of threads may read."""

    files: tuple[ReadablePath, ...]  # in order of the frames
    digests: tuple[bytes, ...]  # SHA-256 of each file when it was scanned
    infos: tuple[ImageInfo, ...]
    depth: int = 16  # bits that hold the values of images with 16 bits per channel, the same for all frames
    parallel: bool = True

    def read(self, start: int, stop: int, min_size: Size | None = None) -> Iterator[Image]:
        """Read frames; an error if a file is missing, damaged or has changed since the scan."""
        part = slice(start, stop)
        for file, digest, info in zip(self.files[part], self.digests[part], self.infos[part], strict=True):
            data = read_file(file)
            if hashlib.sha256(data).digest() != digest:
                raise DataError(f"{file}: changed since it was scanned")
            yield decode_image(data, str(file), info, min_size, self.depth)


@dataclass
class ClipSpec:
    """All that is known of a clip before its image files are read, and the faults found so far."""

    id: str
    split: str
    fps: float
    files: tuple[ReadablePath, ...] = ()
    labels: tuple[Label, ...] = ()
    camera: Camera | None = None
    faults: list[str] = field(default_factory=list)
    times: tuple[float, ...] | None = None


def check_files(
    specs: list[ClipSpec], threads: int, earlier_faults: Iterable[str] = (), cache: ScanCache | None = None
) -> Catalogue:
    """Read every file that the cache does not know, and make a clip of each specification without faults.

    A clip's digest is the SHA-256 over the SHA-256 of each of its files, in order, and over the orientations and the
    depth if they change the pixels. The depth of 16-bit images is the smallest usual one that holds the sequence's
    largest value.
    """
    files = [file for spec in specs for file in spec.files]
    with warnings.catch_warnings():  # here rather than in `_check_file`, because it is not safe in threads
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        texts = (cache or ScanCache()).scan(
            files, "image", lambda unknown: map_in_threads(_check_file, unknown, threads, unit="file")
        )
    results = _parse_checks(texts)
    clips, faults, depths = [], list(earlier_faults), Counter[int]()
    for spec in specs:
        checks = [(file, next(results)) for file in spec.files]
        spec.faults += [check for _, check in checks if isinstance(check, str)]
        intact = [(file, *check) for file, check in checks if not isinstance(check, str)]
        sizes = [info.size for _, info, _ in intact]
        size = sizes[0] if sizes else (0, 0)
        if sizes.count(size) < len(sizes):
            size = Counter(sizes).most_common(1)[0][0]
            for file, info, _ in intact:
                if info.size != size:
                    expected = f"{_size_text(size)} like the other frames"
                    add_fault(spec.faults, f"{file}: wrong frame size", expected, _size_text(info.size))
        faults += spec.faults
        if not spec.faults and intact:
            _, infos, digests = zip(*intact, strict=True)
            maximum = max(info.maximum for info in infos)
            depth = next(bits for bits in DEPTHS if maximum < 1 << bits) if maximum else 16
            depths[depth] += 1
            turned = [info.orientation for info in infos if info.orientation > 1]
            digest = hashlib.sha256(b"".join(digests))
            if turned or depth < 16:
                digest.update(repr((turned, depth)).encode())
            sequence = FrameSequence(
                spec.id,
                spec.split,
                len(spec.files),
                spec.fps,
                size,
                digest.hexdigest(),
                spec.labels,
                spec.camera,
                times=spec.times,
            )
            clips.append(Clip(sequence, ImageFiles(spec.files, digests, infos, depth)))
    for depth, count in sorted(depths.items()):
        if depth < 16:
            where = f"{count} of {len(clips)} sequences"
            logger.info(f"16-bit images are read as {depth} bits deep in {where}, by each one's largest value.")
    return Catalogue(tuple(clips), tuple(faults))


def map_in_threads(function: Callable[[T], R], items: Sequence[T], threads: int, *, unit: str) -> list[R]:
    """Call a function with each item in threads (0: one per core), and return the results in order.

    On a terminal a progress bar that counts `unit`s appears if it takes longer than 2 s.
    """
    workers = threads or cpu_count()
    shown: dict[str, Any] = {"desc": "scanning", "unit": unit, "delay": 2, "disable": is_quiet() or None}
    return thread_map(function, items, max_workers=workers, **shown)


def _check_file(file: ReadablePath) -> str:
    """What is read from an image file and its SHA-256, or its fault, as JSON."""
    try:
        data = read_file(file)
        return json.dumps([read_info(data, str(file)), hashlib.sha256(data).hexdigest()])
    except DataError as e:
        # what the system refuses today it may not refuse tomorrow
        return (NOT_REMEMBERED if isinstance(e.__cause__, OSError) else "") + json.dumps(error_to_fault(e))


def _parse_checks(texts: Sequence[str]) -> Iterator[tuple[ImageInfo, bytes] | str]:
    """Yield each file's info and SHA-256, or its fault. Most files have equal infos, which share an object."""
    infos: dict[tuple[Any, ...], ImageInfo] = {}
    for start in range(0, len(texts), CHECKS_PER_PARSE):
        for value in json.loads(f"[{','.join(texts[start : start + CHECKS_PER_PARSE])}]"):
            if isinstance(value, str):
                yield value
            else:
                (size, *others), digest = value
                key = (*size, *others)
                if key not in infos:
                    infos[key] = ImageInfo(tuple(size), *others)
                yield infos[key], bytes.fromhex(digest)


def _size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
