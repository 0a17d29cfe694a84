"""Finding damage: every part of a store is read, and what cannot be is listed part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from features.errors import DamagedStoreError
from features.hdf5 import looks_like_a_store, open_file
from features.store import Store
from features.store_schema import table_faults

# parts without which a store can be opened; frames cannot be told apart without the others
TOLERATED = frozenset({"labels", "tracks", "top", "bases", "thumbnails"})


@dataclass(frozen=True)
class Damage:
    """What is damaged in a store."""

    # part, such as `labels` or `bases/pca64` → what is wrong with it; `file` if none can be read
    parts: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[int, Sequence[str]] = field(
        default_factory=dict
    )  # row → its damaged streams, `thumbnails` among them
    descriptions: Sequence[str] = ()  # a line per damaged frame and per shard that is missing or damaged

    def __bool__(self) -> bool:
        return bool(self.parts or self.rows)

    @property
    def lines(self) -> list[str]:
        """Descriptions of all that is damaged."""
        parts = (what if part in what else f"{what}; the part is {part}" for part, what in self.parts.items())
        return [*parts, *self.descriptions]

    @property
    def hides_frames(self) -> bool:
        """Whether the store does not say any more which frames it has."""
        return any(part.partition("/")[0] not in TOLERATED for part in self.parts)


def find_damage(path: Path, progress: Callable[[int, int], object] = lambda done, total: None) -> Damage:
    """Read everything in a store; `progress` gets the number of frames read so far, and of all.

    Raises:
        StoreError: there is no store, or it cannot be read for another reason than damage.
    """
    try:
        with open_file(path) as f:
            parts = {part: fault.what + _got(fault) for part, fault in table_faults(f, path)}
    except DamagedStoreError as e:
        if not looks_like_a_store(path):
            raise
        return Damage({"file": e.what})
    if parts.keys() - TOLERATED:
        return Damage(parts)
    with Store(path, TOLERATED) as store:
        for part, read in _parts(store):
            try:
                read()
            except DamagedStoreError as e:
                parts[part] = e.what
        rows = {}
        for row, streams in store.check_frames():
            if streams:
                rows[row] = streams
            progress(row + 1, store.frames)
        return Damage(parts, rows, list(_describe(store, rows)))


def _parts(store: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """What opening a store does not read."""
    if "top" not in store.damaged_parts:
        yield "top", store.top
    if "bases" not in store.damaged_parts:
        for name in store.files.infos:
            yield f"bases/{name}", partial(store.basis, name)


def _describe(store: Store, rows: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Yield a line for each unusable shard, and one for each damaged frame in the others."""
    unusable = store.files.unusable_files() if rows else {}
    files = {name: store.files.files_of(name) for name in store.files.infos} if unusable else {}
    for file, what in unusable.items():
        streams_here = [name for name, of in files.items() if (of == file).any()]
        count = np.logical_or.reduce([files[name] == file for name in streams_here]).sum() if streams_here else 0
        yield f"{what} ({count:,} frames of {', '.join(streams_here)})"
    for row, streams in rows.items():
        shown = [name for name in streams if not unusable or files[_stream(store, name)][row] not in unusable]
        if shown:
            i = int(store.first.searchsorted(row, "right")) - 1
            frame = f"{store.sequences[i].id} frame {row - int(store.first[i])}"
            yield f"{store.path}: {frame}: {', '.join(shown)} damaged"
    if rows:
        yield f"{store.path}: {len(rows):,} damaged frames"


def _stream(store: Store, name: str) -> str:
    return name if name in store.files.infos else store.thumbnail_stream


def _got(fault: DamagedStoreError) -> str:
    expected = "" if fault.expected is None else f"; expected {fault.expected}"
    return expected + ("" if fault.got is None else f"; got {fault.got}")
