"""Intervals, probabilities and flags through the commands: in a run's files, in predictions, and for older runs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.errors import ConfigError
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage1_extract.sample.dataset import calibration_text
from stage1_extract.sample.scene import TUSIMPLE_CAMERA
from stage2_temporal.data.task import read_task
from stage2_temporal.evaluation.uncertainty import INTERVALS_FILE, IntervalOptions, read_uncertainty
from stage2_temporal.predict import predict
from stage2_temporal.runs.leaderboard import boards, read_run
from stage2_temporal.runs.results import read_metrics, read_predictions
from stage2_temporal.runs.tables import metrics_table
from stage2_temporal.train import evaluate, train
from tests.helpers import write_clips
from tests.image_runs import image_config, read_rows, train_on_images

COUNTS = {"Train": 24, "Validation": 12, "Test": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_images(tmp_path_factory.mktemp("uncertain"), COUNTS)


@pytest.fixture
def old_run(run: Path, tmp_path: Path) -> Path:
    """The run as an older version wrote it."""
    for name in ("config.toml", "model.keras", "history.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["interval_level"]
    for split in metrics["splits"].values():
        del split["intervals"], split["unlike_training"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    rows = (run / "predictions.csv").read_text().splitlines()
    (tmp_path / "predictions.csv").write_text("\n".join(",".join(row.split(",")[:12]) for row in rows) + "\n")
    return tmp_path


def frames(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(1, count + 1):
        cv2.imwrite(str(folder / f"{i:03}.png"), rng.integers(0, 255, (48, 64, 3), np.uint8))
    return folder


def test_run_tells_its_intervals_in_every_file(run: Path) -> None:
    metrics = read_metrics(run)
    test = metrics.splits["test"]
    assert test.intervals is not None
    assert set(test.intervals) == {"vx", "vy"}
    examples = [e for e in read_predictions(run / "predictions.csv", ("vx", "vy")) if e.split == "test"]
    inside = np.mean([e.low[0] <= e.true[0] <= e.high[0] for e in examples])
    width = np.mean([e.high[0] - e.low[0] for e in examples])
    assert (test.intervals["vx"].coverage, test.intervals["vx"].width) == pytest.approx((inside, width))
    assert "coverage of 90 %" in metrics_table(metrics)
    (board,) = (b for b in boards([read_run(run)]) if b.split == "test")
    row = next(r for r in board.rows if r.rank)
    mean = np.mean([i.score for i in test.intervals.values()])
    assert row.metrics["interval_score"][0] == pytest.approx(mean)
    assert "coverage" not in board.constant.metrics


def test_intervals_hold_on_the_validation_examples_that_made_them(run: Path) -> None:
    """With 12 scores, the 90 % quantile is the largest, of rank ⌈13 · 0.9⌉. Scores are divided by left-out scales."""
    examples = [e for e in read_predictions(run / "predictions.csv", ("vx", "vy")) if e.split == "validation"]
    for k in range(2):
        assert sum(e.low[k] <= e.true[k] <= e.high[k] for e in examples) >= 11


def test_prediction_from_images_has_the_run_s_intervals(run: Path, tmp_path: Path) -> None:
    predict(run, output=tmp_path / "p.csv")
    ours, theirs = (read_rows(path) for path in (tmp_path / "p.csv", run / "predictions.csv"))
    assert list(ours[0]) == list(theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        for name in ("vx_low", "vx_high", "vy_low", "vy_high"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4)


def test_threshold_and_level_change_columns_and_widths(run: Path, tmp_path: Path) -> None:
    source = frames(tmp_path / "frames")
    predict(run, source, tmp_path / "a.csv")
    predict(run, source, tmp_path / "b.csv", options=IntervalOptions(level=0.5, threshold=1.5))
    wide, narrow = read_rows(tmp_path / "a.csv"), read_rows(tmp_path / "b.csv")
    assert list(narrow[0]) == [
        "time", "frame", "vx", "vy", "vx_low", "vx_high", "vx_above_1.5", "vy_low", "vy_high", "vy_above_1.5",
        "unlike_training",
    ]  # fmt: skip
    for a, b in zip(wide, narrow, strict=True):
        assert float(b["vx_high"]) - float(b["vx_low"]) < float(a["vx_high"]) - float(a["vx_low"])
        assert 0 <= float(b["vx_above_1.5"]) <= 1
        middle = (float(b["vx_low"]) + float(b["vx_high"])) / 2
        assert (float(b["vx_above_1.5"]) > 0.5) == (middle > 1.5)


def test_page_overlay_and_table_are_written_together(run: Path, tmp_path: Path) -> None:
    source, page, overlay = frames(tmp_path / "frames"), tmp_path / "drive.html", tmp_path / "o.mp4"
    result = predict(run, source, tmp_path / "p.csv", overlay, report=page)
    assert result.files == (tmp_path / "p.csv", overlay, page)
    assert page.read_text().count("<tr>") + page.read_text().count('<tr class="unlike">') == 1 + result.windows


def test_longer_lens_is_flagged_by_its_calibration_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The frames are those of the training, so that nothing else tells."""
    clips = write_clips(tmp_path / "clips", {"Train": 24, "Validation": 4})
    scale = 64 / 1280
    numbers = {name: scale * getattr(TUSIMPLE_CAMERA, name) for name in ("fx", "fy", "cx", "cy")}
    usual = replace(TUSIMPLE_CAMERA, **numbers)
    (clips / "calibration.txt").write_text(calibration_text(usual))
    config = image_config(clips, head={"name": "ridge"})
    extract(config, tmp_path / "s.h5", scan(config.data))
    run = tmp_path / "runs" / "r"
    with Store(tmp_path / "s.h5") as store:
        train(config, store, read_task(config, store), run, report=False)
    source = clips / "Train" / "Train" / "1" / "imgs"
    longer = replace(usual, fx=1.4 * usual.fx, fy=1.4 * usual.fy)
    for camera, flag in ((usual, "0"), (longer, "1")):
        (tmp_path / "camera.txt").write_text(calibration_text(camera))
        predict(run, source, tmp_path / "p.csv", camera=tmp_path / "camera.txt")
        assert {row["unlike_training"] for row in read_rows(tmp_path / "p.csv")} == {flag}
    assert "another camera" in caplog.text


def test_older_run_predicts_with_blank_cells_and_is_renewed_by_evaluate(
    run: Path, old_run: Path, tmp_path: Path
) -> None:
    predict(old_run, output=tmp_path / "p.csv")
    row = read_rows(tmp_path / "p.csv")[0]
    assert [row[name] for name in ("vx_low", "vx_high", "unlike_training")] == ["", "", ""]
    assert "coverage" not in metrics_table(read_metrics(old_run))
    with pytest.raises(ConfigError, match="evaluate"):
        predict(old_run, output=tmp_path / "p.csv", options=IntervalOptions(threshold=1.0))
    with Store(Path(read_metrics(old_run).store.path)) as store:
        evaluate(old_run, store)
    report = (old_run / "report.html").read_text()
    assert report.count('class="band') == 2  # round the perfect line of vx and of vy
    assert "90 % intervals of vx" in report
    ours, theirs = read_uncertainty(old_run), read_uncertainty(run)
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(ours.scores.scores, theirs.scores.scores, rtol=1e-4)


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"threshold": float("nan")}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--"):
        IntervalOptions(**options)


def test_too_few_validation_sequences_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run = train_on_images(tmp_path, {"Train": 6, "Validation": 4})
    assert "they need 9 validation sequences, there are 4" in caplog.text
    assert read_metrics(run).splits["validation"].intervals is None
    assert (run / INTERVALS_FILE).is_file()
