"""Clips, the catalogue of what a scan found in a data set, and its faults: errors collected as lines, to show all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

import numpy as np

from features._common.plain_text import one_line
from features._common.types import Floats, Image
from features.errors import DataError
from features.sequences import FrameSequence
from stage1_extract.datasets.scan_cache import ScanCache

EVEN = 1e-3  # s: frames this close to an even spacing are evenly spaced; containers round timestamps


class FrameSource(Protocol):
    """Reads the frames of a sequence."""

    @property
    def parallel(self) -> bool:
        """Whether several threads may read ranges at once, in any order: true for image files, false for a video."""

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Read frames start … stop − 1, each uint8 BGR of shape (height, width, 3), at full resolution.

        Args:
            min_size: width, height in px; frames may be shrunk by 2, 4 or 8 as long as they stay at least this large.

        Raises:
            DataError: a frame cannot be decoded or has the wrong size; the message names its file.
        """


@dataclass(frozen=True)
class Clip:
    """A sequence with the source of its frames."""

    sequence: FrameSequence
    source: FrameSource


@dataclass(frozen=True)
class EveryNth:
    """A `FrameSource` of every `step`-th frame of another one."""

    source: FrameSource
    step: int

    @property
    def parallel(self) -> bool:
        return self.source.parallel

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Read frames like the other source does; of images only those, of a video also what lies between."""
        if not self.parallel:
            return islice(self.source.read(start * self.step, (stop - 1) * self.step + 1, min_size), 0, None, self.step)
        frames = (i * self.step for i in range(start, stop))
        return (image for i in frames for image in self.source.read(i, i + 1, min_size))


def every_nth(clip: Clip, step: int) -> Clip:
    """A clip of every `step`-th frame, without labels; the clip itself if that is every frame."""
    if step == 1:
        return clip
    s = clip.sequence
    length, times = -(-s.length // step), s.times and s.times[::step]
    return Clip(replace(s, length=length, fps=s.fps / step, times=times, labels=()), EveryNth(clip.source, step))


@dataclass(frozen=True)
class Catalogue:
    """What a scan found: the clips without faults, in order, and a line for each fault visible without decoding."""

    clips: tuple[Clip, ...]
    faults: tuple[str, ...] = ()
    cache: ScanCache | None = field(default=None, compare=False)  # to remember what the scan left to the extraction


def frame_timing(seconds: Floats, rate: float = 0.0) -> tuple[float, tuple[float, ...] | None]:
    """The frame rate of frames taken at ascending `seconds` (n > 1), and their times from the first one on.

    The times are None if the frames are evenly spaced within `EVEN`, at `rate` if that fits, else at their mean rate.
    """
    times = seconds - seconds[0]
    mean_rate = (len(times) - 1) / float(times[-1])
    for fps in (rate, mean_rate):
        if fps and np.abs(times - np.arange(len(times)) / fps).max() <= EVEN:
            return fps, None
    return mean_rate, tuple(times.tolist())


LONGEST_WHAT = 2000  # characters of a path and of names, such as a column's
LONGEST_GOT = 500  # characters of what a file holds in place of what was expected


def add_fault(faults: list[str], what: str, expected: object, got: object) -> None:
    """Append a fault as one line, which begins with the file's path; the hint comes from the command."""
    faults.append(error_to_fault(DataError(what, expected=expected, got=got)))


def error_to_fault(error: DataError) -> str:
    """Turn an error into the line of a fault, without its hint."""
    got = error.got if error.got is None or len(str(error.got)) <= LONGEST_GOT else f"{str(error.got)[:LONGEST_GOT]}…"
    what = error.what if len(error.what) <= LONGEST_WHAT else f"{error.what[:LONGEST_WHAT]}…"
    return one_line(" ".join(str(DataError(what, expected=error.expected, got=got)).split()))


def with_hint(error: DataError, hint: str) -> DataError:
    """The same error, with a hint if it has none: those of single frames are collected elsewhere, under one hint."""
    return DataError(error.what, expected=error.expected, got=error.got, hint=error.hint or hint)
