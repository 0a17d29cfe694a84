"""The typed configuration: read from TOML, overridden by flags, written into every run's folder.

Frozen and strict: an unknown key or a wrong value is refused with the key's full name. The command line's flags are
made from these models, so that nothing is declared twice. The section [head] is in `head_config`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, Field, PositiveFloat

from features.backbone_names import stream_of_tap
from features.errors import ConfigError
from features.head_config import AnyHeadConfig, PooledLSTMConfig
from features.limits import FASTEST_RATE, NETWORK_PIXELS, PROCESSES, SLOWEST_RATE, VIDEO_FRAMES, WINDOW_FRAMES
from features.plugins import DATASETS, plugin_names
from features.streams import APPEARANCE, NAMED_TARGETS, PAIR_STREAMS
from features.strict_model import DROP_UNKNOWN_KEYS, StrictModel, did_you_mean, read_toml

UserPath = Annotated[str, AfterValidator(os.path.expanduser)]  # `~` is the home folder, whatever the shell does
Kept = Annotated[str, Field(pattern=r"^(maps|grid [1-9]\d*x[1-9]\d*|pca [1-9]\d*)$")]
LAYOUTS = ("sample", "competition", "tusimple", "video", "manifest")


def _known_layout(name: str) -> str:
    known = [*LAYOUTS, *plugin_names(DATASETS)]
    if name not in known:
        raise ValueError(f"no such layout{did_you_mean(name, known)}, expected one of {', '.join(known)}")
    return name


class DataConfig(StrictModel):
    layout: Annotated[str, AfterValidator(_known_layout)] = "sample"
    """Layout of the data set's files: `sample`, `competition`, `tusimple`, `video`, `manifest`, or a plugin's name."""
    path: UserPath = "data/sample"
    """Path of the data set: a folder, a .zip file (competition) or a .csv file (manifest)."""
    target: str | Annotated[tuple[str, ...], Field(min_length=1)] = "ego_speed"
    """What to predict: `velocity` (vx, vy of the annotated vehicle), `position` (its x, y), `velocity+position`,
    `ego_speed`, or names of label columns."""
    also: tuple[str, ...] = ()
    """More targets: `train` makes a run for each, unless a run's name or a target is given on the command line."""
    fps: float = Field(20.0, ge=SLOWEST_RATE, le=FASTEST_RATE)
    """Frames per second, for data sets whose files do not state it (videos do)."""
    frames: int | None = Field(None, gt=0, le=VIDEO_FRAMES)
    """Number of frames that every clip must have (001.jpg … N.jpg); unset: any number, without gaps."""
    label_frame: int | None = Field(None, gt=0)
    """Number, counted from 1, of the frame that a clip's label describes; unset: the last frame."""
    segment: int | None = Field(None, gt=0)
    """Cut each video into sequences of this many frames, so that it can be divided into splits."""
    allow_truncated: bool = False
    """Whether to use a video that breaks off as far as it goes, instead of refusing it."""
    crops: float | None = Field(None, ge=1)
    """Make each labelled vehicle a sequence of its own, in which the network sees only a region around the vehicle's
    box, cut from the full-size frames and this many times as wide and high as the box. Unset: it sees whole frames."""
    calibration: UserPath | None = None
    """File with the camera's numbers: a .toml file as `framebank camera` writes it, or in the format of the
    competition's calibration.txt. Unset: the one in the data set, if any."""
    seed: int = Field(0, ge=0)
    """Seed of the rendered sample set."""
    sample: Literal["standard", "wide"] = "standard"
    """Which sample set is rendered: `standard`, with one camera, straight roads and 5 to 32 m/s, or `wide`, with
    several cameras, turns, standing cars and up to 40 m/s."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns that `target` names."""
        parts = self.target.split("+") if isinstance(self.target, str) else self.target
        return tuple(dict.fromkeys(c for part in parts for c in NAMED_TARGETS.get(part, (part,))))


class FramesConfig(StrictModel):
    width: int = Field(320, gt=0, le=NETWORK_PIXELS)
    """Width of the network's input in pixels."""
    height: int = Field(180, gt=0, le=NETWORK_PIXELS)
    """Height of the network's input in pixels."""
    interpolation: Literal["cubic", "area"] = "area"
    """OpenCV's interpolation for resizing: `area` avoids aliasing, `cubic` reproduces the published model."""
    colour: Literal["rgb", "bgr"] = "rgb"
    """Channel order of the backbone's input."""
    decode: Literal["full", "fast"] = "full"
    """`fast` lets the JPEG decoder shrink images by 2, 4 or 8 before they are resized: similar pixels for a fifth of
    the time. PNGs and videos are decoded in full; so are frames that box tracks or optical flow need."""

    @property
    def min_size(self) -> tuple[int, int] | None:
        """Width and height that decoding must not go below; None: decode in full."""
        return (self.width, self.height) if self.decode == "fast" else None


