"""Derived streams: the features of pooled heads, computed once from another stream of a store and kept in it.

They are what the first part of a head's graph computes, so that most heads train in seconds without reading a map. A
stream's name says what it holds: `grid3x4` the mean of each cell, `pooled` the mean of the whole map, `change3x4` the
mean |map − map of the frame before| in each cell, `change3x4lag2` the same over two frames, `pca64` 64 principal
components of the map. Streams derived from another one than the appearance have its name in front: `motion.grid3x4`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from features._common.lock import exclusive_write_lock
from features._common.log import logger
from features.errors import ConfigError, StoreError
from features.store import Store
from features.store_writer import extend_store
from features.streams import APPEARANCE
from stage2_temporal.data.grid_pooling import GridPooling
from stage2_temporal.data.pca_projection import PCAProjection

LOCK_TIMEOUT = 120.0  # seconds to wait for another process that writes to the store, as in a parallel sweep
GRID_PATTERN = r"(?P<pooled>pooled)|(?P<kind>grid|change)(?P<rows>\d+)x(?P<columns>\d+)(?:lag(?P<lag>\d+))?"
STREAM_NAME = re.compile(rf"(?:(?P<source>\w+)\.)?(?:{GRID_PATTERN}|pca(?P<components>[1-9]\d*))")
DerivedStream = GridPooling | PCAProjection


def parse_stream_name(name: str) -> DerivedStream:
    """Return the derived stream that a name describes.

    >>> parse_stream_name("motion.change3x4lag2")
    GridPooling(source='motion', grid=(3, 4), lag=2)

    Raises:
        ConfigError: the name describes no derived stream.
    """
    match = STREAM_NAME.fullmatch(name)
    if match is None or (match["kind"] == "grid" and match["lag"]):
        raise ConfigError(
            f"{name}: not a stream that can be derived",
            expected="pooled, gridRxC, changeRxC, changeRxClagN or pcaN",
            got=name,
            hint="--stream grid3x4",
        )
    source = match["source"] or APPEARANCE
    if match["components"]:
        return PCAProjection(source, int(match["components"]))
    if match["pooled"]:
        return GridPooling(source, (1, 1))
    lag = int(match["lag"] or 1) if match["kind"] == "change" else 0
    return GridPooling(source, (int(match["rows"]), int(match["columns"])), lag)


def is_stored(store: Store, stream: DerivedStream) -> bool:
    """Whether a store has a stream, derived from its source as it is now, with the PCA basis if the stream has one."""
    stored, expected = store.streams.get(stream.name), stream.info(store)
    return stored == expected and (isinstance(stream, GridPooling) or bool(store.basis(stream.name)))


def derive_streams(path: Path, streams: Sequence[DerivedStream]) -> list[str]:
    """Add streams to a store where they are missing, and return the names of those added.

    Raises:
        StoreError: another process is still writing to the store after `LOCK_TIMEOUT`.
        ConfigError: a stream does not fit the store, see the streams' `info`.
        OSError: the store cannot be written.
    """
    with Store(path) as store:
        if not _missing(store, streams):
            return []
    with exclusive_write_lock(path, LOCK_TIMEOUT), Store(path) as store:
        missing = _missing(store, streams)  # another process may have added some in the meantime
        if missing:
            extend_store(path, {stream.name: stream.stream(store) for stream in missing})
    return [stream.name for stream in missing]


def try_derive_streams(path: Path, streams: Sequence[DerivedStream]) -> bool:
    """Call `derive_streams`; if the store cannot be written, log why. Return whether the streams are in the store."""
    try:
        added = derive_streams(path, streams)
    except (OSError, StoreError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        names = ", ".join(stream.name for stream in streams)
        logger.warning(f"{path}: {names} cannot be saved in the store ({reason}), so each run computes them again")
        return False
    if added:
        logger.info(f"{path}: {', '.join(added)} derived and saved in the store")
    return True


def _missing(store: Store, streams: Sequence[DerivedStream]) -> list[DerivedStream]:
    return [stream for stream in dict.fromkeys(streams) if not is_stored(store, stream)]
