"""The typed configuration: read from TOML, overridden by flags, written into every run's folder.

Frozen and strict: an unknown key or a value of the wrong kind is refused with the key's full name.
Flags are derived from these models by tyro, so nothing is declared twice.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.errors import ConfigError


class StrictModel(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


class HeadConfig(StrictModel):
    name: str = "pooled_lstm"
    """Which head; `python -m stage2_temporal train --help` lists them. `auto`: box_ridge for a vehicle's velocity or
    position where vehicles are tracked; for other targets fusion of the flow, or ridge where the store holds none."""
    streams: Annotated[tuple[str, ...], Field(min_length=1)] = ("appearance",)
    """The store's streams it looks at; several are laid side by side."""
    units: int = Field(256, gt=0)
    """How wide it is: units of the recurrent layer, filters of tcn, trees of boosting."""
    layers: int = Field(2, gt=0)
    """How deep it is: blocks of tcn and attention, depth of a tree of boosting."""
    dense: int = Field(64, ge=0)
    """Units of the dense layer behind it; 0: none."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of activations dropped before the output."""
    activation: Literal["relu", "tanh"] = "tanh"
    """The LSTM's activation; the published head has relu."""
    alpha: float = Field(1.0, gt=0)
    """Penalty on large weights: ridge and kernel_ridge; 1 / C of svr."""
    kernel: Literal["rbf", "linear"] = "rbf"
    """How alike two examples are: kernel_ridge and svr."""
    grid: tuple[int, int] = (1, 1)
    """Rows and columns the map is averaged to (pooled heads)."""
    components: int = Field(0, ge=0)
    """Principal components a frame's map is reduced to in place of its cells' means; 0: cells (pooled heads)."""
    members: int = Field(5, gt=0)
    """Networks whose answers are averaged (box_mlp)."""
    ranges: int = Field(3, gt=0)
    """Ranges of distance, each with networks of its own (box_mlp)."""
    difference: bool = False
    """Give the head how much each cell changed since the frame before as well: own motion (pooled heads)."""
    lags: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4)
    """Over how many frames heads that are solved look for change; of two and more the ratios count, in which texture
    cancels (with difference)."""


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
    standardise_inputs: bool = True
    """Give pooled features mean 0 and deviation 1 over the training examples (pooled heads)."""
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
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    def with_target(self, target: str | tuple[str, ...]) -> Config:
        """The same task for one target."""
        return self.model_copy(update={"data": self.data.model_copy(update={"target": target, "also": ()})})

    def to_toml(self) -> str:
        """TOML that `read_config` reads back to an equal Config; unset keys are left out."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))


def read_config(path: Path | str) -> Config:
    """The config in a TOML file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config", hint=f"ls {path.parent or '.'}/*.toml") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a config", hint=f"ls {path}/*.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}", hint=f"edit {path}") from None
    try:
        return Config.model_validate(value)
    except ValidationError as e:
        raise ConfigError(f"{path}: {describe_validation_error(e)}", hint=f"edit {path}") from None


def describe_validation_error(error: ValidationError, model: type[StrictModel] = Config) -> str:
    """One clause a fault: the key's full name, what is wrong, and what was given.

    Args:
        error: what was wrong with a `model`.
    """
    clauses = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            section = model.model_fields.get(str(fault["loc"][0]))
            known = section.annotation.model_fields if section and len(fault["loc"]) > 1 else model.model_fields  # type: ignore[union-attr]
            clauses.append(f"unknown key {key}, known are {', '.join(known)}")
        else:
            clauses.append(f"{key}: {fault['msg'].lower()}, got {fault['input']!r}")
    return "; ".join(clauses)
