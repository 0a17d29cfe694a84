"""`head.name = "auto"`: which head a target gets, by what the store holds. The run's config says what it became."""

from __future__ import annotations

from features.config import Config
from features.store import Store
from features.windows import Examples

VEHICLES = frozenset(["vx", "vy", "x", "y"])  # columns about one vehicle, which a box has to point out
MOTION = "motion"


def resolved(config: Config, store: Store, found: Examples) -> Config:
    """The config with a head's name in the place of `auto`.

    A vehicle's velocity or position where training vehicles were tracked: `box_ridge`. Anything else where the store
    holds flow: `fusion` of it. Otherwise `pooled_lstm`.
    """
    head = config.head
    if head.name != "auto":
        return config
    if set(found.columns) <= VEHICLES and _tracked(store, found):
        update: dict[str, object] = {"name": "box_ridge"}
    elif MOTION in store.streams and not set(found.columns) <= VEHICLES:
        update = {"name": "fusion", "streams": (MOTION,)}
    else:
        update = {"name": "pooled_lstm"}
    return config.model_copy(update={"head": head.model_copy(update=update)})


def _tracked(store: Store, found: Examples) -> bool:
    train = found[(found.split == "train") & found.known]
    pairs = zip(train.sequence.tolist(), train.label.tolist(), strict=True)
    return bool(store.track_keys) and any(store.track(s, label) is not None for s, label in pairs)