class BackboneConfig(StrictModel):
    name: str = "EfficientNetLite0"
    """`EfficientNetLite0` (works offline: its weights are installed), any model of keras.applications, a plugin,
    `onnx:FILE` for a network in an ONNX file, `hub:NAME` for one of KerasHub, `import:NAME` for imported features."""
    weights: UserPath = "imagenet"
    """`imagenet`, the path of a .h5, .weights.h5, .keras or .safetensors file, or `random` (for tests only)."""
    unfreeze: int = Field(4, ge=0)
    """Number of last layers that stay trainable in stage two (the top); the rest is the frozen trunk."""
    cut: str | None = None
    """Name of the trunk's last layer, instead of `unfreeze`; all layers after it are the top. Of an ONNX file: name of
    a tensor; unset, its first output."""
    taps: tuple[str, ...] = ()
    """Names of inner layers whose maps are stored too, from the same pass, as streams of these names; of an ONNX file,
    names of tensors."""
    tap_pooling: int = Field(1, gt=0)
    """Average the maps of taps over squares of this many rows and columns; 1: store them as they are."""
    top: bool = True
    """Whether to keep the layers after the cut; without them, heads read the map at the cut."""
    preprocess: bool = True
    """Whether to apply the backbone's own preprocess_input, inside the graph; if not, it gets raw values 0 to 255."""
    mean: tuple[float, float, float] | None = None
    """For an ONNX file: what to subtract from each channel's pixels of 0 to 255. Unset: as the file's metadata say."""
    deviation: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """For an ONNX file: what to divide each channel by after that. Unset: as the file's metadata say."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """For an ONNX file: order of its input's axes, channels before or after rows and columns. Unset: as its shape
    says."""
    arguments: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """Additional keyword arguments for the backbone, such as alpha = 0.25 for MobileNet."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of maps that the backbone fills: at the cut and at each tap."""
        return (APPEARANCE, *map(stream_of_tap, self.taps))


class ExtractConfig(StrictModel):
    engine: Literal["auto", "tensorflow", "openvino", "onnxruntime"] = "auto"
    """What runs the trunk; `auto` is OpenVINO if it is installed and there is no GPU, else TensorFlow, or ONNX Runtime
    for ONNX files, which only it and OpenVINO run."""
    precision: Literal["float32", "bfloat16", "int8", "tf32", "float16", "fastest"] = "float32"
    """Precision of the trunk's arithmetic: bfloat16 is faster on some CPUs and GPUs with errors of 1e-2, int8 is faster
    still on most CPUs with errors of several hundredths, tf32 and float16 are for GPUs, and `fastest` is whichever of
    float32, bfloat16 and int8 computes ten frames fastest on this machine."""
    batch: int = Field(0, ge=0)
    """Frames per call of the engine; 0: chosen by the engine, on a GPU by its memory."""
    threads: int = Field(0, ge=0, le=PROCESSES)
    """Number of threads that decode frames; 0: one per core."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which maps are stored; float16 halves the file and rounds by 5e-4."""
    shard: int = Field(0, ge=0)
    """Frames per shard; at most this much work is lost if extraction is killed. 0: 512, on a cluster as many as take
    half a minute."""
    packed_gb: float = Field(2.0, ge=0)
    """Make a store that needs at most this many gigabytes a single file. A larger one is a small file, the index, and a
    folder of shards beside it, to which frames are added without copying the others."""
    keep: Kept | dict[str, Kept] = "maps"
    """What to store of every stream of maps, or by stream: `maps`; `grid RxC`, each map averaged over R rows and C
    columns of cells; or `pca K`, each map projected on K principal components of the training split. The last two take
    a fraction of the space. Heads then see these cells or numbers, without a top."""
    motion: bool = False
    """Whether to store optical flow too, as the stream `motion`, which predicts ego speed well; takes 5 ms per
    frame."""
    ground_flow: bool = False
    """Whether to store how well the road of two frames matches at each speed, as the stream `ground_flow`, from which
    heads learn ego speed that holds for other cameras. Takes 10 ms per frame, 50 if the horizon is not known."""
    tracks: bool = True
    """Whether to track every vehicle whose box is labelled; takes 2 ms per frame."""
    skip_damaged: bool = False
    """Whether to skip damaged sequences and count the store as complete without them."""

    def grid(self, stream: str) -> tuple[int, int] | None:
        """Rows and columns of the grid that a stream's maps are averaged over; None: they are stored as they are."""
        kind, _, size = self._kept(stream).partition(" ")
        if kind != "grid":
            return None
        rows, columns = map(int, size.split("x"))
        return rows, columns

    def components(self, stream: str) -> int:
        """Number of principal components that a stream's maps are projected on; 0: they are not."""
        kind, _, size = self._kept(stream).partition(" ")
        return int(size) if kind == "pca" else 0

    def _kept(self, stream: str) -> str:
        return self.keep if isinstance(self.keep, str) else self.keep.get(stream, "maps")

    @property
    def pair_streams(self) -> tuple[str, ...]:
        """The streams to store that are computed from frames without the network."""
        return tuple(name for name in PAIR_STREAMS if getattr(self, name))


