"""The report's clips: which are shown, with which frames, boxes and arrows."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from features.tracks import Track
from stage2_temporal.report import write_report
from stage2_temporal.report.clips import embed_frames, frames_by_turns, pick_clips, report_clip, spread_evenly
from stage2_temporal.report.svg import arrows, bars
from stage2_temporal.runs.results import PredictedExample, read_results
from tests.report_runs import VELOCITY, body, make_run, script_data


def test_worst_and_best_clips_show_their_frames_and_values(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    page = body(folder, store)
    ranked = sorted(read_results(folder).verdict_examples, key=lambda e: -e.error)
    titles = re.findall(r"<h4>((?:test|train|validation)/.*?)</h4>", page)
    assert titles == [e.sequence for e in ranked[:8]] + [e.sequence for e in ranked[:-4:-1]]
    rows = [int(store.first[store.index(e.sequence)]) + f for e in [*ranked[:8], *ranked[:-4:-1]] for f in range(8)]
    assert store.thumbnails_read[:88] == rows and len(set(store.thumbnails_read)) == len(store.thumbnails_read) == 320
    assert [int(row) for row in re.findall(r'data-row="(\d+)"', page)] == rows
    assert page.count("data:image/jpeg;base64,") == 88
    assert page.count('class="box" x="70.0" y="42.5" width="35.0" height="33.8"') == 11
    assert f"{ranked[0].true[0]:.2f}" in page and f"{ranked[0].predicted[0]:.2f}" in page


def example(sequence: str, first: int, error: float, stride: int = 1) -> PredictedExample:
    return PredictedExample("test", sequence, 0, first + 7, first, stride, 8, (0.0,), (error,), math.nan)


def test_picked_clips_share_no_frame() -> None:
    rows = [example("a", 0, 9.0), example("a", 1, -10.0), example("b", 1, 8.0), example("a", 20, 1.0)]
    assert pick_clips(rows, 3, worst=True) == [rows[1], rows[2], rows[3]]
    assert pick_clips(rows, 1, worst=False) == [rows[3]]


def test_long_window_is_thinned_to_a_strip() -> None:
    assert spread_evenly(4, 8) == [0, 1, 2, 3]
    assert spread_evenly(40, 8) == [0, 6, 11, 17, 22, 28, 33, 39]
    assert spread_evenly(40, 1) == [39]
    assert len(set(spread_evenly(6001, 2000))) == 2000 and spread_evenly(4000, 2000)[:2] == [0, 2]


def test_box_comes_from_the_track_or_else_from_the_label(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, VELOCITY)
    first = read_results(folder).verdict_examples[0]
    label_box = (70.0, 42.5, 35.0, 33.8)
    assert report_clip(first, store).boxes == (*[None] * 7, label_box)
    boxes = np.array([[80.0 * f, 160.0, 80.0 * f + 160, 240.0] for f in range(8)])
    boxes[2] = np.nan
    store.tracks[first.sequence, 0] = Track(boxes, np.ones(8))
    tracked = report_clip(first, store).boxes
    assert tracked[2] is None
    assert tracked[:2] == ((0.0, 20.0, 20.0, 10.0), (10.0, 20.0, 20.0, 10.0))
    assert tracked[7] == (70.0, 20.0, 20.0, 10.0)


def test_tracked_frames_have_box_and_arrows(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, VELOCITY)
    assert body(folder, store).count('class="box" x=') == 11
    for s in store.sequences:
        store.tracks[s.id, 0] = Track(np.tile([600.0, 300.0, 680.0, 380.0], (8, 1)), np.ones(8))
    page = body(folder, store)
    assert page.count('class="box" x="75.0" y="37.5" width="10.0" height="10.0"') == 88
    assert page.count('<path class="true" d="M73.5 42.5L') == page.count('<path class="model" d="M86.5 42.5L') == 88


def test_arrows_point_where_velocities_do() -> None:
    fast = PredictedExample("test", "a", 0, 7, 0, 1, 8, (0.0, 13.0), (-26.0, 0.0), math.nan)
    drawn = arrows(VELOCITY, [fast])
    assert drawn is not None and (drawn.scale, drawn.ring) == (1.0, 10.0)
    assert drawn.path(fast.true, -1).startswith("M-3.0 0.0L10.0 0.0L")  # right
    assert drawn.path(fast.predicted, 1).startswith("M3.0 0.0L3.0 26.0L")  # backwards, down
    assert drawn.path(fast.true, -1, (100.0, 40.0, 20.0, 10.0)).startswith("M98.5 45.0L111.5 45.0L")
    assert arrows(("ego_speed",), [fast]) is None
    other_columns = PredictedExample("test", "a", 0, 7, 0, 1, 8, (50.0, 13.0, 0.0), (60.0, 0.0, -26.0), math.nan)
    assert arrows(("x", "vy", "vx"), [other_columns]).path(other_columns.true, -1) == drawn.path(fast.true, -1)


def test_bars_start_at_zero() -> None:
    rows = [example("a", 0, 15.0), example("b", 0, -5.0)]
    assert bars(rows, 0) == (25.0, 5.0)


def test_frames_of_all_clips_are_added_in_turn_until_the_budget_runs_out(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    clips = [report_clip(e, store) for e in read_results(folder).verdict_examples[:3]]
    rows = list(dict.fromkeys(frames_by_turns(clips)))
    assert rows[:3] == [c.rows[-1] for c in clips] and rows[3:6] == [c.rows[0] for c in clips]
    assert sorted(rows) == sorted(row for c in clips for row in c.rows)
    plenty, scarce = embed_frames(rows, store), embed_frames(rows, store, budget=20_000)
    assert list(plenty) == rows
    assert 0 < len(scarce) < len(rows)
    assert list(scarce) == rows[: len(scarce)]
    assert sum(map(len, scarce.values())) <= 20_000


@pytest.mark.parametrize("dense", [False, True])
def test_report_with_many_examples_stays_small(tmp_path: Path, dense: bool) -> None:
    folder, store = make_run(tmp_path, VELOCITY, clips=2100, length=40, dense=dense)
    assert 3_000_000 < write_report(folder, store).stat().st_size < 8_000_000
    data = script_data(folder)
    assert data["dots"] == 2000
    rows = {int(row) for row in data["pictures"]}
    with_last_frame = sum(c["row"] + c["stride"] * (c["length"] - 1) in rows for c in data["clips"])
    assert with_last_frame > (1900 if dense else 300)


def test_script_gets_the_values_of_every_dot(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, VELOCITY)
    write_report(folder, store)
    data, examples = script_data(folder), read_results(folder).verdict_examples
    assert [c["name"] for c in data["clips"]] == [e.sequence for e in examples]
    for clip, example in zip(data["clips"], examples, strict=True):
        assert clip["predicted"] == pytest.approx(example.predicted, rel=1e-5)
        assert clip["distance"] == pytest.approx(example.distance, rel=1e-5)
    strips = set(re.findall(r'data-row="(\d+)"', (folder / "report.html").read_text()))
    assert len(strips) == 88 and not strips & set(data["pictures"])
    assert len(strips) + len(data["pictures"]) == 320
