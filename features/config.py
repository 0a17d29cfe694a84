"""The typed configuration: read from TOML, overridden by flags, written into every run's folder.

Frozen and strict: an unknown key or a wrong value is refused with the key's full name. The command line's flags are
made from these models, so that nothing is declared twice. The section [head] is in `head_config`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import Field, ValidationError

from features.errors import ConfigError
from features.head_config import DEFAULT_HEAD, AnyHeadConfig, PooledLSTMConfig, head_settings_class
from features.strict_model import StrictModel, describe_validation_error


class DataConfig(StrictModel):
    layout: Literal["sample", "competition", "tusimple", "video", "manifest"] = "sample"
    """How the files are laid out."""
    path: str = "data/sample"
    """Folder, .zip (competition) or .csv (manifest) of the data set."""
    target: str | Annotated[tuple[str, ...], Field(min_length=1)] = "ego_speed"
    """`velocity` (vx, vy of the annotated vehicle), `position` (its x, y), `velocity+position`, `ego_speed`, or the
    names of label columns."""
    also: tuple[str, ...] = ()
    """More targets: `train` makes a run for each, unless it is given a run's name or a target of its own."""
    fps: float = Field(20.0, gt=0)
    """Frames a second, where the files don't say (a video's own rate is read from it)."""
    frames: int | None = Field(None, gt=0)
    """Frames every clip must have (001.jpg … N); unset: as many as there are, without gaps."""
    label_frame: int | None = Field(None, gt=0)
    """Number (from 1) of the frame a clip's label holds for; unset: the clip's last."""
    segment: int | None = Field(None, gt=0)
    """Cut a video into sequences of this many frames, so that splits have something to split."""
    calibration: str | None = None
    """File with the camera's matrix, as the competition's calibration.txt; unset: the one beside the clips, if any."""
    seed: int = Field(0, ge=0)
    """Seed of the rendered sample set."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns that `target` names."""
        named = {"velocity": ("vx", "vy"), "position": ("x", "y")}
        parts = self.target.split("+") if isinstance(self.target, str) else self.target
        return tuple(dict.fromkeys(c for part in parts for c in named.get(part, (part,))))


class FramesConfig(StrictModel):
    width: int = Field(320, gt=0)
    """Width the network sees, in pixels."""
    height: int = Field(180, gt=0)
    """Height the network sees, in pixels."""
    interpolation: Literal["cubic", "area"] = "area"
    """cv2's INTER_CUBIC (the published one) or INTER_AREA (no aliasing when shrinking)."""
    colour: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels that enter the backbone."""
    decode: Literal["full", "fast"] = "full"
    """`fast` lets JPEG's own decoder shrink by 2, 4 or 8 where that suffices: close pixels at a fifth of the cost. PNGs
    and videos are decoded in full; where box tracks or flow are made, full frames are decoded besides (no gain)."""

    @property
    def min_size(self) -> tuple[int, int] | None:
        """Width and height that decoding may shrink a frame to; None: decode in full."""
        return (self.width, self.height) if self.decode == "fast" else None


class BackboneConfig(StrictModel):
    name: str = "EfficientNetLite0"
    """`EfficientNetLite0` (weights from its package, works offline) or any model of keras.applications."""
    weights: str = "imagenet"
    """`imagenet`, the path of a .h5, .weights.h5 or .keras file, or `random` (for tests only)."""
    unfreeze: int = Field(4, ge=0)
    """The last N layers stay trainable in stage two; the rest is the frozen trunk."""
    cut: str | None = None
    """Cut after this layer instead; everything above it is the top."""
    top: bool = True
    """False leaves the layers above the cut away altogether: the map at the cut is the feature."""
    preprocess: bool = True
    """The backbone's own preprocess_input, inside the graph; false feeds raw 0–255."""
    arguments: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """More keyword arguments for the backbone, e.g. alpha = 0.25 for MobileNet."""


class ExtractConfig(StrictModel):
    engine: Literal["auto", "tensorflow", "openvino"] = "auto"
    """What runs the trunk; auto: OpenVINO where it is installed and there is no GPU, else TensorFlow."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the trunk computes in: bfloat16 (1e-2 off) for CPUs and GPUs that are fast at it, float16 for older GPUs."""
    batch: int = Field(0, ge=0)
    """Frames a pass of the trunk; 0: what suits the engine, on a GPU as many as its memory holds."""
    threads: int = Field(0, ge=0)
    """Decoding threads; 0: one a core."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type the maps are stored in; half precision halves the file and rounds at 5e-4."""
    shard: int = Field(512, gt=0)
    """Frames a shard: what a kill can cost at most."""
    motion: bool = False
    """Store optical flow from frame to frame as well (stream `motion`): the car's own speed, at 5 ms a frame."""
    tracks: bool = True
    """Follow every vehicle that a label has a box for through its sequence, at 2 ms a frame."""
    skip_damaged: bool = False
    """Leave damaged sequences out and call the store complete without them."""


