"""The recipe: everything that determines the stored numbers, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from features._common.strict_json import parse_json
from features.streams import APPEARANCE


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text.

    >>> canonical_json({"size": [320, 180], "cut": "block3b_add"})
    '{"cut":"block3b_add","size":[320,180]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the numbers under `frames/` of a store."""

    decode: str  # how image files are decoded, e.g. `cv2`
    size: tuple[int, int]  # width and height of the network's input, px
    interpolation: str  # `cubic` or `area`
    colour: str  # order of the channels that enter the trunk, `rgb` or `bgr`
    preprocess: str  # name of the preprocessing inside the trunk's graph; `none` for raw 0–255
    backbone: str
    arguments: dict[str, Any] = field(default_factory=dict)  # the backbone's arguments, e.g. `{"alpha": 0.25}`
    weights: str = "imagenet"  # or a file name, or `random`, as the user specified
    weights_digest: str = ""  # SHA-256 over all of the backbone's weights as loaded, in the model's order
    top_layers: int = 0  # layers above the cut; a count, because Keras' automatic layer names differ between processes
    precision: str = "float32"  # number format the engine computed in, such as `float32`, `bfloat16` or `int8`
    dtype: str = "float16"  # stored type, `float32` or `float16`
    grid: tuple[int, int] | None = None  # rows and columns the map at the cut is averaged over; None: it is not
    basis: str = ""  # digest of the principal components that the map at the cut is projected on; empty: it is not
    quantised: str = ""  # SHA-256 of the calibrated network, of a recipe in int8

    def to_json(self) -> str:
        """The recipe as canonical JSON."""
        return canonical_json({k: v for k, v in asdict(self).items() if k not in ("quantised", "basis") or v})

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote; a ValueError or TypeError for anything else."""
        value = parse_json(text)
        value["size"] = tuple(value["size"])
        if value.get("grid"):
            value["grid"] = tuple(value["grid"])
        recipe = cls(**value)
        kinds = {"str": str, "int": int, "dict[str, Any]": dict}
        wrong = [f.name for f in fields(cls) if not isinstance(getattr(recipe, f.name), kinds.get(str(f.type), object))]
        pairs = [recipe.size] if recipe.grid is None else [recipe.size, recipe.grid]
        if wrong or not all(len(pair) == 2 and all(type(n) is int and n > 0 for n in pair) for pair in pairs):
            raise ValueError(f"a recipe with another {', '.join(wrong) or 'size'}")
        return recipe

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return json_digest(self._decisive())

    def computed_like(self, precision: str, quantised: str) -> Recipe:
        """This recipe in the precision, and with the calibrated network, of a store.

        A config may leave these open: `fastest` is decided when frames are extracted, and so is the network of `int8`.
        """
        open_until_extraction = self.precision in ("fastest", "int8")
        return replace(self, precision=precision, quantised=quantised) if open_until_extraction else self

    def differences(self, other: Recipe) -> list[str]:
        """The fields that determine numbers and differ, as `name: value in other, not value here`.

        >>> small = Recipe("cv2", (320, 180), "area", "rgb", "none", "EfficientNetLite0")
        >>> small.differences(Recipe("cv2", (640, 360), "area", "rgb", "none", "EfficientNetLite0"))
        ['size: [640,360], not [320,180]']
        """
        ours, theirs = self._decisive(), other._decisive()
        names = dict.fromkeys([*ours, *theirs])
        pairs = {k: (theirs.get(k), ours.get(k)) for k in names}
        return [f"{k}: {_shorten(other)}, not {_shorten(here)}" for k, (other, here) in pairs.items() if here != other]

    def _decisive(self) -> dict[str, Any]:
        # without `weights`, which is only the name the user gave (the digest determines the numbers), and without
        # the absence of a grid, a basis and a calibrated network, which older stores do not state
        absent = {name for name in ("grid", "basis", "quantised") if not getattr(self, name)}
        return {k: v for k, v in asdict(self).items() if k not in {"weights", *absent}}


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text[:12] + "…" if len(text) == 64 else text


def json_digest(value: object) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def stream_origin(
    stream: str, pooling: int, grid: tuple[int, int] | None, recipe: Recipe, basis: str = ""
) -> dict[str, Any]:
    """What determines the numbers of a tap's stream; nothing but the recipe for the map at the cut.

    `basis` is the digest of the principal components that the tap's maps are projected on, if they are.
    """
    if stream == APPEARANCE:
        return {}
    kept: dict[str, Any] = {} if grid is None else {"grid": list(grid)}
    kept |= {"basis": basis} if basis else {}
    return {"tap": stream, "pooling": pooling, "recipe": replace(recipe, grid=None, basis="").fingerprint} | kept
