"""A clip is a sequence with the source of its frames; a catalogue is all that a scan found in a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from features._common.types import Image
from features.sequences import FrameSequence


class FrameSource(Protocol):
    """Reads the frames of a sequence."""

    @property
    def parallel(self) -> bool:
        """Whether several threads may read ranges at once, in any order: true for image files, false for a video."""
        ...

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Read frames start … stop − 1, each uint8 BGR of shape (height, width, 3), at full resolution.

        Args:
            min_size: width, height in px; frames may be shrunk by 2, 4 or 8 as long as they stay at least this large.

        Raises:
            DataError: a frame cannot be decoded or has the wrong size; the message names its file.
        """
        ...


@dataclass(frozen=True)
class Clip:
    """A sequence with the source of its frames."""

    sequence: FrameSequence
    source: FrameSource


@dataclass(frozen=True)
class Catalogue:
    """What a scan found: the clips without faults, in order, and a line for each fault visible without decoding."""

    clips: tuple[Clip, ...]
    faults: tuple[str, ...] = ()
