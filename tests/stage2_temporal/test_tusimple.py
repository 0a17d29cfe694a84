"""The TuSimple metrics against a case worked out by hand, and the submission in the benchmark's format."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import DataError
from features.sequences import FrameSequence, Label
from features.windows import make_examples
from framebank.cli import main
from stage2_temporal.evaluation.tusimple import Benchmark, ByDistance, evaluate_tusimple
from stage2_temporal.runs import submission


def vehicle(left: float, velocity: list[float], position: list[float] | None = None) -> dict[str, Any]:
    box = {"top": 300.0, "left": left, "bottom": 340.0, "right": left + 50}
    return {"bbox": box, "velocity": velocity, **({"position": position} if position else {})}


# two clips; distances 19.99 (near), √(19² + 8²) = 20.6 (medium), 45 (far), 10 (near), 44 (medium)
TRUTH = [
    [vehicle(100, [1, 0], [19.99, 0]), vehicle(200, [2, 1], [19, 8]), vehicle(300, [-3, 0], [45, 0])],
    [vehicle(100, [0, 0], [0, 10]), vehicle(700, [5, -1], [44, 0])],
]
# the same vehicles in other orders, boxes a little off. Errors: near (1, 2) and (0, 2), medium (2, 1) and (1, 0),
# far (3, 4); of the position near (1, 0) and (0, 0), medium (0, 2) and (3, 4), far (0, 5)
PREDICTED = [
    [vehicle(301, [0, 4], [45, 5]), vehicle(99, [2, 2], [20.99, 0]), vehicle(202, [4, 2], [19, 10])],
    [vehicle(702, [6, -1], [47, 4]), vehicle(100, [0, 2], [0, 10])],
]


def evaluate(folder: Path, predicted: object, truth: object = TRUTH) -> Benchmark:
    paths = folder / "p.json", folder / "t.json"
    for path, clips in zip(paths, (predicted, truth), strict=True):
        path.write_text(json.dumps(clips))
    return evaluate_tusimple(*paths)


def test_errors_match_values_computed_by_hand(tmp_path: Path) -> None:
    """Of (0, 0): near (1 + 0) / 2, medium (5 + 26) / 2, far 9."""
    result = evaluate(tmp_path, PREDICTED)
    assert result.ev == ByDistance(pytest.approx(4.5), pytest.approx(3), pytest.approx(25), pytest.approx(32.5 / 3))
    assert result.ep == ByDistance(pytest.approx(0.5), pytest.approx(14.5), pytest.approx(25), pytest.approx(40 / 3))
    assert result.zero_ev == ByDistance(0.5, 15.5, 9.0, pytest.approx(25 / 3))


def test_ep_needs_predicted_positions(tmp_path: Path) -> None:
    velocities = [[{k: v for k, v in car.items() if k != "position"} for car in clip] for clip in PREDICTED]
    result = evaluate(tmp_path, velocities)
    assert result.ep is None and result.ev == evaluate(tmp_path, PREDICTED).ev


def test_mean_is_unknown_without_far_vehicles(tmp_path: Path) -> None:
    ev = evaluate(tmp_path, PREDICTED[1:], TRUTH[1:]).ev
    assert ev is not None and ev.near == 4
    assert math.isnan(ev.far) and math.isnan(ev.mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:1], "wrong number of clips; expected 2 clips; got 1"),
        (lambda p: [p[0], p[1][:1]], "clip 1: no prediction for the vehicle .*within 10 px.*got 12"),
        (lambda p: [[], p[1]], "clip 0: no prediction.*no vehicle"),
        (lambda p: {"clips": p}, "not in the benchmark's format"),
        (lambda p: [[{"velocity": [0, 0]}], p[1]], "p.json is not in the benchmark's format: 0.0.bbox"),
        (lambda p: [[{**p[0][0], "bbox": {"left": 3}}], p[1]], "0.0.bbox.top: Field required"),
        (lambda p: [p[0], [{**p[1][0], "velocity": [1]}, p[1][1]]], "1.0.velocity.1: Field required"),
        (lambda p: [p[0], [{k: v for k, v in p[1][0].items() if k != "position"}, p[1][1]]], "1 vehicles have no pos"),
    ],
)
def test_unusable_predictions_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path, change(copy.deepcopy(PREDICTED)))


def clips() -> list[FrameSequence]:
    """Test clips 10 and 2 (in the store's order), a training clip between; clip 3 is too short for a window."""

    def labels(*boxes: float) -> tuple[Label, ...]:
        nan = math.nan
        return tuple(Label(3, {"vx": nan, "vy": nan}, (b, 300.0, b + 50, 340.0)) for b in boxes)

    known = Label(3, {"vx": 1.0, "vy": 0.0}, (5.0, 5.0, 9.0, 9.0), (20.0, 0.0))
    return [
        FrameSequence("test/clips/10", "test", 4, 20.0, (1280, 720), "a", labels(700, 100)),
        FrameSequence("train/clips/1", "train", 4, 20.0, (1280, 720), "b", (known,)),
        FrameSequence("test/clips/2", "test", 4, 20.0, (1280, 720), "c", labels(300)),
        FrameSequence("test/clips/3", "test", 2, 20.0, (1280, 720), "d", labels(100)),
    ]


@pytest.mark.parametrize("columns", [("vx", "vy"), ("vx", "vy", "x", "y"), ("y", "vy", "x", "vx")])
def test_submission_lists_predictions_in_clip_order(columns: tuple[str, ...], tmp_path: Path) -> None:
    examples = make_examples(clips(), np.arange(4) * 4, columns, length=4)
    value = {"vx": 1.0, "vy": 2.0, "x": 30.0, "y": 4.0}
    predicted = np.array([[value[c] + 100 * i for c in columns] for i in range(len(examples))])
    (path,) = submission.write_submission_files(tmp_path, "tusimple", examples, predicted, clips())
    second, short, tenth = json.loads(path.read_text())  # clips 2, 3 and 10
    assert short == []
    assert [v["bbox"]["left"] for v in tenth] == [700, 100]
    assert second[0]["bbox"] == {"top": 300.0, "left": 300.0, "bottom": 340.0, "right": 350.0}
    assert [v["velocity"] for v in tenth] == [[1, 2], [101, 102]]  # the training clip is the third example
    assert second[0]["velocity"] == [301, 302]
    assert second[0].get("position") == ([330, 304] if "x" in columns else None)


def test_benchmark_command_prints_ev_and_ep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PREDICTED))
    (tmp_path / "t.json").write_text(json.dumps(TRUTH))
    files = ["--predictions", str(tmp_path / "p.json"), "--truth", str(tmp_path / "t.json")]
    assert main(["benchmark", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["near", "medium", "far", "mean"]
    assert lines[2].split()[2:] == ["4.500", "3.000", "25.000", "10.833"]
    assert lines[3].split()[-4:] == ["0.500", "15.500", "9.000", "8.333"]
    assert lines[4].split()[2:] == ["0.500", "14.500", "25.000", "13.333"]
    assert main(["benchmark", *files[:3], str(tmp_path / "none.json")]) == 2
    (tmp_path / "t.json").write_text("{")
    assert main(["benchmark", *files]) == 2
    error = capsys.readouterr().err
    assert "no such file" in error
    assert "not JSON" in error