class WindowConfig(StrictModel):
    length: int = Field(8, gt=0)
    """Frames a window."""
    stride: int = Field(1, gt=0)
    """Take every stride-th frame."""
    end: int = 0
    """Where the window ends, in frames from the label's frame: 0 is that frame, −32 is 32 frames earlier."""


class TrainConfig(StrictModel):
    epochs: int = Field(10, gt=0)
    """Passes over the training examples."""
    batch: int = Field(38, gt=0)
    """Examples a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; 0: plain Adam."""
    validation_split: float = Field(0.0, ge=0, lt=1)
    """The last part of the training split, unshuffled, as Keras has it; 0: the store's validation split."""
    folds: int = Field(0, ge=0)
    """Cross-validate: training and validation examples in this many parts by sequence; 0: no."""
    fold: int = Field(0, ge=0)
    """Which of these parts, from 0, is this run's validation split."""
    standardise: bool = True
    """Train on targets of mean 0 and deviation 1; the saved model still answers in the target's unit."""
    restore_best: bool = True
    """Keep the weights of the epoch with the lowest validation loss; false keeps the last epoch's."""
    patience: int = Field(0, ge=0)
    """Stop after this many epochs without a better validation loss; 0: never."""
    reverse: bool = False
    """Train on every window backwards too, with vx and vy of the other sign (no other target allows it)."""
    shift: int = Field(0, ge=0)
    """Train on windows that end up to this many frames earlier too; speeds are taken as constant over a clip."""
    strides: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Train on windows of these strides too: the same scene, speeds larger in proportion."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of weights, order and dropout."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 rounds large products to 8 bits: for processors that multiply it (avx512_bf16, amx)."""
    memory_gb: float = Field(4.0, gt=0)
    """Hold the features in memory where they take no more than this."""
    tensorboard: bool = False
    """Write TensorBoard logs into the run."""


class FinetuneConfig(StrictModel):
    unfreeze: Annotated[int, Field(ge=0)] | str = 9
    """How much of the backbone trains: its last N layers, a layer's name (it and all after it), or `all`."""
    epochs: int = Field(2, gt=0)
    """Passes over the training examples."""
    batch: int = Field(4, gt=0)
    """Windows a step, on all devices together."""
    learning_rate: float = Field(1e-5, gt=0)
    """Adam's highest step size; it falls to 0 along a cosine."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the step size rises to it."""
    batch_norm: bool = False
    """Let unfrozen batch norm use each batch's statistics and update its own; false keeps them."""
    flip: bool = True
    """Mirror half of the windows, left for right; vy and y change their sign."""
    brightness: float = Field(0.1, ge=0, le=1)
    """Largest change of brightness, as a share of the full range."""
    contrast: float = Field(0.1, ge=0, lt=1)
    """Largest change of contrast, as a share of it."""
    threads: int = Field(0, ge=0)
    """Decoding threads; 0: one a core."""


class Config(StrictModel):
    """One task: what to read, what to store, what to train."""

    data: DataConfig = DataConfig()
    frames: FramesConfig = FramesConfig()
    backbone: BackboneConfig = BackboneConfig()
    extract: ExtractConfig = ExtractConfig()
    window: WindowConfig = WindowConfig()
    head: AnyHeadConfig = PooledLSTMConfig()
    train: TrainConfig = TrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    def with_target(self, target: str | tuple[str, ...]) -> Config:
        """The same task for one target."""
        return self.model_copy(update={"data": self.data.model_copy(update={"target": target, "also": ()})})

    def to_toml(self) -> str:
        """TOML that `read_config` reads back to an equal Config; settings that are None are left out."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))


def read_config(path: Path | str) -> Config:
    """Read a config from a TOML file.

    Raises:
        ConfigError: there is no such file, it is not TOML, or it has an unknown key or a wrong value.
    """
    return _validated(_read_toml(Path(path)), Path(path))


def read_run_config(run: Path) -> Config:
    """Read the config in a run's folder.

    Older versions wrote settings into it that are gone today, or that the run's head does not read: these are dropped.

    Raises:
        ConfigError: see `read_config`.
    """
    path = run / "config.toml"
    sections = _read_toml(path)
    for name, values in sections.items():
        field = Config.model_fields.get(name)
        if field is None or not isinstance(values, dict):
            continue
        model = head_settings_class(values.get("name", DEFAULT_HEAD)) if name == "head" else field.annotation
        assert isinstance(model, type) and issubclass(model, StrictModel)
        sections[name] = {key: value for key, value in values.items() if key in model.model_fields}
    return _validated(sections, path)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config", hint=f"ls {path.parent or '.'}/*.toml") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a config", hint=f"ls {path}/*.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}", hint=f"edit {path}") from None


def _validated(sections: dict[str, Any], path: Path) -> Config:
    try:
        return Config.model_validate(sections)
    except ValidationError as e:
        raise ConfigError(f"{path}: {describe_validation_error(e, Config)}", hint=f"edit {path}") from None
