"""The settings of each head: what the config's section [head] may hold, and what `--help` says about it.

Each head has its own class, whose fields are the settings that the head reads. Settings that several heads read are in
shared bases. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo

from features._common.plain_text import one_line
from features.errors import ConfigError
from features.limits import LARGEST_LAYER
from features.plugins import HEADS, load_plugin, plugin_error, plugin_names
from features.streams import APPEARANCE
from features.strict_model import StrictModel, did_you_mean

DEFAULT_HEAD = "pooled_lstm"
SETTINGS: dict[str, type[HeadConfig]] = {}  # name of each built-in head → its settings


class HeadConfig(StrictModel):
    """The base of every head's settings.

    Attributes:
        when: one sentence on when to use the head.
    """

    when: ClassVar[str] = ""
    name: str = ""
    """Which head to train; `auto` picks one by the target and by what the store holds."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Add the class of a built-in head to `SETTINGS`."""
        if cls.__module__ == __name__ and (name := cls.model_fields["name"].default):
            SETTINGS[name] = cls

    @property
    def input_streams(self) -> tuple[str, ...]:
        """The streams of the store that the head reads; none for a head that sees only a vehicle's track."""
        return tuple(getattr(self, "streams", ()))

    @property
    def normalises_flow(self) -> bool:
        """Whether the stream `motion` is read as `normalised_flow` makes it."""
        return getattr(self, "motion", "raw") == "normalised"

    def renamed(self, name: str) -> HeadConfig:
        """The settings of another head: the values set here that it reads too, and defaults for the rest.

        Raises:
            ConfigError: there is no head of that name.
        """
        model = head_settings_class(name)
        shared = self.model_fields_set & set(model.model_fields) - {"name"}
        return model.model_validate({"name": name} | {field: getattr(self, field) for field in shared})


# settings that several heads read


class StreamsConfig(HeadConfig):
    """A head that reads streams of the store."""

    streams: Annotated[tuple[str, ...], Field(min_length=1)] = (APPEARANCE,)
    """Streams of the store that the head reads; several are concatenated."""
    motion: Literal["raw", "normalised"] = "raw"
    """How the stream `motion` is read: in px, or normalised by each sequence's camera to metres driven, without turns,
    so that a head holds for other cameras."""


class PooledConfig(StreamsConfig):
    """A head that reads maps averaged over a grid, or projected on principal components."""

    grid: tuple[int, int] = (1, 1)
    """Rows and columns of the grid that each map is averaged over."""
    components: int = Field(0, ge=0, le=LARGEST_LAYER)
    """Number of principal components to project each map on, instead of averaging it over the grid; 0: average."""
    difference: bool = False
    """Also use how much each cell or component changes from frame to frame. Helps with ego speed."""


class StatisticsConfig(PooledConfig):
    """A pooled head that summarises the whole window before its regression."""

    lags: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4)
    """Frame lags for difference features. With several lags, log-ratios between them are used, which cancels
    texture."""


class DenseConfig(HeadConfig):
    """A head that ends in a dense layer, dropout and a linear output."""

    dense: int = Field(64, ge=0, le=LARGEST_LAYER)
    """Units of the dense layer before the output; 0: no such layer."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of activations dropped in training."""


class UnitsConfig(HeadConfig):
    """A head whose layers have a width."""

    units: int = Field(64, gt=0, le=LARGEST_LAYER)
    """Width of the head's layers: units of recurrent and hidden layers, filters of convolutions, size of embeddings."""


class LayersConfig(UnitsConfig):
    """A head with several layers of one width."""

    layers: int = Field(2, gt=0, le=100)
    """Number of blocks of `tcn` and `attention`, of convolutions of `delta`, or of hidden layers of `box_mlp`."""


class RecurrentConfig(StreamsConfig, UnitsConfig, DenseConfig):
    """A head with a recurrent layer over the frames."""

    activation: Literal["relu", "tanh"] = "tanh"
    """Activation of the recurrent layer; the published model uses relu, which cuDNN does not accelerate."""


class KernelConfig(StatisticsConfig):
    """A head that compares a window with training windows."""

    alpha: float = Field(1.0, gt=0)
    """Regularisation strength; `svr` uses 1 / alpha as its C."""
    kernel: Literal["rbf", "linear"] = "rbf"
    """Kernel that measures how similar two windows are."""


