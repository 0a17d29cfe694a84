"""Clips of image files, each read once by several threads for its size and digest: by the scan, or when it is decoded.

A clip that is going to be decoded anyway may be left unread by the scan, which then looks at the beginning and the end
of each file. Its sequence has a provisional digest until all of its frames are decoded, see `with_digest`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import PIL.Image
from joblib import cpu_count
from tqdm import tqdm

from features._common.console import is_quiet, logger
from features._common.types import Image, Size
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.recipe import json_digest
from features.sequences import Camera, FrameSequence, Label
from stage1_extract.datasets.archive import ReadablePath, ZipPath, in_little_memory, read_file
from stage1_extract.datasets.clip import Catalogue, Clip, add_fault, error_to_fault
from stage1_extract.datasets.image_file import ImageInfo, check_complete, decode_image, read_info, read_start
from stage1_extract.datasets.scan_cache import NOT_REMEMBERED, FileState, ScanCache, file_state

CHECKS_PER_PARSE = 1000  # JSON texts: a call for each takes four times as long, one for all takes a lot of memory
ITEMS_PER_TASK = 64  # of a thread, at most
UNREAD = "unread:"  # what a provisional digest begins with
DEPTHS = (8, 10, 12, 14, 16)  # bits per channel that cameras have

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ImageFiles:
    """A `FrameSource` with one image file per frame, which any number of threads may read."""

    files: Sequence[ReadablePath]  # in order of the frames
    digests: list[bytes]  # SHA-256 of each file; empty as long as a file is unread
    infos: tuple[ImageInfo, ...]
    depth: int = 16  # bits that hold the values of images with 16 bits per channel, the same for all frames
    parallel: bool = True
    states: list[FileState | None] = field(default_factory=list)  # of files that are unread; empty if none was

    def read(self, start: int, stop: int, min_size: Size | None = None) -> Iterator[Image]:
        """Read frames; an error if a file is missing, damaged or has changed since the scan."""
        for i in range(start, min(stop, len(self.files))):
            file = self.files[i]
            data = read_file(file)
            digest = hashlib.sha256(data).digest()
            if not self.digests[i]:
                if file_state(file) != self.states[i]:
                    raise DataError(f"{file}: changed since it was scanned")
                check_complete(data, str(file))
                self.digests[i] = digest  # of the bytes that are decoded, whatever happens to the file
            elif digest != self.digests[i]:
                raise DataError(f"{file}: changed since it was scanned")
            yield decode_image(data, str(file), self.infos[i], min_size, self.depth)

    def content_digest(self) -> str:
        """SHA-256 (hex) over the digests of all files, and whatever else decides the pixels; provisional if unread."""
        if not all(self.digests):
            return UNREAD + json_digest([[d.hex() for d in self.digests], self.states])
        turned = [info.orientation for info in self.infos if info.orientation > 1]
        digest = hashlib.sha256(b"".join(self.digests))
        if turned or self.depth < 16:
            digest.update(repr((turned, self.depth)).encode())
        return digest.hexdigest()


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


def with_digest(clip: Clip) -> Clip:
    """The clip with the digest of its files, if it had a provisional one and all of its frames have been decoded."""
    if not is_unread(clip.sequence) or not isinstance(clip.source, ImageFiles):
        return clip
    return replace(clip, sequence=replace(clip.sequence, digest=clip.source.content_digest()))


def is_unread(sequence: FrameSequence | FrameRange) -> bool:
    """Whether a sequence has a provisional digest."""
    return sequence.digest.startswith(UNREAD)


def remember_files(clips: Iterable[Clip], cache: ScanCache) -> None:
    """Let a cache remember the files that the scan left unread, and that have been decoded."""
    sources = [clip.source for clip in clips if isinstance(clip.source, ImageFiles) and clip.source.states]
    cache.remember(
        (
            (file, state, json.dumps([info, digest.hex()]))
            for source in sources
            for file, state, info, digest in zip(source.files, source.states, source.infos, source.digests, strict=True)
            if digest and state is not None
        ),
        "image",
    )
    for source in sources:
        if all(source.digests):
            source.states.clear()  # a fifth of the memory that an unread file takes


def check_files(
    specs: list[ClipSpec],
    threads: int,
    earlier_faults: Iterable[str] = (),
    cache: ScanCache | None = None,
    read_later: Callable[[ClipSpec], bool] | None = None,
) -> Catalogue:
    """Read every file that the cache does not know, and make a clip of each specification without faults.

    Files of clips for which `read_later` is true are left unread, if their beginning and end show no fault.

    A clip's digest is the SHA-256 over the SHA-256 of each of its files, in order, and over the orientations and the
    depth if they change the pixels. The depth of 16-bit images is the smallest usual one that holds the sequence's
    largest value.
    """
    cache = cache or ScanCache()
    later = [read_later is not None and read_later(spec) for spec in specs]
    results = {}
    with warnings.catch_warnings():  # here rather than in `_check_file`, because it is not safe in threads
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        for is_later, check in ((False, _check_file), (True, _check_start)):
            files = [file for spec, flag in zip(specs, later, strict=True) if flag == is_later for file in spec.files]
            read = partial(map_in_threads, check, threads=threads, unit="file")
            results[is_later] = _parse_checks(cache.scan(files, "image", read, is_final=_is_final))
    clips, faults, depths = [], list(earlier_faults), Counter[int]()
    for spec, is_later in zip(specs, later, strict=True):
        checks = [(file, next(results[is_later])) for file in spec.files]
        spec.faults += [check for _, check in checks if isinstance(check, str)]
        intact = [(file, *check) for file, check in checks if not isinstance(check, str)]
        sizes = [info.size for _, info, *_ in intact]
        size = sizes[0] if sizes else (0, 0)
        if sizes.count(size) < len(sizes):
            size = Counter(sizes).most_common(1)[0][0]
            for file, info, *_ in intact:
                if info.size != size:
                    expected = f"{_size_text(size)} like the other frames"
                    add_fault(spec.faults, f"{file}: wrong frame size", expected, _size_text(info.size))
        faults += spec.faults
        if not spec.faults and intact:
            _, infos, digests, states = zip(*intact, strict=True)
            maximum = max(info.maximum for info in infos)
            depth = next(bits for bits in DEPTHS if maximum < 1 << bits) if maximum else 16
            depths[depth] += 1
            source = ImageFiles(
                in_little_memory(spec.files), list(digests), infos, depth, states=list(states) if any(states) else []
            )
            sequence = FrameSequence(
                spec.id,
                spec.split,
                len(spec.files),
                spec.fps,
                size,
                source.content_digest(),
                spec.labels,
                spec.camera,
                times=spec.times,
            )
            clips.append(Clip(sequence, source))
    for depth, count in sorted(depths.items()):
        if depth < 16:
            where = f"{count} of {len(clips)} sequences"
            logger.info(f"16-bit images are read as {depth} bits deep in {where}, by each one's largest value.")
    return Catalogue(tuple(clips), tuple(faults), cache)


def map_in_threads(function: Callable[[T], R], items: Sequence[T], threads: int, *, unit: str) -> list[R]:
    """Call a function with each item in threads (0: one per core), and return the results in order.

    On a terminal a progress bar that counts `unit`s appears if it takes longer than 2 s.
    """
    workers = threads or cpu_count()
    shown: dict[str, Any] = {"desc": "scanning", "unit": unit, "delay": 2, "disable": is_quiet() or None}
    # in chunks, because an object for each of many items takes more memory and time than to read a small file
    chunk = min(ITEMS_PER_TASK, max(1, len(items) // (8 * workers)))
    with ThreadPool(workers) as pool:
        return list(tqdm(pool.imap(function, items, chunk), total=len(items), **shown))


def _check_file(file: ReadablePath) -> str:
    """What is read from an image file and its SHA-256, or its fault, as JSON."""
    try:
        data = read_file(file)
        return json.dumps([read_info(data, str(file)), hashlib.sha256(data).hexdigest()])
    except DataError as e:
        # what the system refuses today it may not refuse tomorrow
        return (NOT_REMEMBERED if isinstance(e.__cause__, OSError) else "") + json.dumps(error_to_fault(e))


def _check_start(file: ReadablePath) -> str:
    """The same from a file's beginning and end, with its state in place of the SHA-256, if that is enough."""
    state = None if isinstance(file, ZipPath) else file_state(file)
    info = None if state is None or isinstance(file, ZipPath) else read_start(file)
    return _check_file(file) if info is None else json.dumps([info, "", state])


def _is_final(text: str) -> bool:
    """Whether a check read the whole file: its text does not end in a state."""
    return not text.endswith("]]") and not text.startswith(NOT_REMEMBERED)


def _parse_checks(texts: Sequence[str]) -> Iterator[tuple[ImageInfo, bytes, FileState | None] | str]:
    """Yield each file's info, and its SHA-256 or else its state; or its fault. Equal infos share an object."""
    infos: dict[tuple[Any, ...], ImageInfo] = {}
    for start in range(0, len(texts), CHECKS_PER_PARSE):
        for value in json.loads(f"[{','.join(texts[start : start + CHECKS_PER_PARSE])}]"):
            if isinstance(value, str):
                yield value
            else:
                (size, *others), digest, *state = value
                key = (*size, *others)
                if key not in infos:
                    infos[key] = ImageInfo(tuple(size), *others)
                yield infos[key], bytes.fromhex(digest), tuple(state[0]) if state else None


def _size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
