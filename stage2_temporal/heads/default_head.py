"""`head.name = "auto"`: which head a target gets, by what the store holds. The run's config says what it became."""

from __future__ import annotations

from features.config import Config
from features.store import Store
from features.streams import MOTION, VEHICLE_COLUMNS
from features.windows import Examples

DEFAULT_GRID = (8, 4)  # cells; measured on the sample set: finer ones add little


def resolve_default_head(config: Config, store: Store, found: Examples) -> Config:
    """The config with a head's name in the place of `auto`.

    A vehicle's velocity or position where training vehicles were tracked: `box_ridge`, else `pooled_lstm`. Any other
    target: `fusion` of the flow where the store holds it, else `ridge` on how the maps' cells change, where the windows
    are long enough to tell.
    """
    head = config.head
    if head.name != "auto":
        return config
    update: dict[str, object] = {"name": "pooled_lstm"}
    if set(found.columns) <= VEHICLE_COLUMNS:
        if _tracked(store, found):
            update = {"name": "box_ridge"}
    elif MOTION in store.streams:
        update = {"name": "fusion", "streams": (MOTION,)}
    elif config.window.length > max(head.lags):
        height, width, _ = store.streams["appearance"].shape
        update = {
            "name": "ridge",
            "difference": True,
            "grid": (min(DEFAULT_GRID[0], height), min(DEFAULT_GRID[1], width)),
        }
    return config.model_copy(update={"head": head.model_copy(update=update)})


def _tracked(store: Store, found: Examples) -> bool:
    train = found[(found.split == "train") & found.known]
    pairs = zip(train.sequence.tolist(), train.label.tolist(), strict=True)
    return bool(store.track_keys) and any(store.track(s, label) is not None for s, label in pairs)