class VehicleConfig(HeadConfig):
    """A head that reads the track of the vehicle that a label is about."""

    alpha: float = Field(1.0, gt=0)
    """Regularisation strength of the robust linear model on the track, relative to its usual value."""
    box_noise: float | None = Field(None, gt=0)
    """Standard deviation in px of the width and height of boxes, in training and in all footage that the run predicts.
    Unset: estimated from the tracks."""


# one class per head


class AutoConfig(HeadConfig):
    # auto has no settings: training replaces it with another head and that head's defaults
    when = (
        "A good default: box_ridge for a vehicle's velocity or position if vehicles are tracked; otherwise "
        "fusion on the optical flow, or ridge if the store holds no flow."
    )
    name: Literal["auto"] = "auto"


class FlattenLSTMConfig(RecurrentConfig):
    when = "To reproduce the published model; needs thousands of clips, since its LSTM has h·w·c inputs per frame."
    name: Literal["flatten_lstm"] = "flatten_lstm"
    units: int = Field(256, gt=0, le=LARGEST_LAYER)
    """Units of the LSTM."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of activations dropped in training."""


class PooledLSTMConfig(PooledConfig, RecurrentConfig):
    when = "The first neural head to try; trains in seconds. Set difference = true for ego speed."
    name: Literal["pooled_lstm"] = "pooled_lstm"


class CorrelationLSTMConfig(UnitsConfig, DenseConfig):
    when = "For ego speed from the CNN's maps: an LSTM on how the content of each cell moves between frames."
    name: Literal["correlation_lstm"] = "correlation_lstm"
    streams: Annotated[tuple[str, ...], Field(min_length=1)] = (APPEARANCE,)
    """Streams of maps that the head reads: the map at the cut, and those of taps."""
    grid: tuple[int, int] = (12, 8)
    """Rows and columns of the grid that displacements are averaged over."""
    lags: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4)
    """Frames between the two maps that are compared; long ones measure what moves slowly."""
    search: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (7, 5)
    """How many rows and columns away, in each direction, content is searched for in the earlier map."""
    skip_top: float = Field(1 / 3, ge=0, lt=1)
    """Share of the map's rows, at its top, that is left out because it shows sky."""
    members: int = Field(4, gt=0, le=100)
    """Number of networks that are trained at once from different initial weights, and averaged."""
    mirror: bool = True
    """Also train on mirrored windows, if the sign of the target in a mirrored scene is known."""
    units: int = Field(16, gt=0, le=LARGEST_LAYER)
    """Units of each LSTM."""
    dense: int = Field(32, gt=0, le=LARGEST_LAYER)
    """Units of the dense layer that looks at each cell."""


class GRUConfig(PooledConfig, RecurrentConfig):
    when = "Like pooled_lstm, but with a quarter fewer weights, for few examples."
    name: Literal["gru"] = "gru"


class TCNConfig(PooledConfig, LayersConfig, DenseConfig):
    when = "For long windows: sees 2^(layers + 1) − 1 frames back and trains faster than an LSTM."
    name: Literal["tcn"] = "tcn"


class AttentionConfig(PooledConfig, LayersConfig, DenseConfig):
    when = "For thousands of examples in which some frames matter more than others, such as stops or occlusions."
    name: Literal["attention"] = "attention"


class DeltaConfig(StreamsConfig, LayersConfig, DenseConfig):
    when = "For ego speed with fine maps and many clips; it trains on whole maps, which takes minutes."
    name: Literal["delta"] = "delta"


class ConvLSTMConfig(StreamsConfig, UnitsConfig, DenseConfig):
    when = "For targets that depend on where in the image things move; the slowest head, for small maps or a GPU."
    name: Literal["conv_lstm"] = "conv_lstm"


class RidgeConfig(StatisticsConfig):
    when = "A baseline for every other head, fitted in a second. Set difference = true for ego speed."
    name: Literal["ridge"] = "ridge"
    alpha: float = Field(1.0, gt=0)
    """Regularisation strength."""


