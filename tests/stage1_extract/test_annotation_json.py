"""annotation.json and ego.json: labels from correct files, a fault for each error in others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stage1_extract.datasets.annotation_json import ego_labels, load_json, vehicle_labels
from tests.dataset_helpers import VEHICLE


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_file_that_is_not_json_is_a_fault(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    faults: list[str] = []
    assert load_json(path, faults) == []
    assert len(faults) == 1 and f"{path}: not JSON; expected JSON in UTF-8; got " in faults[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no annotated vehicle; expected a list of vehicles; got []"),
        ("null", "got null"),
        ('{"velocity": [1, 2]}', "expected a list of vehicles"),
        ("[3]", "[0]: Input should be an object"),
        ('[{"bbox": null}]', "[0].velocity: Field required"),
        ('[{"velocity": null}]', 'expected {"velocity": [vx, vy], '),
        ('[{"velocity": [NaN, 1]}]', "[0].velocity[0]: Input should be a finite number"),
        ('[{"velocity": [1, -Infinity]}]', "got -Infinity"),
        ('[{"velocity": ["1.0", 1]}]', 'got "1.0"'),
        ('[{"velocity": [true, 1]}]', "got true"),
        ('[{"velocity": [1' + "0" * 400 + ", 1]}]", "[0].velocity[0]: Input should be a finite number"),
        ('[{"velocity": [1, 2, 3]}]', "at most 2 items"),
        ('[{"velocity": "fast"}]', "[0].velocity: Input should be a valid array"),
        ('[{"velocity": [1, 2], "bbox": [1, 2, 3, 4]}]', "[0].bbox: Input should be an object"),
        ('[{"velocity": [1, 2], "bbox": {"left": 1, "top": 2, "right": 3}}]', "[0].bbox.bottom: Field required"),
        ('[{"velocity": [1, 2], "bbox": {"left": 3, "top": 2, "right": 3, "bottom": 4}}]', "left < right"),
        ('[{"velocity": [1, 2], "bbox": {"left": "3", "top": 2, "right": 3, "bottom": 4}}]', 'got "3"'),
        ('[{"velocity": [1, 2], "position": [1]}]', "[0].position[1]: Field required"),
    ],
)
def test_wrong_annotation_is_one_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    faults: list[str] = []
    (value,) = load_json(path, faults)
    vehicle_labels(value, "a.json", 3, velocity_required=True, all_vehicles=True, faults=faults)
    assert len(faults) == 1 and faults[0].startswith("a.json: ") and message in faults[0]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([1], "e.json: Input should be an object"),
        ({}, "e.json: speed: Field required"),
        ({"speed": "fast"}, "e.json: speed: Input should be a valid number"),
        ({"speed": math.nan}, "e.json: speed: Input should be a finite number"),
        ({"speed": True}, "e.json: speed: Input should be a valid number"),
    ],
)
def test_wrong_ego_speed_is_one_fault(value: object, fault: str) -> None:
    faults: list[str] = []
    assert ego_labels(value, "e.json", 3, faults) == ()
    assert len(faults) == 1 and faults[0].startswith(fault) and 'expected {"speed": m/s}' in faults[0]


NUMBERS = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
PAIRS = st.lists(NUMBERS, min_size=1, max_size=3) | st.lists(st.floats(-50, 50), min_size=2, max_size=2) | NUMBERS
BOXES = st.fixed_dictionaries({}, optional=dict.fromkeys(("left", "top", "right", "bottom"), NUMBERS)) | NUMBERS
VEHICLES = st.fixed_dictionaries({}, optional={"velocity": PAIRS, "bbox": BOXES, "position": PAIRS}) | NUMBERS


@given(st.lists(VEHICLES, max_size=3) | NUMBERS, st.booleans())
@example([VEHICLE], True)
@example([{"bbox": VEHICLE["bbox"]}], False)
def test_any_json_gives_finite_labels_or_faults(value: object, velocity_required: bool) -> None:
    faults: list[str] = []
    labels = vehicle_labels(value, "a.json", 3, velocity_required=velocity_required, all_vehicles=True, faults=faults)
    assert all(line.startswith("a.json: ") and "\n" not in line for line in faults)
    if faults:
        return
    assert isinstance(value, list) and len(labels) == len(value)
    for label, entry in zip(labels, value, strict=True):
        assert all(map(math.isfinite, (*(label.box or ()), *(label.position or ()))))
        known = {name: math.isfinite(speed) for name, speed in label.targets.items()}
        assert known == dict.fromkeys(("vx", "vy"), velocity_required or entry.get("velocity") is not None)
