"""The head that `head.name = "auto"` stands for. A run's config names the head that was chosen."""

from __future__ import annotations

from features.config import Config
from features.head_config import AutoConfig, BoxRidgeConfig, FusionConfig, HeadConfig, PooledLSTMConfig, RidgeConfig
from features.store import Store
from features.streams import APPEARANCE, MOTION, VEHICLE_COLUMNS
from features.windows import Examples

DEFAULT_GRID = (8, 4)  # rows and columns; finer grids add little on the sample set


def resolve_default_head(config: Config, store: Store, examples: Examples) -> Config:
    """Replace `auto` by a head, with that head's defaults.

    A vehicle's velocity or position: `box_ridge` if training vehicles were tracked, else `pooled_lstm`. Any other
    target: `fusion` on the optical flow if the store holds it, else `ridge` on how the maps change if the windows are
    long enough for its lags, else `pooled_lstm`.
    """
    if not isinstance(config.head, AutoConfig):
        return config
    head: HeadConfig = PooledLSTMConfig()
    if set(examples.columns) <= VEHICLE_COLUMNS:
        if _tracked(store, examples):
            head = BoxRidgeConfig()
    elif MOTION in store.streams:
        head = FusionConfig(streams=(MOTION,))
    elif config.window.length > max(RidgeConfig().lags):
        height, width, _ = store.streams[APPEARANCE].shape
        head = RidgeConfig(difference=True, grid=(min(DEFAULT_GRID[0], height), min(DEFAULT_GRID[1], width)))
    return config.model_copy(update={"head": head})


def _tracked(store: Store, examples: Examples) -> bool:
    """Whether the store holds a track for any training example."""
    train = examples[(examples.split == "train") & examples.known]
    pairs = zip(train.sequence.tolist(), train.label.tolist(), strict=True)
    return bool(store.track_keys) and any(store.track(s, label) is not None for s, label in pairs)