class KernelRidgeConfig(KernelConfig):
    when = "Like ridge, but for nonlinear relations; it keeps every training window, so use at most a few thousand."
    name: Literal["kernel_ridge"] = "kernel_ridge"


class SVRConfig(KernelConfig):
    when = "Like kernel_ridge, but robust to outliers in the labels, and it keeps only the windows it needs."
    name: Literal["svr"] = "svr"


class BoostingConfig(StatisticsConfig):
    when = "For thresholds and interactions between features; slower than svr and needs more examples."
    name: Literal["boosting"] = "boosting"
    units: int = Field(256, gt=0, le=LARGEST_LAYER)
    """Number of trees."""
    layers: int = Field(2, gt=0, le=100)
    """Depth of each tree."""


class BoxRidgeConfig(VehicleConfig):
    when = "For a vehicle's velocity or position if its box is known. Try it first, since it needs few labels."
    name: Literal["box_ridge"] = "box_ridge"


class BoxMLPConfig(VehicleConfig, LayersConfig):
    when = "box_ridge plus small networks, for hundreds of labelled vehicles or for tracks of poor quality."
    name: Literal["box_mlp"] = "box_mlp"
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of activations dropped in training."""


class FusionConfig(VehicleConfig, StreamsConfig, UnitsConfig, DenseConfig):
    when = "For ego speed from several streams, or for a vehicle whose surroundings help to predict its velocity."
    name: Literal["fusion"] = "fusion"
    grid: tuple[int, int] = (1, 1)
    """Rows and columns of the grid that each large map is averaged over."""
    difference: bool = False
    """Also use how much each cell changes from frame to frame."""


class CropLSTMConfig(VehicleConfig, StreamsConfig, UnitsConfig, DenseConfig):
    when = "For a vehicle's velocity from the CNN's maps of its crop ([data] crops), alone or with its tracked box."
    name: Literal["crop_lstm"] = "crop_lstm"
    box: bool = False
    """Also use how the tracked box moves and grows; otherwise only the vehicle's distance, which the box tells."""
    units: int = Field(16, gt=0, le=LARGEST_LAYER)
    """Units of the recurrent layer."""
    dense: int = Field(0, ge=0, le=LARGEST_LAYER)
    """Units of the dense layer before the output; 0: no such layer."""


def head_settings_class(name: str) -> type[HeadConfig]:
    """The settings class of a head, built in or from a plugin (whose import loads TensorFlow).

    Raises:
        ConfigError: there is no such head, or the plugin is broken.
    """
    if name in SETTINGS:
        return SETTINGS[name]
    head = load_plugin(HEADS, name)
    if head is None:
        raise unknown_head(name)
    model = getattr(head, "settings", None)
    if not (isinstance(model, type) and issubclass(model, HeadConfig)):
        raise plugin_error(HEADS, name, "its class attribute `settings` is not a subclass of HeadConfig")
    return model


def unknown_head(name: str) -> ConfigError:
    """The error for a head that does not exist."""
    names = list(list_heads())
    what = f"no such head{did_you_mean(name, names)}"
    return ConfigError(what, expected=f"one of {', '.join(names)}", got=one_line(name[:80]), hint="--head.name NAME")


def list_heads() -> dict[str, str]:
    """The name of every head, `auto` and plugins included, with one sentence on when to use it."""
    built_in = {name: model.when for name, model in SETTINGS.items()}
    return built_in | {name: f"A plugin of the package {package}." for name, package in plugin_names(HEADS).items()}


def head_settings(value: Any, info: ValidationInfo) -> HeadConfig:
    """Validate the section [head] of a TOML file as the settings of the head that it names.

    Raises:
        ValueError: not a table, an unknown head, or settings that it does not have or that have a wrong value.
    """
    if isinstance(value, HeadConfig):
        return value
    if not isinstance(value, dict):
        raise ValueError("expected a table")
    name = value.get("name", DEFAULT_HEAD)
    try:
        model = head_settings_class(str(name))
    except ConfigError as e:
        raise ValueError(e.what if e.expected is None else f"{e.what}, expected {e.expected}") from None
    return model.model_validate({**value, "name": name}, context=info.context)


AnyHeadConfig = Annotated[SerializeAsAny[HeadConfig], BeforeValidator(head_settings)]