class ComputeConfig(StrictModel):
    backend: Literal["local", "dask"] = "local"
    """Where extraction and sweeps run: on this machine, or on the workers of a Dask cluster, which may be on others."""
    scheduler: UserPath | None = None
    """Address of the Dask scheduler, such as tcp://HOST:8786 or tls://HOST:8786, or the path of its scheduler file."""
    workers: int = Field(0, ge=0, le=PROCESSES)
    """Number of workers to wait for before the work begins; 0: one. Others may join later."""


class WindowConfig(StrictModel):
    length: int = Field(8, gt=0, le=WINDOW_FRAMES)
    """Frames per window."""
    stride: int = Field(1, gt=0)
    """Step between a window's frames; 2 takes every second frame."""
    interval: float | None = Field(None, gt=0)
    """Seconds between a window's frames, whatever the frame rate: the frames nearest to these times are taken, instead
    of every `stride`-th. For sequences of different frame rates."""
    end: int = 0
    """Last frame of a window relative to the label's frame: 0 is that frame, −32 is 32 frames earlier."""


class TrainConfig(StrictModel):
    epochs: int = Field(10, gt=0)
    """Passes over the training examples."""
    batch: int = Field(38, gt=0)
    """Examples per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate: `cosine` lowers it to 0 by the last epoch."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW); 0: plain Adam."""
    validation_split: float = Field(0.0, ge=0, lt=1)
    """Share of the training split, at its end and unshuffled, to validate on; 0: the store's validation split."""
    folds: int = Field(0, ge=0)
    """Number of folds, by sequence, for cross-validation over the training and validation examples; 0: none."""
    fold: int = Field(0, ge=0)
    """Index, from 0, of the fold that this run validates on."""
    standardise: bool = True
    """Train on targets scaled to mean 0 and standard deviation 1; predictions stay in the target's unit."""
    restore_best: bool = True
    """Whether to keep the epoch with the lowest validation loss, rather than the last one."""
    patience: int = Field(0, ge=0)
    """Stop after this many epochs without a lower validation loss; 0: never."""
    reverse: bool = False
    """Also train on reversed windows, with the signs of vx and vy flipped; other targets are refused."""
    shift: int = Field(0, ge=0)
    """Also train on windows that end up to this many frames earlier; assumes constant speed within a clip."""
    strides: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Also train on windows with these strides; speeds are scaled in proportion."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of initial weights, order of examples, and dropout."""
    interval_level: float = Field(0.9, gt=0, lt=1)
    """Probability with which a prediction's interval is to contain the true value."""
    interval_folds: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Folds of training and validation sequences that are left out in turn, to learn intervals from their errors; 0:
    from those of validation sequences alone; `auto`: 5 for heads that take seconds to fit, else 0."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of large matrix products; bfloat16 is for processors with avx512_bf16 or amx."""
    memory_gb: float = Field(4.0, gt=0)
    """Gigabytes for features in memory; if they need more, they are read part by part, with the same results."""


class TrackConfig(StrictModel):
    tensorboard: bool = False
    """Whether to write TensorBoard's logs into the run's folder: settings, epochs, and the final table."""
    mlflow: bool = False
    """Whether to record each finished run in MLflow: settings, epochs, final scores, report and model."""
    address: str | None = None
    """Address of an MLflow tracking server, such as http://HOST:5000. Unset: the folder `mlruns` in the current
    one, and nothing is sent anywhere."""
    experiment: str = "framebank"
    """Name of the MLflow experiment."""


