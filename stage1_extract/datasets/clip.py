"""A clip is a sequence with a source of its frames; a catalogue is what a layout found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from features._common.types import Image
from features.sequences import FrameSequence


class FrameSource(Protocol):
    """Where a sequence's frames come from."""

    @property
    def parallel(self) -> bool:
        """Whether ranges may be read by several threads at once, in any order (files can, a video can't)."""
        ...

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Frames start … stop − 1, uint8 BGR of shape (height, width, 3), at full resolution.

        Args:
            min_size: width and height; frames may be smaller than full, by a power of two, where that is at least this.

        Raises:
            DataError: a frame that cannot be decoded or has another size, named with its path.
        """
        ...


@dataclass(frozen=True)
class Clip:
    """A sequence and the source of its frames."""

    sequence: FrameSequence
    source: FrameSource


@dataclass(frozen=True)
class Catalogue:
    """What a layout found: the sound clips in order, and one line for each fault seen without decoding."""

    clips: tuple[Clip, ...]
    faults: tuple[str, ...] = ()
