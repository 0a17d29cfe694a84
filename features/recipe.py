"""The recipe: everything that decides the stored numbers, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Recipe:
    """What decides every number under `frames/` of a store.

    Attributes:
        decode: how files become pixels, e.g. `cv2`.
        size: width, height the network sees.
        interpolation: `cubic` or `area`.
        colour: order of the channels that enter the trunk, `rgb` or `bgr`.
        preprocess: name of the preprocessing inside the trunk's graph, `none` for raw 0–255.
        backbone: its name.
        arguments: keyword arguments the backbone was built with, e.g. `{"alpha": 0.25}`.
        weights: `imagenet`, a file's name, or `random`: what the user asked for.
        weights_digest: SHA-256 over all the backbone's weights as loaded, in the model's order.
        top_layers: how many of the backbone's last layers are above the cut; structural, so that it is the same
            in every process whatever names Keras makes up.
        precision: what the engine computed in, `float32`, `bfloat16` or `float16`.
        dtype: stored type, `float32` or `float16`.
    """

    decode: str
    size: tuple[int, int]
    interpolation: str
    colour: str
    preprocess: str
    backbone: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str = "imagenet"
    weights_digest: str = ""
    top_layers: int = 0
    precision: str = "float32"
    dtype: str = "float16"

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote."""
        value = json.loads(text)
        value["size"] = tuple(value["size"])
        return cls(**value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        # `weights` is how the user named them; the digest is what decides the numbers
        value = {k: v for k, v in asdict(self).items() if k != "weights"}
        return json_digest(value)

    def differences(self, other: Recipe) -> list[str]:
        """Each field that decides numbers and differs, as `name: ours against theirs`."""
        ours, theirs = asdict(self), asdict(other)
        return [
            f"{k}: {_short(theirs[k])} against {_short(ours[k])}"
            for k in ours
            if k != "weights" and ours[k] != theirs[k]
        ]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text[:12] + "…" if len(text) == 64 else text


def json_digest(value: object) -> str:
    """SHA-256 (hex) over a value as canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
