"""What is to be extracted: wanted against held, stream by stream. Pure: no file is touched here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from features.frame_ranges import FrameRange, StoredRange, by_sequence, covering_ranges, full_range, missing_ranges
from features.sequences import FrameSequence
from features.tracks import TrackedVehicle, track_keys, tracked_vehicles

StoredStreams = Mapping[str, Sequence[StoredRange]]  # per wanted stream, the pieces that some file holds of it


@dataclass(frozen=True)
class Group:
    """What goes into one shard: pieces, and the streams that none of their frames has yet."""

    streams: tuple[str, ...]
    pieces: tuple[FrameRange, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class ExtractionPlan:
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


def plan_extraction(
    wanted: Sequence[FrameSequence], stored: StoredStreams, shards: StoredStreams, size: int
) -> ExtractionPlan:
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
    lacking = [part for s in wanted for part in _gaps(full_range(s), in_store)]
    groups = []
    for streams in dict.fromkeys(streams for streams, _ in lacking):
        for pieces in _groups([piece for own, piece in lacking if own == streams], size):
            left = [part for piece in pieces for part in _gaps(piece, {n: anywhere[n] for n in streams})]
            kinds = dict.fromkeys(own for own, _ in left)
            groups += [Group(kind, tuple(piece for own, piece in left if own == kind)) for kind in kinds]
    return ExtractionPlan(tuple(groups), sum(s.length for s in wanted))


def complete_sequences(
    wanted: Sequence[FrameSequence], held: StoredStreams
) -> tuple[list[FrameSequence], dict[str, list[list[StoredRange]]]]:
    """The sequences of which every stream is wholly held, in order; per stream the pieces that make each up."""
    tables = {name: by_sequence(pieces) for name, pieces in held.items()}
    ready: list[FrameSequence] = []
    parts: dict[str, list[list[StoredRange]]] = {name: [] for name in held}
    for s in wanted:
        found = {name: covering_ranges(full_range(s), table[s.id, s.digest]) for name, table in tables.items()}
        if all(sum(len(h.frame_range) for h in own) == s.length for own in found.values()):
            ready.append(s)
            for name, own in found.items():
                parts[name].append(own)
    return ready, parts


def vehicles_without_tracks(
    wanted: Sequence[FrameSequence], there: Collection[str]
) -> dict[str, tuple[TrackedVehicle, ...]]:
    """Per sequence id its vehicles, where not all of their tracks, by their keys, are there: one may hide another."""
    return {s.id: tuple(tracked_vehicles(s)) for s in wanted if not all(name in there for name in track_keys(s))}


def _gaps(
    frame_range: FrameRange, held: Mapping[str, Mapping[tuple[str, str], list[StoredRange]]]
) -> Iterator[tuple[tuple[str, ...], FrameRange]]:
    """What of a piece some stream lacks, in order, each part with the streams that lack all of it."""
    owner = frame_range.sequence, frame_range.digest
    gaps = {name: missing_ranges(frame_range, table.get(owner, ())) for name, table in held.items()}
    edges = sorted({edge for own in gaps.values() for gap in own for edge in (gap.start, gap.stop)})
    for start, stop in pairwise(edges):
        streams = tuple(n for n, own in gaps.items() if any(g.start <= start and stop <= g.stop for g in own))
        if streams:
            yield streams, FrameRange(*owner, start, stop)


def _groups(pieces: Sequence[FrameRange], size: int) -> list[list[FrameRange]]:
    """Pieces put together, in order, into groups of at most `size` frames; only those longer than that are cut."""
    cut: list[tuple[int, FrameRange]] = []
    at = 0
    for piece in pieces:
        start = piece.start
        if len(piece) > size - at % size and len(piece) <= size:
            at += size - at % size
        while start < piece.stop:
            stop = min(piece.stop, start + size - at % size)
            cut.append((at // size, FrameRange(piece.sequence, piece.digest, start, stop)))
            at += stop - start
            start = stop
    return [[piece for _, piece in group] for _, group in groupby(cut, key=lambda pair: pair[0])]
