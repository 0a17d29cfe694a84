"""Heads: what maps windows of a store's streams to the target. Each is a scikit-learn estimator, see `base`.

Only Keras' own layers and operations occur in their models, so that a saved one loads anywhere.
"""

from __future__ import annotations

from pathlib import Path

import keras

from features.config import Config
from features.config import Head as Settings
from features.errors import ConfigError
from features.store import TopRecord
from stage2_temporal.heads.attention import Attention
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.box_mlp import BoxMLP
from stage2_temporal.heads.boxed import Boxed, BoxRidge
from stage2_temporal.heads.convolution import TCN, ConvLSTM, Delta
from stage2_temporal.heads.fusion import Fusion
from stage2_temporal.heads.kernels import SVR, KernelRidge, Ridge
from stage2_temporal.heads.recurrent import GRU, FlattenLSTM, PooledLSTM
from stage2_temporal.heads.trees import Boosting
from stage2_temporal.inputs import APPEARANCE
from stage2_temporal.model import Scale

HEADS: dict[str, type[Head]] = {
    "flatten_lstm": FlattenLSTM,
    "pooled_lstm": PooledLSTM,
    "gru": GRU,
    "tcn": TCN,
    "attention": Attention,
    "delta": Delta,
    "conv_lstm": ConvLSTM,
    "ridge": Ridge,
    "kernel_ridge": KernelRidge,
    "svr": SVR,
    "boosting": Boosting,
    "box_ridge": BoxRidge,
    "box_mlp": BoxMLP,
    "fusion": Fusion,
}


def find(name: str) -> type[Head]:
    """The head of that name.

    Raises:
        ConfigError: no such head; lists what there is.
    """
    try:
        return HEADS[name]
    except KeyError:
        raise ConfigError(
            "no such head", expected=f"one of {', '.join(HEADS)}", got=name, mend="--head.name NAME"
        ) from None


def sees_boxes(config: Config) -> bool:
    """Whether a run's head sees a vehicle's track and nothing else."""
    head = find(config.head.name)
    return issubclass(head, Boxed) and head.alone


def check_sees_frames(run: Path, config: Config) -> None:
    """Refuse what needs a model from frames to the target, where the head sees other things than the trunk's maps.

    Raises:
        ConfigError: it does.
    """
    if sees_boxes(config):
        raise ConfigError(
            f"{run}: {config.head.name} sees a vehicle's track and no frames: there is no backbone to fuse it with",
            mend="predict, with --boxes for a video; export writes its model as it is; to fine-tune, a run whose head "
            "sees the frames",
        )
    others = [stream for stream in config.head.streams if stream != APPEARANCE]
    if others or issubclass(find(config.head.name), Boxed):
        seen = ", ".join([*config.head.streams, *(["tracks"] if issubclass(find(config.head.name), Boxed) else [])])
        raise ConfigError(
            f"{run}: {config.head.name} sees more than the trunk's maps, and answers from a store alone",
            expected=f"a head on {APPEARANCE} alone",
            got=seen,
            mend="make features of the clips, then evaluate; or train with another --head.name on --head.streams "
            "appearance",
        )


def build(
    shape: tuple[int, ...],
    settings: Settings,
    targets: int,
    *,
    top: TopRecord | None = None,
    target: Scale | None = None,
    vectors: Scale | None = None,
) -> keras.Model:
    """The untrained model of a gradient-trained head from maps `features` (batch, T, h, w, c) to (batch, targets).

    Args:
        shape: T, h, w, c.
        settings: the head.
        targets: how many numbers are predicted.
        top: the store's unfrozen layers, or None.
        target: where given, the head works on targets of mean 0 and deviation 1 and its output is scaled back.
        vectors: where given, what the head's vectors are standardised by.

    Raises:
        ConfigError: an unknown head, or settings that do not fit the map.
        StoreError: a top that cannot be rebuilt.
    """
    head = find(settings.name).of(Config(head=settings))
    head._begin()
    head._plan({"features": shape}, targets, top=top, target=target)
    head._scale = vectors
    return head._finished(head._graph())
