"""Extraction: frames in, store out. Only what no file holds yet goes through the trunk.

Shards are written beside the store under `<store>.parts/`; when all are there, the store is assembled from their raw
chunks and renamed into place. Killed at any moment, the same command goes on from the finished shards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listed
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from features.assembly import ShardWriter, Stream, assemble, check_shard, shard_pieces
from features.config import Config
from features.errors import BadInputs, DataError, StoreError
from features.files import replacing
from features.lock import only_writer
from features.pieces import Held, Piece
from features.progress import bar
from features.recipe import canonical
from features.sequences import same
from features.store import Header, Store, StreamInfo
from stage1_extract.clips import Catalogue, Clip, Image
from stage1_extract.decode import Decoded, decode
from stage1_extract.engine import Engine, Trunk, build_trunk
from stage1_extract.plan import Plan, layout, plan

STREAM = "appearance"
WRITES_AHEAD = 4


@dataclass
class Outcome:
    """What an extraction did.

    Attributes:
        extracted: frames that went through the trunk.
        frames: frames in the store now.
        missing: sequence id → why it is not in the store.
    """

    extracted: int = 0
    frames: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def extract(
    config: Config, store: Path, catalogue: Catalogue, *, redo: Listed[int] = (), engine: Engine | None = None
) -> Outcome:
    """Bring `store` to what the catalogue and the config want.

    Args:
        catalogue: what the layout found.
        redo: rows of the store to extract anew although they are there (damaged ones).
        engine: one already built from the same config.

    Raises:
        BadInputs: faults seen without decoding, before any work; or, at the end, sequences that would not decode.
        StoreError: the store has another recipe, is damaged, or is being written.
        DataError: too little room on the disk.
    """
    skip = config.extract.skip_damaged
    if catalogue.faults and not skip:
        raise BadInputs(
            f"{len(catalogue.faults)} faults in {config.data.path}, nothing was extracted",
            list(catalogue.faults),
            mend="put them right, or leave these clips out with --extract.skip_damaged true",
        )
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: no sound clip", list(catalogue.faults))
    with only_writer(store):
        request = _request(config)
        wanted = [clip.sequence for clip in catalogue.clips]
        if store.exists():
            with Store(store) as s:
                done = s.header.trunk.get("request") == request and s.complete and not redo
                if done and same(s.sequences, wanted) and set(s.missing.values()) == set(catalogue.faults):
                    return Outcome(0, s.frames, dict(s.missing))
        engine = engine or Engine(build_trunk(config), config.extract.batch)
        outcome = _extract(config, store, catalogue, request, redo, engine)
    if outcome.missing and not skip:
        raise BadInputs(
            f"{store}: {len(outcome.missing)} of {len(wanted)} sequences would not decode and are left out",
            list(outcome.missing.values()),
            mend="replace their files and run the same command, or do without with --extract.skip_damaged true",
        )
    return outcome


def _extract(
    config: Config, store: Path, catalogue: Catalogue, request: str, redo: Listed[int], engine: Engine
) -> Outcome:
    trunk = engine.trunk
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    wanted = [clip.sequence for clip in catalogue.clips]
    parts = store.with_name(f"{store.name}.parts")
    _sweep(store, parts)
    _discard_damaged(parts)
    stored = _stored(store, trunk, redo)
    todo = plan(wanted, stored, _shards(parts, trunk.recipe.fingerprint), config.extract.shard)
    faults: dict[str, str] = {}
    if todo.frames:
        _room(store, todo, trunk.stream)
        _run(config, parts, clips, todo, engine, faults)
    ready, held = layout(wanted, [*_shards(parts, trunk.recipe.fingerprint), *stored])
    missing = {f"fault {i}": fault for i, fault in enumerate(catalogue.faults, 1)}
    missing |= {s.id: faults.get(s.id, "not extracted") for s in wanted if s not in ready}
    header = Header(
        trunk.recipe,
        trunk={
            "parameters": trunk.model.count_params(),
            "cut": trunk.cut.words,
            "backbone_layers": len(trunk.backbone.model.layers),
            "request": request,
            "asked": config.backbone.model_dump(include={"unfreeze", "cut", "top"}),
        },
        versions={name: version(name) for name in ("tensorflow", "keras", "h5py", "numpy", "opencv-python-headless")},
        missing=missing,
        complete=not missing or config.extract.skip_damaged,
    )
    if ready:
        assemble(store, header, ready, {STREAM: Stream(trunk.stream, held)}, trunk.top())
        shutil.rmtree(parts, ignore_errors=True)
    return Outcome(todo.frames, sum(s.length for s in ready), missing)


def _run(
    config: Config, parts: Path, clips: dict[str, Clip], todo: Plan, engine: Engine, faults: dict[str, str]
) -> None:
    """Extract every group of a plan into a shard of its own; note the sequences that would not decode."""
    parts.mkdir(parents=True, exist_ok=True)
    threads = config.extract.threads or len(os.sched_getaffinity(0))
    cv2.setNumThreads(1)  # the frames are what runs in parallel
    with bar(todo.wanted, "features", "frames", initial=todo.wanted - todo.frames) as progress:
        for group in todo.groups:
            pieces = [p for p in group if p.sequence not in faults]
            if pieces:
                decoded = decode(pieces, clips, config.frames, threads)
                _shard(parts, pieces, decoded, engine, faults, progress.update)


def _shard(
    parts: Path,
    pieces: list[Piece],
    decoded: Iterator[Decoded],
    engine: Engine,
    faults: dict[str, str],
    step: Callable[[int], object],
) -> None:
    """Run one group through the trunk and into a shard; the writer works beside the network."""
    name = hashlib.sha256(canonical([[p.sequence, p.digest, p.start, p.stop] for p in pieces]).encode()).hexdigest()
    sound = dict.fromkeys(range(len(pieces)), True)
    with replacing(parts / f"{name[:24]}.h5") as temporary, ThreadPoolExecutor(1, "write") as pool:
        writer = ShardWriter(temporary, engine.trunk.recipe, pieces, {STREAM: engine.trunk.stream})
        try:
            pending: deque[Future[None]] = deque()
            for frames, thumbnails in _batches(decoded, pieces, engine.batch, sound, faults):
                maps = engine(frames)
                if maps.dtype == np.float16 and not np.isfinite(maps).all():
                    raise DataError(
                        "the map at the cut does not fit half precision (over 65504)", mend="--extract.dtype float32"
                    )
                pending.append(pool.submit(writer.write, {STREAM: maps}, thumbnails))
                while len(pending) > WRITES_AHEAD or (pending and pending[0].done()):
                    pending.popleft().result()
                step(len(frames))
            while pending:
                pending.popleft().result()
            writer.close([i for i, well in sound.items() if well])
        finally:
            writer.abandon()


def _batches(
    decoded: Iterator[Decoded], pieces: list[Piece], size: int, sound: dict[int, bool], faults: dict[str, str]
) -> Iterator[tuple[Image, list[bytes]]]:
    """Decoded frames in batches of `size`, in a buffer that the next batch overwrites.

    A fault's frames are blank, so that the others keep their places.
    """
    buffer, count = np.empty(0, np.uint8), 0
    thumbnails: list[bytes] = []
    for part in decoded:
        if part.fault is not None:
            sound[part.piece] = False
            faults.setdefault(pieces[part.piece].sequence, part.fault)
        if not len(buffer):
            buffer = np.empty((size, *part.frames.shape[1:]), np.uint8)
        thumbnails.extend(part.thumbnails)
        left = part.frames
        while len(left):
            taken = min(size - count, len(left))
            buffer[count : count + taken] = left[:taken]
            left, count = left[taken:], count + taken
            if count == size:
                yield buffer, thumbnails[:size]
                thumbnails, count = thumbnails[size:], 0
    if count:
        yield buffer[:count], thumbnails


def _stored(store: Path, trunk: Trunk, redo: Listed[int]) -> list[Held]:
    """What the store holds; refused where it was made by another recipe."""
    if not store.exists():
        return []
    with Store(store) as s:
        if s.fingerprint != trunk.recipe.fingerprint:
            raise StoreError(
                f"{store}: made by another recipe",
                got="; ".join(trunk.recipe.differences(s.recipe)),
                mend=f"give this recipe a store of its own, --store OTHER.h5, or move {store} away",
            )
        return s.held(redo)


def _shards(parts: Path, fingerprint: str) -> list[Held]:
    return [held for path in sorted(parts.glob("*.h5")) for held in shard_pieces(path, fingerprint)]


def _discard_damaged(parts: Path) -> None:
    """Throw away shards that cannot be read to the end: extracting them anew is the mend."""
    for path in sorted(parts.glob("*.h5")):
        try:
            check_shard(path)
        except StoreError as e:
            print(f"{path}: a damaged shard is extracted anew ({e.what})", file=sys.stderr)
            path.unlink()


def _sweep(store: Path, parts: Path) -> None:
    """Throw away what a killed writer left under temporary names; we hold the lock, so nobody writes them."""
    for left in [*store.parent.glob(f".{store.name}.*.tmp"), *parts.glob(".*.tmp")]:
        left.unlink()


def _room(store: Path, todo: Plan, stream: StreamInfo) -> None:
    """Refuse before hours of work what the disk cannot hold: shards and store stand side by side at the end."""
    frame = int(np.prod(stream.shape)) * np.dtype(stream.dtype).itemsize
    needed = (todo.frames + todo.wanted) * frame
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise DataError(
            f"{store}: the disk is too full",
            expected=f"{needed / 1e9:.3g} GB free ({todo.wanted} frames of {frame / 1e3:.0f} kB, shards and store)",
            got=f"{free / 1e9:.3g} GB",
            mend="free some space, or --extract.dtype float16, or --store on another disk",
        )


def _request(config: Config) -> str:
    """A digest of all that decides the recipe, to see without loading a network that nothing is to be done."""
    weights = Path(config.backbone.weights)
    content = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else config.backbone.weights
    asked = config.model_dump(mode="json", include={"frames", "backbone"})
    asked["backbone"]["weights"] = content
    return hashlib.sha256(canonical([asked, config.extract.dtype, version("keras")]).encode()).hexdigest()
