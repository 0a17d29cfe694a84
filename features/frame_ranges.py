"""Pieces: which frames of which sequences, and where they already lie. Index arithmetic only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.sequences import FrameSequence


@dataclass(frozen=True)
class FrameRange:
    """Frames `start` … `stop` − 1 of a sequence, of the version whose source files have this digest."""

    sequence: str
    digest: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class StoredRange:
    """A piece that lies in a file, from its row `row` on.

    Attributes:
        streams: the streams the file holds of it: name → fingerprint.
    """

    frame_range: FrameRange
    path: Path
    row: int
    streams: Mapping[str, str] = field(default_factory=dict)


def missing_ranges(piece: FrameRange, held: Iterable[StoredRange]) -> list[FrameRange]:
    """What of `piece` none of `held` has, in order."""
    gaps, at = [], piece.start
    for start, stop in sorted((h.frame_range.start, h.frame_range.stop) for h in held):
        if start > at:
            gaps.append(FrameRange(piece.sequence, piece.digest, at, min(start, piece.stop)))
        at = max(at, stop)
        if at >= piece.stop:
            break
    if at < piece.stop:
        gaps.append(FrameRange(piece.sequence, piece.digest, at, piece.stop))
    return [gap for gap in gaps if len(gap) > 0]


def covering_ranges(piece: FrameRange, held: Iterable[StoredRange]) -> list[StoredRange]:
    """The parts of `held` that make up `piece`, in order and without overlap; what nobody holds is left out."""
    parts, at = [], piece.start
    for h in sorted(held, key=lambda h: (h.frame_range.start, -h.frame_range.stop)):
        start, stop = max(at, h.frame_range.start), min(h.frame_range.stop, piece.stop)
        if start >= stop:
            continue
        part = FrameRange(piece.sequence, piece.digest, start, stop)
        parts.append(replace(h, frame_range=part, row=h.row + start - h.frame_range.start))
        at = stop
    return parts


def full_range(sequence: FrameSequence) -> FrameRange:
    """All frames of a sequence."""
    return FrameRange(sequence.id, sequence.digest, 0, sequence.length)


def by_sequence(held: Iterable[StoredRange]) -> dict[tuple[str, str], list[StoredRange]]:
    """Held pieces by sequence id and digest."""
    table: dict[tuple[str, str], list[StoredRange]] = defaultdict(list)
    for h in held:
        table[h.frame_range.sequence, h.frame_range.digest].append(h)
    return table
