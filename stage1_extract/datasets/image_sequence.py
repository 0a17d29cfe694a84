"""From files to clips: every file is read once, by several threads, for its size and its digest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

from features._common.types import Image, Size
from features.errors import DataError
from features.sequences import Camera, FrameSequence, Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.image_file import decode_image, image_size

T = TypeVar("T")
R = TypeVar("R")

FILES_PER_JOB = 16  # files a job at most: handing a file to a thread takes a third as long as reading and hashing it


def error_line(what: str, *, expected: object = None, got: object = None) -> str:
    """One line that names a fault; the mend is the caller's."""
    return as_error_line(DataError(what, expected=expected, got=got))


def as_error_line(error: DataError) -> str:
    """An error as a fault: on one line, and without a mend."""
    return " ".join(str(DataError(error.what, expected=error.expected, got=error.got)).split())


@dataclass(frozen=True)
class ImageFiles:
    """Frames in one file each: a `Source` that any number of threads may read.

    Attributes:
        files: one a frame, in order.
        digests: SHA-256 of each file as it was scanned.
    """

    files: tuple[ReadablePath, ...]
    digests: tuple[bytes, ...]
    parallel: bool = True

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Frames start … stop − 1, uint8 BGR of shape (height, width, 3); JPEGs shrunk as far as is `min_size`.

        Raises:
            DataError: a file that is gone, damaged, or not what it was when it was scanned.
        """
        for file, digest in zip(self.files[start:stop], self.digests[start:stop], strict=True):
            data = read_file(file)
            if hashlib.sha256(data).digest() != digest:
                raise DataError(f"{file}: changed since it was scanned")
            yield decode_image(data, str(file), min_size)


@dataclass
class ClipSpec:
    """A sequence on its way to become a clip: what is known before its files are read, and the faults found so far."""

    id: str
    split: str
    fps: float
    files: tuple[ReadablePath, ...] = ()
    labels: tuple[Label, ...] = ()
    camera: Camera | None = None
    faults: list[str] = field(default_factory=list)


def check_files(drafts: list[ClipSpec], threads: int) -> Catalogue:
    """Read every file once and make clips of the drafts without a fault.

    The digest is the SHA-256 over the SHA-256 of each file, in order.
    """
    files = [file for draft in drafts for file in draft.files]
    seen = iter(map_in_threads(_look, files, threads, unit="file", together=FILES_PER_JOB))
    clips, faults = [], []
    for draft in drafts:
        looks = [next(seen) for _ in draft.files]
        draft.faults += [look for look in looks if isinstance(look, str)]
        sound = [(file, *look) for file, look in zip(draft.files, looks, strict=True) if not isinstance(look, str)]
        size = Counter(size for _, size, _ in sound).most_common(1)[0][0] if sound else (0, 0)
        draft.faults += [
            error_line(
                f"{file}: frame of another size", expected=f"{_text(size)} as the sequence's others", got=_text(odd)
            )
            for file, odd, _ in sound
            if odd != size
        ]
        faults += draft.faults
        if not draft.faults and sound:
            digest = hashlib.sha256(b"".join(d for _, _, d in sound)).hexdigest()
            length = len(draft.files)
            sequence = FrameSequence(draft.id, draft.split, length, draft.fps, size, digest, draft.labels, draft.camera)
            clips.append(Clip(sequence, ImageFiles(draft.files, tuple(d for _, _, d in sound))))
    return Catalogue(tuple(clips), tuple(faults))


def map_in_threads(
    work: Callable[[T], R], items: Iterable[T], threads: int, *, unit: str, together: int = 1
) -> list[R]:
    """`work` of each item in order, in threads (0: one a core), with a bar where it takes long on a terminal.

    Args:
        together: items a job at most, where the work on one is short.
    """
    items, threads = list(items), threads or os.cpu_count() or 1
    step = max(1, min(together, len(items) // (4 * threads)))
    parts = [items[at : at + step] for at in range(0, len(items), step)]
    bar = tqdm(total=len(items), desc="scanning", unit=unit, delay=2, disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        results: list[R] = []
        for found in pool.map(lambda part: [work(item) for item in part], parts):
            results += found
            bar.update(len(found))
        return results


def _look(file: ReadablePath) -> tuple[Size, bytes] | str:
    try:
        data = read_file(file)
        return image_size(data, str(file)), hashlib.sha256(data).digest()
    except DataError as e:
        return as_error_line(e)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