class FinetuneConfig(StrictModel):
    unfreeze: Annotated[int, Field(ge=0)] | str = 9
    """What trains besides the head: the backbone's last N layers, a layer's name (it and all layers after it), or
    `all`."""
    epochs: int = Field(2, gt=0)
    """Passes over the training examples."""
    views: int = Field(0, ge=0)
    """Number of views of each window, the first as it is and the others augmented, all of which an epoch takes. What
    the frozen layers compute from them is kept on disk, so that epochs are faster. 0: each epoch has a new view."""
    batch: int = Field(4, gt=0)
    """Windows per step, over all devices."""
    learning_rate: float = Field(1e-5, gt=0)
    """Highest learning rate of Adam; it rises over the first tenth of the steps, then falls to 0 along a cosine."""
    backbone_rate: float = Field(1.0, gt=0)
    """Learning rate of the backbone's layers, relative to that of the head."""
    batch_norm: bool = False
    """Whether unfrozen batch normalisation uses each batch's statistics and updates its own."""
    flip: bool = True
    """Whether to mirror half of the windows; vy and y change their sign. If the frozen layers compute the vectors of a
    head that knows their mirror images, every stored view is also trained on mirrored."""
    brightness: float = Field(0.1, ge=0, le=1)
    """Largest random change of brightness, as a share of the full range."""
    contrast: float = Field(0.1, ge=0, lt=1)
    """Largest random change of contrast, as a share of the contrast."""
    zoom: float = Field(1.0, ge=1, lt=2)
    """Largest random factor by which windows are enlarged or shrunk; speeds and distances ahead are divided by it."""
    shift: float = Field(0.0, ge=0, lt=0.5)
    """Largest random shift of windows, as a share of their width and height, for cameras that look elsewhere. Only for
    the target ego_speed, which it leaves as it is."""


class Config(StrictModel):
    """A whole task: the data, the features to store, the head to train on them."""

    data: DataConfig = DataConfig()
    frames: FramesConfig = FramesConfig()
    backbone: BackboneConfig = BackboneConfig()
    extract: ExtractConfig = ExtractConfig()
    compute: ComputeConfig = ComputeConfig()
    window: WindowConfig = WindowConfig()
    head: AnyHeadConfig = PooledLSTMConfig()
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    # runs that `train` makes and compares: a `label`, and settings by their full names that differ from this config's
    compare: tuple[dict[str, Any], ...] = Field((), exclude=True)

    @property
    def map_streams(self) -> tuple[str, ...]:
        """The streams of the backbone's maps that the head reads."""
        return tuple(stream for stream in self.head.input_streams if stream in self.backbone.streams)

    @property
    def components(self) -> dict[str, int]:
        """The streams of which principal components are stored in place of maps, and how many."""
        counts = {stream: self.extract.components(stream) for stream in self.backbone.streams}
        return {stream: count for stream, count in counts.items() if count}

    @property
    def any_frame_rate(self) -> bool:
        """Whether the head takes frames at any rate: it sees only flow, road and tracks, which are divided by time."""
        return all(stream in PAIR_STREAMS for stream in self.head.input_streams)

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """Change settings, given by their full names; a new head keeps the old one's that it has too.

        Raises:
            ConfigError: no such head.
            ValidationError: an unknown setting or a wrong value.
        """
        name = settings.get("head.name", self.head.name)
        if not isinstance(name, str):
            raise ConfigError("head.name: wrong value", expected="a head's name", got=repr(name)[:80])
        head = self.head if name == self.head.name else self.head.renamed(name)
        sections = self.model_dump(exclude_unset=True) | {"head": head.model_dump(exclude_unset=True) | {"name": name}}
        for key, value in settings.items():
            section, _, field = key.partition(".")
            sections.setdefault(section, {})[field] = value
        return Config.model_validate(sections)

    def with_target(self, target: str | tuple[str, ...]) -> Config:
        """The same config for a single target."""
        return self.with_settings({"data.target": target, "data.also": ()})

    def to_toml(self) -> str:
        """TOML that `read_config` reads back to an equal Config; settings that are None are left out."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))


CONFIG_SECTIONS = tuple(name for name, field in Config.model_fields.items() if not field.exclude)


def read_config(path: Path | str) -> Config:
    """Read a config from a TOML file.

    Raises:
        ConfigError: there is no such file, it is not TOML, or it has an unknown key or a wrong value.
    """
    return read_toml(Config, Path(path))


def read_run_config(run: Path) -> Config:
    """Read the config in a run's folder like `read_config`, but drop settings that its head no longer has."""
    return read_toml(Config, run / "config.toml", DROP_UNKNOWN_KEYS)
