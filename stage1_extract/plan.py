"""What is to be extracted: wanted against held, stream by stream. Pure: no file is touched here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from itertools import groupby, pairwise

from features.frame_ranges import Held, Piece, by_sequence, segments, uncovered, whole
from features.sequences import Sequence
from features.tracks import Vehicle, keys, vehicles

StreamsHeld = Mapping[str, Listed[Held]]  # per wanted stream, the pieces that some file holds of it


@dataclass(frozen=True)
class Group:
    """What goes into one shard: pieces, and the streams that none of their frames has yet."""

    streams: tuple[str, ...]
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class Plan:
    """Groups to extract, and how many frames the wanted sequences have."""

    groups: tuple[Group, ...]
    wanted: int

    @property
    def frames(self) -> int:
        """Frames to go through, in all groups."""
        return sum(map(len, self.groups))

    def lacking(self, stream: str) -> int:
        """Frames that no file holds a stream's entry of."""
        return sum(len(g) for g in self.groups if stream in g.streams)


def plan(wanted: Listed[Sequence], stored: StreamsHeld, shards: StreamsHeld, size: int) -> Plan:
    """Which pieces of which streams no file holds yet, in groups of at most `size` frames.

    A sequence that fits into a group is never cut in two. The groups are laid out as if there were no shards, so that
    a run that goes on after a kill puts the same frames into the same batches as an uninterrupted one.

    Args:
        wanted: sequences as the data set has them now.
        stored: per wanted stream, pieces in the store.
        shards: per wanted stream, pieces in finished shards.
    """
    in_store = {name: by_sequence(held) for name, held in stored.items()}
    anywhere = {name: by_sequence([*held, *shards.get(name, ())]) for name, held in stored.items()}
    lacking = [part for s in wanted for part in _gaps(whole(s), in_store)]
    groups = []
    for streams in dict.fromkeys(streams for streams, _ in lacking):
        for pieces in _groups([piece for own, piece in lacking if own == streams], size):
            left = [part for piece in pieces for part in _gaps(piece, {n: anywhere[n] for n in streams})]
            kinds = dict.fromkeys(own for own, _ in left)
            groups += [Group(kind, tuple(piece for own, piece in left if own == kind)) for kind in kinds]
    return Plan(tuple(groups), sum(s.length for s in wanted))


def layout(wanted: Listed[Sequence], held: StreamsHeld) -> tuple[list[Sequence], dict[str, list[list[Held]]]]:
    """The sequences of which every stream is wholly held, in order; per stream the pieces that make each up."""
    tables = {name: by_sequence(pieces) for name, pieces in held.items()}
    ready: list[Sequence] = []
    parts: dict[str, list[list[Held]]] = {name: [] for name in held}
    for s in wanted:
        found = {name: segments(whole(s), table[s.id, s.digest]) for name, table in tables.items()}
        if all(sum(len(h.piece) for h in own) == s.length for own in found.values()):
            ready.append(s)
            for name, own in found.items():
                parts[name].append(own)
    return ready, parts


def untracked(wanted: Listed[Sequence], there: Collection[str]) -> dict[str, tuple[Vehicle, ...]]:
    """Per sequence id its vehicles, where not all of their tracks, by their keys, are there: one may hide another."""
    return {s.id: tuple(vehicles(s)) for s in wanted if not all(name in there for name in keys(s))}


def _gaps(
    piece: Piece, held: Mapping[str, Mapping[tuple[str, str], list[Held]]]
) -> Iterator[tuple[tuple[str, ...], Piece]]:
    """What of a piece some stream lacks, in order, each part with the streams that lack all of it."""
    owner = piece.sequence, piece.digest
    gaps = {name: uncovered(piece, table.get(owner, ())) for name, table in held.items()}
    edges = sorted({edge for own in gaps.values() for gap in own for edge in (gap.start, gap.stop)})
    for start, stop in pairwise(edges):
        streams = tuple(n for n, own in gaps.items() if any(g.start <= start and stop <= g.stop for g in own))
        if streams:
            yield streams, Piece(*owner, start, stop)


def _groups(pieces: Listed[Piece], size: int) -> list[list[Piece]]:
    """Pieces put together, in order, into groups of at most `size` frames; only those longer than that are cut."""
    cut: list[tuple[int, Piece]] = []
    at = 0
    for piece in pieces:
        start = piece.start
        if len(piece) > size - at % size and len(piece) <= size:
            at += size - at % size
        while start < piece.stop:
            stop = min(piece.stop, start + size - at % size)
            cut.append((at // size, Piece(piece.sequence, piece.digest, start, stop)))
            at += stop - start
            start = stop
    return [[piece for _, piece in group] for _, group in groupby(cut, key=lambda pair: pair[0])]
