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
    "quantised": "e" * 64, "basis": "b" * 64,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.name != "weights"])
def test_every_field_changes_the_fingerprint(name: str) -> None:
    other = replace(RECIPE, **{name: OTHER[name]})
    assert other.fingerprint != RECIPE.fingerprint
    assert [line.split(":")[0] for line in RECIPE.differences(other)] == [name]


def test_the_name_of_the_weights_does_not_change_the_fingerprint() -> None:
    assert replace(RECIPE, weights="some/file.h5").fingerprint == RECIPE.fingerprint


def test_json_round_trip() -> None:
    for recipe in (RECIPE, replace(RECIPE, quantised="e" * 64)):
        assert Recipe.from_json(recipe.to_json()) == recipe
    assert "quantised" not in RECIPE.to_json()  # which is as in older stores


def test_what_a_config_leaves_open_is_taken_from_the_store() -> None:
    for precision in ("fastest", "int8"):
        recipe = replace(RECIPE, precision=precision).computed_like("int8", "e" * 64)
        assert (recipe.precision, recipe.quantised) == ("int8", "e" * 64)
    assert RECIPE.computed_like("int8", "e" * 64) == RECIPE


def test_the_fingerprint_never_changes() -> None:
    # otherwise existing stores would not match their own configs any more
    assert RECIPE.fingerprint == "560538b798c46043b30a9980d9414e721a2874ace3bf970e6269e0693692c4fe"
