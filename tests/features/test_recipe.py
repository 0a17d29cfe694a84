"""The recipe: its fingerprint depends on everything that determines a number, and on nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from features.recipe import Recipe
from tests.helpers import RECIPE

OTHER = {
    "decode": "fast", "size": (64, 36), "interpolation": "cubic", "colour": "bgr", "preprocess": "VGG16",
    "backbone": "VGG16", "arguments": {"alpha": 0.25}, "weights_digest": "f" * 64, "top_layers": 4,
    "precision": "bfloat16", "dtype": "float16", "grid": (3, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.name != "weights"])
def test_every_field_changes_the_fingerprint(name: str) -> None:
    other = replace(RECIPE, **{name: OTHER[name]})
    assert other.fingerprint != RECIPE.fingerprint
    assert [line.split(":")[0] for line in RECIPE.differences(other)] == [name]


def test_the_name_of_the_weights_does_not_change_the_fingerprint() -> None:
    assert replace(RECIPE, weights="some/file.h5").fingerprint == RECIPE.fingerprint


def test_json_round_trip() -> None:
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE


def test_the_fingerprint_never_changes() -> None:
    # otherwise existing stores would not match their own configs any more
    assert RECIPE.fingerprint == "560538b798c46043b30a9980d9414e721a2874ace3bf970e6269e0693692c4fe"
