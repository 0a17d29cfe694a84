"""Pieces: which frames of which sequences, and where they already lie. Index arithmetic only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.sequences import Sequence


@dataclass(frozen=True)
class Piece:
    """Frames `start` … `stop` − 1 of a sequence, of the version whose source files have this digest."""

    sequence: str
    digest: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Held:
    """A piece that lies in a file, from its row `row` on.

    Attributes:
        streams: the streams the file holds of it: name → fingerprint.
    """

    piece: Piece
    path: Path
    row: int
    streams: Mapping[str, str] = field(default_factory=dict)


def uncovered(piece: Piece, held: Iterable[Held]) -> list[Piece]:
    """What of `piece` none of `held` has, in order."""
    gaps, at = [], piece.start
    for start, stop in sorted((h.piece.start, h.piece.stop) for h in held):
        if start > at:
            gaps.append(Piece(piece.sequence, piece.digest, at, min(start, piece.stop)))
        at = max(at, stop)
        if at >= piece.stop:
            break
    if at < piece.stop:
        gaps.append(Piece(piece.sequence, piece.digest, at, piece.stop))
    return [gap for gap in gaps if len(gap) > 0]


def segments(piece: Piece, held: Iterable[Held]) -> list[Held]:
    """The parts of `held` that make up `piece`, in order and without overlap; what nobody holds is left out."""
    parts, at = [], piece.start
    for h in sorted(held, key=lambda h: (h.piece.start, -h.piece.stop)):
        start, stop = max(at, h.piece.start), min(h.piece.stop, piece.stop)
        if start >= stop:
            continue
        part = Piece(piece.sequence, piece.digest, start, stop)
        parts.append(replace(h, piece=part, row=h.row + start - h.piece.start))
        at = stop
    return parts


def whole(sequence: Sequence) -> Piece:
    """All frames of a sequence."""
    return Piece(sequence.id, sequence.digest, 0, sequence.length)


def by_sequence(held: Iterable[Held]) -> dict[tuple[str, str], list[Held]]:
    """Held pieces by sequence id and digest."""
    table: dict[tuple[str, str], list[Held]] = defaultdict(list)
    for h in held:
        table[h.piece.sequence, h.piece.digest].append(h)
    return table
