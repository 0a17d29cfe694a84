"""Heads: what maps windows of a store's streams to the target. Each is a scikit-learn estimator, see `base`.

Only Keras' own layers and operations occur in their models, so that a saved one loads anywhere.
"""

from __future__ import annotations

from pathlib import Path

import keras

from features.config import Config
from features.errors import ConfigError
from features.head_config import HeadConfig
from features.store import TopRecord
from features.streams import APPEARANCE, MOTION
from stage2_temporal.heads.attention import Attention
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.boosting import Boosting
from stage2_temporal.heads.convolutional import TCN, ConvLSTM, Delta
from stage2_temporal.heads.fusion import Fusion
from stage2_temporal.heads.linear_models import SVR, KernelRidge, Ridge
from stage2_temporal.heads.recurrent import GRU, FlattenLSTM, PooledLSTM
from stage2_temporal.heads.vehicle import BoxRidge, VehicleHead
from stage2_temporal.heads.vehicle_mlp import BoxMLP
from stage2_temporal.training.scaling import Scale
from stage2_temporal.vehicle.camera_geometry import CAMERA_GEOMETRY_FILE

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


def find_head(name: str) -> type[Head]:
    """The head of that name.

    Raises:
        ConfigError: no such head; lists what there is.
    """
    try:
        return HEADS[name]
    except KeyError:
        raise ConfigError(
            "no such head", expected=f"one of {', '.join(HEADS)}", got=name, hint="--head.name NAME"
        ) from None


def uses_track_alone(config: Config) -> bool:
    """Whether a run's head sees a vehicle's track and nothing else."""
    head = find_head(config.head.name)
    return issubclass(head, VehicleHead) and head.alone


def uses_track(run: Path, config: Config) -> bool:
    """Whether a run's head is told of a vehicle by its box, be it alone or beside frames."""
    return uses_track_alone(config) or (
        issubclass(find_head(config.head.name), VehicleHead) and (run / CAMERA_GEOMETRY_FILE).is_file()
    )


def check_streams(run: Path, config: Config) -> None:
    """Refuse to predict from images where the head looks at a stream that is made from a store alone.

    Raises:
        ConfigError: it does.
    """
    others = [stream for stream in config.head.input_streams if stream not in (APPEARANCE, MOTION)]
    if others:
        raise ConfigError(
            f"{run}: {config.head.name} looks at a stream that is derived in a store, and answers from a store alone",
            expected=f"{APPEARANCE}, {MOTION} or both",
            got=", ".join(others),
            hint=f"make features of the clips, then evaluate; or train anew with --head.streams {APPEARANCE}",
        )


def check_uses_maps(run: Path, config: Config) -> None:
    """Refuse what needs a backbone in the model, where the head doesn't look at the trunk's maps.

    Raises:
        ConfigError: it doesn't.
    """
    check_streams(run, config)
    if uses_track_alone(config) or APPEARANCE not in config.head.input_streams:
        seen = "a vehicle's track" if uses_track_alone(config) else "optical flow"
        raise ConfigError(
            f"{run}: {config.head.name} sees {seen} and no frames: there is no backbone to fuse it with",
            hint="nothing: predict works as it is, and export writes the model with its named inputs; to fine-tune, "
            f"train anew with --head.streams {APPEARANCE}",
        )


def check_uses_maps_alone(run: Path, config: Config) -> None:
    """Refuse what trains on frames, where the head looks at other things or at other things besides.

    Raises:
        ConfigError: it does.
    """
    check_uses_maps(run, config)
    if len(config.head.input_streams) > 1 or uses_track(run, config):
        seen = [*config.head.input_streams, *(["a vehicle's track"] if uses_track(run, config) else [])]
        raise ConfigError(
            f"{run}: fine-tuning trains on frames, and {config.head.name} sees more than these",
            expected=f"a head on {APPEARANCE} alone",
            got=", ".join(seen),
            hint="fuse, predict and export take it as it is; to fine-tune, train anew with --head.name pooled_lstm "
            f"--head.streams {APPEARANCE}",
        )


def build_model(
    shape: tuple[int, ...],
    settings: HeadConfig,
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
    head = find_head(settings.name).of(Config(head=settings))
    head._begin()
    head._plan({"features": shape}, targets, top=top, target=target)
    head._scale = vectors
    return head._finished(head._graph())
