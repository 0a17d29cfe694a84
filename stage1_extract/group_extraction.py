"""Extracting groups of frames into shards: decoded in threads, computed by the engine, written meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import cpu_count

from features._common.types import Image
from features.config import Config
from features.frame_ranges import FrameRange
from features.store_tables import StreamInfo
from features.streams import PAIR_STREAMS
from features.tracks import Track
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.image_sequence import is_unread, with_digest
from stage1_extract.frame_loader import FRAMES_PER_JOB, load_frames
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import Group
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE

if TYPE_CHECKING:  # loading TensorFlow takes seconds, which an extraction with nothing to do need not wait for
    from stage1_extract.engines.engine import Engine, Maps

MEASURED_SECONDS = 3.0
PENDING_FRAMES = 128  # computed or being computed while a shard is written, which must not stop the network

ComputedBatch = tuple["Future[Maps] | None", Sequence[bytes], Sequence[Mapping[str, Any]]]  # maps, thumbnails, pairs


def extract_groups(
    config: Config,
    shards: NewShards,
    clips: Mapping[str, Clip],
    groups: Sequence[Group],
    streams: Mapping[str, StreamInfo],
    engine: Engine | None,
    vehicles: Collection[str],
    faults: dict[str, str],
    digests: dict[str, str],
    finished: Callable[[Group], None] = lambda group: None,
) -> Iterator[int]:
    """Extract each group into a shard for each stream, and yield the number of frames whenever some were written.

    Args:
        vehicles: ids of sequences to track.
        faults: gets the sequences that cannot be decoded, by id, and why.
        digests: gets the digests of those that the scan had left unread, by id.
        finished: is called with each group whose shards are complete.
    """
    tracks: dict[str, Track] = {}  # not written yet
    computed = _parts(computed_batches(config, clips, groups, engine, vehicles, faults, tracks), map(len, groups))
    for group in groups:
        with shards.new_group(group.ranges, {name: streams[name] for name in group.streams}) as writer:
            written = 0
            while written < len(group):
                maps, part, thumbnails, pairs = next(computed)
                entries = {name: np.stack([frame[name] for frame in pairs]) for name in pairs[0]}
                if maps is not None:
                    entries |= {name: values[part] for name, values in maps.result().items() if name in group.streams}
                writer.write(entries, thumbnails)
                written += len(thumbnails)
                yield len(thumbnails)
            valid = [i for i, r in enumerate(group.ranges) if r.sequence not in faults]
            error = None if engine is None else engine.relative_error
            unread = [group.ranges[i].sequence for i in valid if is_unread(group.ranges[i])]
            digests.update((name, with_digest(clips[name]).sequence.digest) for name in unread)
            errors = {} if engine is None or error is None else {engine.name: error}
            writer.finish(valid, tracks, errors, {name: digests[name] for name in unread})
        finished(group)
        tracks.clear()


def _parts(
    batches: Iterator[ComputedBatch], sizes: Iterable[int]
) -> Iterator[tuple[Future[Maps] | None, slice, Sequence[bytes], Sequence[Mapping[str, Any]]]]:
    """Split batches where groups of these sizes end: maps of a batch, which of them, thumbnails and pairs."""
    start = length = 0
    for size in sizes:
        written = 0
        while written < size:
            if start == length:
                maps, thumbnails, pairs = next(batches)
                start, length = 0, len(thumbnails)
            part = slice(start, min(length, start + size - written))
            yield maps, part, thumbnails[part], pairs[part]
            written, start = written + part.stop - part.start, part.stop


def computed_batches(
    config: Config,
    clips: Mapping[str, Clip],
    groups: Sequence[Group],
    engine: Engine | None,
    vehicles: Collection[str],
    faults: dict[str, str],
    tracks: dict[str, Track],
) -> Generator[ComputedBatch, None, None]:
    """Yield maps, thumbnails and pairs of one batch while those of the next ones are computed.

    A batch may go on from one group to the next of the same streams, so that few are padded.

    Sequences that cannot be decoded are added to `faults`, and the tracks of `vehicles` to `tracks`.
    """

    def frames(ranges: Sequence[FrameRange], pair_streams: list[str]) -> Iterator[tuple[Image, bytes, dict[str, Any]]]:
        """Yield each frame with its thumbnail and pairs; blank ones too, so that the others keep their positions."""
        threads, in_turns = config.extract.threads or cpu_count(), engine is not None and engine.name == "openvino"
        loaded = load_frames(
            ranges, clips, config.frames, threads, pair_streams=pair_streams, tracked=vehicles, in_turns=in_turns
        )
        for part in loaded:
            if part.fault is not None:
                faults.setdefault(ranges[part.range_index].sequence, part.fault)
            tracks.update(part.tracks)
            for i, (image, thumbnail) in enumerate(zip(part.frames, part.thumbnails, strict=True)):
                yield image, thumbnail, {name: values[i] for name, values in part.pairs.items()}

    size, lanes = (engine.batch, engine.runner.lanes) if engine is not None else (FRAMES_PER_JOB, 0)
    pending: deque[ComputedBatch] = deque()
    for names, groups_with_names in groupby(groups, key=lambda group: group.streams):
        same_streams = list(groups_with_names)
        pair_streams = [name for name in names if name in PAIR_STREAMS]
        loaded = frames([r for group in same_streams for r in group.ranges], pair_streams)
        while batch := list(islice(loaded, size)):
            images, thumbnails, pairs = zip(*batch, strict=True)
            reads_maps = len(pair_streams) < len(names)
            maps = engine.submit(np.stack(images)) if engine is not None and reads_maps else None
            pending.append((maps, thumbnails, pairs))
            if len(pending) > lanes + max(2, PENDING_FRAMES // size):
                yield pending.popleft()
    yield from pending


def measured_rate(
    config: Config, clips: Mapping[str, Clip], group: Group, engine: Engine | None, vehicles: Collection[str]
) -> float:
    """Frames of a group that are decoded and computed per second, without writing them; takes some seconds."""
    count, rate = 32, 0.0
    while True:
        part = Group(group.streams, tuple(_first_frames(group.ranges, count)))
        start = time.perf_counter()
        for maps, _, _ in computed_batches(config, clips, [part], engine, vehicles, {}, {}):
            if maps is not None:
                maps.result()
        seconds = time.perf_counter() - start
        measured_before, rate = rate > 0, len(part) / seconds  # the first time includes compiling the network
        if measured_before and (seconds > MEASURED_SECONDS or len(part) == len(group)):
            return rate
        count = max(count, min(len(group), round(1.5 * MEASURED_SECONDS * rate)))


def _first_frames(ranges: Sequence[FrameRange], count: int) -> Iterator[FrameRange]:
    for r in ranges:
        if count <= 0:
            return
        yield r if len(r) <= SHORT_SEQUENCE else replace(r, stop=min(r.stop, r.start + count))
        count -= len(r)
