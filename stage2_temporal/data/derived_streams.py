"""Derived streams: what pooled heads look at, computed once from a stream of the store and kept in it.

They are the first part of a head's graph, with the same numbers, so that most heads train in seconds without reading a
map. A stream's name says what it is: `grid3x4` (cells' means), `pooled` (one cell), `change3x4` (mean |map − map of the
frame before| of each cell), `change3x4lag2` (of two frames before), `pca64` (64 principal components of the whole map).
Of another stream than the appearance: `motion.grid3x4`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from features._common.lock import exclusive_write_lock
from features._common.log import logger
from features.errors import ConfigError, StoreError
from features.store import Store
from features.store_writer import extend_store
from features.streams import APPEARANCE
from stage2_temporal.data.grid_pooling import GridPooling
from stage2_temporal.data.pca_projection import PCAProjection

LOCK_TIMEOUT = 120.0  # seconds to wait for another process that writes into the store
GRID_PATTERN = r"(?P<pooled>pooled)|(?P<kind>grid|change)(?P<rows>\d+)x(?P<columns>\d+)(?:lag(?P<lag>\d+))?"
STREAM_NAME = re.compile(rf"(?:(?P<source>\w+)\.)?(?:{GRID_PATTERN}|pca(?P<components>[1-9]\d*))")
DerivedStream = GridPooling | PCAProjection


def parse_stream_name(name: str) -> DerivedStream:
    """The derived stream of that name.

    Raises:
        ConfigError: no such kind of stream.
    """
    found = STREAM_NAME.fullmatch(name)
    if found is None or (found["kind"] == "grid" and found["lag"]):
        raise ConfigError(
            f"{name}: no stream that can be derived",
            expected="pooled, gridRxC, changeRxC, changeRxClagN or pcaN",
            got=name,
            hint="--stream grid3x4",
        )
    source = found["source"] or APPEARANCE
    if found["components"]:
        return PCAProjection(source, int(found["components"]))
    if found["pooled"]:
        return GridPooling(source, (1, 1))
    lag = int(found["lag"] or 1) if found["kind"] == "change" else 0
    return GridPooling(source, (int(found["rows"]), int(found["columns"])), lag)


def is_stored(store: Store, wanted: DerivedStream) -> bool:
    """Whether the store has the stream, derived from what its source is now, with its basis where it has one."""
    there, info = store.streams.get(wanted.name), wanted.info(store)
    return there == info and (isinstance(wanted, GridPooling) or bool(store.basis(wanted.name)))


def derive_streams(path: Path, wanted: Sequence[DerivedStream]) -> list[str]:
    """Put streams into a store where they are lacking; the names of those that were.

    Raises:
        StoreError: another process writes into the store and does not come to an end.
        ConfigError: see the streams' `info`.
        OSError: the store cannot be written.
    """
    with Store(path) as store:
        if not _lacking(store, wanted):
            return []
    with ExitStack() as held:
        _wait(held, path)
        with Store(path) as store:
            lacking = _lacking(store, wanted)
            if lacking:
                extend_store(path, {d.name: d.stream(store) for d in lacking})
    return [d.name for d in lacking]


def try_derive_streams(path: Path, wanted: Sequence[DerivedStream]) -> bool:
    """`derive_streams`, or a line that says why not: whether the streams are there."""
    try:
        made = derive_streams(path, wanted)
    except (OSError, StoreError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        names = ", ".join(d.name for d in wanted)
        logger.warning(f"{path}: {names} are not kept in the store ({reason}), but computed anew each time")
        return False
    if made:
        logger.info(f"{path}: {', '.join(made)} derived, for this head and others")
    return True


def _lacking(store: Store, wanted: Sequence[DerivedStream]) -> list[DerivedStream]:
    return [d for d in dict.fromkeys(wanted) if not is_stored(store, d)]


def _wait(held: ExitStack, path: Path) -> None:
    """Take the store's lock, when a sweep's other process has derived its streams."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            held.enter_context(exclusive_write_lock(path))
            return
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
