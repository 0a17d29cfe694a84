"""The heads, which predict the target from windows of a store's streams. `base` explains how they are built."""

from __future__ import annotations

from pathlib import Path

from features import plugins
from features.backbone_names import is_imported, is_onnx
from features.config import Config
from features.errors import ConfigError
from features.head_config import unknown_head
from features.streams import APPEARANCE, GROUND_FLOW, MOTION, PAIR_STREAMS
from stage2_temporal.heads.attention import Attention
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.boosting import Boosting
from stage2_temporal.heads.convolutional import TCN, ConvLSTM, Delta
from stage2_temporal.heads.correlation import CorrelationLSTM
from stage2_temporal.heads.crops import CropLSTM
from stage2_temporal.heads.fusion import Fusion
from stage2_temporal.heads.linear_models import SVR, KernelRidge, Ridge
from stage2_temporal.heads.recurrent import GRU, FlattenLSTM, PooledLSTM
from stage2_temporal.heads.vehicle import BoxMLP, BoxRidge, VehicleHead
from stage2_temporal.vehicle.camera_geometry import CAMERA_GEOMETRY_FILE

HEADS: dict[str, type[Head]] = {
    "flatten_lstm": FlattenLSTM,
    "pooled_lstm": PooledLSTM,
    "correlation_lstm": CorrelationLSTM,
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
    "crop_lstm": CropLSTM,
}


def find_head(name: str) -> type[Head]:
    """Find a head by its name, built in or a plugin's; a ConfigError lists all heads if it is unknown."""
    if name in HEADS:
        return HEADS[name]
    head = plugins.load_plugin(plugins.HEADS, name)
    if head is None:
        raise unknown_head(name)
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise plugins.plugin_error(plugins.HEADS, name, "it is not a subclass of stage2_temporal.heads.Head")
    return head


def uses_track(run: Path, config: Config) -> bool:
    """Whether a run's head reads a vehicle's track, alone or together with streams."""
    head = find_head(config.head.name)
    return issubclass(head, VehicleHead) and (not config.head.input_streams or (run / CAMERA_GEOMETRY_FILE).is_file())


def check_streams(run: Path, config: Config) -> None:
    """Raise a ConfigError if a head reads a derived stream: only a store has it, so images are not enough."""
    from_images = (*config.backbone.streams, *PAIR_STREAMS)
    derived = [stream for stream in config.head.input_streams if stream not in from_images]
    if derived:
        raise ConfigError(
            f"{run}: {config.head.name} reads a stream that is derived in a store, so it cannot predict from images",
            expected=f"some of {', '.join(from_images)}",
            got=", ".join(derived),
            hint=f"extract the clips to a store, then evaluate; or train again with --head.streams {APPEARANCE}",
        )


def check_uses_maps(run: Path, config: Config, *, alone: bool = False) -> None:
    """Raise a ConfigError if a head does not read the trunk's maps or, with `alone`, also reads something else."""
    check_streams(run, config)
    name, backbone = config.head.name, config.backbone.name
    if config.map_streams and (is_onnx(backbone) or is_imported(backbone)):
        kind = "is an ONNX file, which is run but has no layers of Keras" if is_onnx(backbone) else "was run elsewhere"
        doing = "fine-tune" if alone else "fuse the head with"
        hint = "use evaluate" if is_imported(backbone) else "use predict, which runs the file"
        raise ConfigError(f"{run}: its backbone {backbone} {kind}: there is nothing to {doing}", hint=hint)
    names = {MOTION: "optical flow", GROUND_FLOW: "the road's speed curve"}
    others = [names[stream] for stream in config.head.input_streams if stream not in config.map_streams]
    others += ["a vehicle's track"] if uses_track(run, config) else []
    if not config.map_streams:
        problem = f"{name} reads {' and '.join(others)} and no frames: there is no backbone to fuse it with"
        hint = "use predict or export, which work without fusing"
    elif alone and others:
        problem = f"fine-tuning trains on frames only, and {name} also reads {' and '.join(others)}"
        hint = "use fuse, predict or export, which work with this head"
    else:
        return
    hint += f"; to fine-tune, train again with --head.name pooled_lstm --head.streams {APPEARANCE}"
    raise ConfigError(f"{run}: {problem}", hint=hint)
