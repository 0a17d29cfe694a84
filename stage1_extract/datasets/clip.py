"""Clips, the catalogue of what a scan found in a data set, and its faults: errors collected as lines, to show all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from features._common.types import Image
from features.errors import DataError
from features.sequences import FrameSequence


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
class Catalogue:
    """What a scan found: the clips without faults, in order, and a line for each fault visible without decoding."""

    clips: tuple[Clip, ...]
    faults: tuple[str, ...] = ()


def add_fault(faults: list[str], what: str, expected: object, got: object) -> None:
    """Append a fault as one line, which begins with the file's path; the hint comes from the command."""
    faults.append(error_to_fault(DataError(what, expected=expected, got=got)))


def error_to_fault(error: DataError) -> str:
    """Turn an error into the line of a fault, without its hint."""
    return " ".join(str(DataError(error.what, expected=error.expected, got=error.got)).split())
