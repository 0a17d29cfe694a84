"""What is to be extracted: wanted against held. Pure: no file is touched here."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from itertools import groupby

from features.pieces import Held, Piece, by_sequence, segments, uncovered, whole
from features.sequences import Sequence


@dataclass(frozen=True)
class Plan:
    """Groups of pieces to extract, one group a shard, and how many frames that is of how many wanted."""

    groups: tuple[tuple[Piece, ...], ...]
    frames: int
    wanted: int


def plan(wanted: Listed[Sequence], stored: Listed[Held], shards: Listed[Held], size: int) -> Plan:
    """Which pieces no file holds yet, in groups of at most `size` frames.

    The groups are laid out as if there were no shards, so that a run that goes on after a kill puts the same frames
    into the same batches as an uninterrupted one.

    Args:
        wanted: sequences as the data set has them now.
        stored: pieces in the store.
        shards: pieces in finished shards.
    """
    in_store, anywhere = by_sequence(stored), by_sequence([*stored, *shards])
    groups = []
    for group in _groups([gap for s in wanted for gap in uncovered(whole(s), in_store[s.id, s.digest])], size):
        left = tuple(gap for piece in group for gap in uncovered(piece, anywhere[piece.sequence, piece.digest]))
        if left:
            groups.append(left)
    return Plan(tuple(groups), sum(len(p) for g in groups for p in g), sum(s.length for s in wanted))


def layout(wanted: Listed[Sequence], held: Listed[Held]) -> tuple[list[Sequence], list[list[Held]]]:
    """The sequences that are wholly held, in order, with the pieces that make each up."""
    table = by_sequence(held)
    whole_ones, parts = [], []
    for s in wanted:
        found = segments(whole(s), table[s.id, s.digest])
        if sum(len(h.piece) for h in found) == s.length:
            whole_ones.append(s)
            parts.append(found)
    return whole_ones, parts


def _groups(pieces: Listed[Piece], size: int) -> list[list[Piece]]:
    """Pieces cut and put together, in order, into groups of `size` frames; the last may be smaller."""
    cut: list[tuple[int, Piece]] = []
    at = 0
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + size - at % size)
            cut.append((at // size, Piece(piece.sequence, piece.digest, start, stop)))
            at += stop - start
            start = stop
    return [[piece for _, piece in group] for _, group in groupby(cut, key=lambda pair: pair[0])]
