"""Backbones that are no function of Keras: `onnx:FILE`, `hub:NAME`, and `import:NAME` for features of other tools."""

from __future__ import annotations

import re
from pathlib import Path

from features._common.user_path import expand_user
from features.errors import ConfigError

ONNX, HUB, IMPORTED = "onnx:", "hub:", "import:"


def is_imported(backbone: str) -> bool:
    """Whether features were computed by another tool, so that framebank cannot compute them from images.

    >>> is_imported("import:dinov2"), is_imported("EfficientNetLite0")
    (True, False)
    """
    return backbone.startswith(IMPORTED)


def check_computable(backbone: str) -> None:
    """Raise a ConfigError for features that framebank cannot compute."""
    if is_imported(backbone):
        raise ConfigError(
            f"{backbone}: another tool computed these features, so framebank cannot compute them from images",
            hint="compute them there and use framebank import, or choose another --backbone.name",
        )


def is_onnx(backbone: str) -> bool:
    """Whether a backbone is an ONNX file, which is run but not trained."""
    return backbone.startswith(ONNX)


def onnx_file(backbone: str) -> Path | None:
    """The file of a backbone that is an ONNX file."""
    return expand_user(backbone.removeprefix(ONNX)) if is_onnx(backbone) else None


def recipe_name(backbone: str) -> str:
    """A backbone's name in recipes: of a file or folder without the folders that it lies in, which decide nothing.

    >>> recipe_name("onnx:/models/lite0.onnx"), recipe_name("VGG16")
    ('onnx:lite0.onnx', 'VGG16')
    """
    for prefix in (ONNX, HUB):
        if backbone.startswith(prefix):
            return prefix + Path(backbone.removeprefix(prefix)).name
    return backbone


def stream_of_tap(tap: str) -> str:
    """The stream of a tap: the layer's name, in which `_` stands for what names of datasets and streams cannot have.

    >>> stream_of_tap("block3b_add"), stream_of_tap("/layer1/layer1.0/Add_output_0")
    ('block3b_add', 'layer1_layer1_0_Add_output_0')
    """
    return re.sub(r"[^\w-]+", "_", tap).strip("_")
