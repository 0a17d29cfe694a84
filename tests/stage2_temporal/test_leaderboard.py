"""The leaderboard: what stands on one board, in which order, and beside which constant. Run folders made by hand."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from features.config import Config
from stage2_temporal.__main__ import main
from stage2_temporal.report import leaderboard_page
from stage2_temporal.runs.leaderboard import best_line, boards, find_runs, row_label


def write_run(path: Path, skill: float = 0.5, *, labels: str = "a", report: bool = False, **sections: Any) -> Path:
    """A run's folder as far as the leaderboard reads it; its validation constant depends on the fold alone."""
    config = Config.model_validate(sections)
    fold = config.train.fold
    constant = {"validation": 4.0 + fold, "test": 5.0}

    def scores(rmse: float, skill: float, spread: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rmse": rmse, "mae": rmse / 2, "skill": skill, "spread_ratio": spread}
        if config.data.columns == ("vx", "vy"):
            found["ev"] = {"near": 1.0, "medium": 2.0, "far": 3.0, "mean": rmse}
        return found

    def split(name: str, gain: float) -> dict[str, Any]:
        beside = constant[name]
        return {
            "examples": 20,
            "model": scores(beside * (1 - gain) ** 0.5, gain, 0.8),
            "constant": scores(beside, 0.0, 0.0),
        }

    path.mkdir(parents=True)
    (path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    metrics = {
        "target": config.data.columns,
        "unit": "m/s",
        "head": config.head.name,
        "backbone": "Tiny",
        "weights": "random",
        "trained_backbone": False,
        "parameters": {"total": 12_345, "trainable": 1_234, "frozen": 11_111},
        "epochs": 3,
        "best_epoch": 2,
        "seconds": 2.0 + fold,
        "store": {"path": "s.h5", "fingerprint": "f", "frames": 1, "sequences": 1},
        "splits": {"train": split("validation", 0.99), "validation": split("validation", skill)}
        | {"test": split("test", skill - 0.1)},
        "verdict": "",
        "no_better_than_constant": False,
        "labels": labels,
    }
    (path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if report:
        (path / "report.html").write_text("<title>report</title>", encoding="utf-8")
    return path


def fill(root: Path) -> Path:
    """Four single runs, one of them of another target, and a sweep of three settings on two folds."""
    write_run(root / "good", 0.8, report=True)
    write_run(root / "bad & <b>worse</b>", -0.3, head={"units": 8})
    write_run(root / "middling", 0.4, head={"name": "flatten_lstm"}, train={"seed": 3})
    write_run(root / "velocity", 0.1, data={"target": "velocity"})
    for units, skill in ((16, 0.6), (32, 0.7), (64, 0.65)):
        for fold in range(2):
            train = {"folds": 2, "fold": fold, "learning_rate": units / 1000}
            write_run(
                root / "sweep" / f"{units}-{fold}",
                skill + 0.1 * fold,
                head={"units": units},
                train=train,
                report=units == 32 and fold == 1,
            )
    (root / "sweep" / "failed").mkdir()
    (root / "sweep" / ".unfinished-x" / "16-0").mkdir(parents=True)
    (root / "sweep" / ".unfinished-x" / "16-0" / "metrics.json").write_text("{")
    return root


def test_rows_are_ranked_with_the_constant_among_them(tmp_path: Path) -> None:
    found, faults = find_runs(fill(tmp_path))
    assert faults == [] and len(found) == 4 + 6
    made = boards(found)
    assert [(b.target, b.split, b.folds) for b in made] == [
        (("ego_speed",), "validation", 0),
        (("ego_speed",), "validation", 2),
        (("ego_speed",), "test", 0),
        (("ego_speed",), "test", 2),
        (("vx", "vy"), "validation", 0),
        (("vx", "vy"), "test", 0),
    ]
    board = made[0]
    assert [(row.rank, row.head, round(row.skill, 3)) for row in board.rows] == [
        (1, "pooled_lstm", 0.8),
        (2, "flatten_lstm", 0.4),
        (None, "constant", 0.0),
        (3, "pooled_lstm", -0.3),
    ]
    assert board.constant.figures["rmse"] == (4.0, None)
    assert [row.settings for row in board.rows if row.rank] == [{"units": 256}, {}, {"units": 8}]


def test_folds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    found, _ = find_runs(fill(tmp_path))
    board = boards(found)[1]
    best = board.rows[0]
    assert (best.settings, len(best.runs), best.seconds) == ({"units": 32, "learning_rate": 0.032}, 2, 2.5)
    assert best.figures["skill"] == pytest.approx((0.75, statistics.stdev([0.7, 0.8])))
    constants = [4.0, 5.0]
    assert board.constant.figures["rmse"] == pytest.approx((4.5, statistics.stdev(constants)))
    assert board.examples == 40  # each fold holds out others
    assert boards(found)[3].examples == 20  # but all are tested on the same
    assert row_label(best) == "pooled_lstm units=32 learning_rate=0.032"


def test_seeds_are_one_row_and_copies_are_not(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"run-{seed}", seed / 10, train={"seed": seed})
    write_run(tmp_path / "run-copy", 0.1, train={"seed": 1})
    write_run(tmp_path / "sweep" / "run", 0.1, train={"seed": 5})
    rows = boards(find_runs(tmp_path)[0])[0].rows
    assert sorted(len(row.runs) for row in rows) == [0, 1, 1, 3]


def test_what_was_judged_on_other_examples_stands_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.1)
    write_run(tmp_path / "b", 0.9, labels="others")
    made = boards(find_runs(tmp_path)[0])
    assert [(b.split, len(b.rows)) for b in made] == [("validation", 2), ("validation", 2), ("test", 2), ("test", 2)]


def test_the_best_so_far_has_all_its_folds(tmp_path: Path) -> None:
    found, _ = find_runs(fill(tmp_path))
    runs = [run for run in found if run.path.parent.name == "sweep"]
    assert best_line([]) == ""
    lucky = [run for run in runs if run.path.name != "32-0"]
    assert best_line(lucky).startswith("best skill 0.700, ")
    assert best_line(lucky).endswith("beside the constant's 4.500 (pooled_lstm units=64 learning_rate=0.064)")
    assert best_line(runs).startswith("best skill 0.750, ")


def test_csv_and_terminal_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text("[]")
    assert main(["leaderboard", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"left out: {tmp_path}/broken/metrics.json: not what training writes")
    assert said.out.splitlines()[-1] == f"{tmp_path}/leaderboard.html"
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * (4 + 4 + 2)
    constants = [row for row in rows if row["head"] == "constant"]
    assert {(r["target"], r["split"], r["folds"]) for r in constants} == {
        (r["target"], r["split"], r["folds"]) for r in rows
    }
    best = next(r for r in rows if (r["split"], r["folds"], r["rank"]) == ("validation", "2", "1"))
    assert float(best["skill"]) == pytest.approx(0.75)
    assert (best["run"], best["report"]) == ("sweep/32-1", "sweep/32-1/report.html")
    assert (best["ev"], best["parameters"], best["runs"]) == ("", "1234", "2")
    velocity = next(r for r in rows if r["target"] == "vx vy" and r["head"] == "constant" and r["split"] == "test")
    assert float(velocity["ev"]) == 5.0
    line = next(line for line in said.out.splitlines() if "units 32" in line)
    assert line.split()[0] == "1" and "0.750 ± 0.071" in line


def test_one_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    for target in ("velocity", "vx,vy"):
        assert main(["leaderboard", "--runs", str(tmp_path), "--target", target]) == 0
        assert "ego_speed" not in capsys.readouterr().out
    assert main(["leaderboard", "--runs", str(tmp_path), "--target", "x"]) == 2
    assert "expected one of ego_speed; vx, vy" in capsys.readouterr().err


def test_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--runs", str(tmp_path / "none")]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main(["leaderboard", "--frobnicate"]) == 2


def test_the_page_escapes_and_links(tmp_path: Path) -> None:
    found, _ = find_runs(fill(tmp_path))
    html = leaderboard_page.leaderboard_html(boards(found), tmp_path)
    assert "bad &amp; &lt;b&gt;worse&lt;/b&gt;" in html and "<b>" not in html
    assert 'href="good/report.html"' in html and 'href="sweep/32-1/report.html"' in html
    assert html.count('<tr class="constant">') == 6
    assert "http" not in html.replace("http-equiv", "")


def test_a_board_that_nothing_beats_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "bad", -0.5)
    assert "Nothing here beats the constant" in leaderboard_page.leaderboard_html(
        boards(find_runs(tmp_path)[0]), tmp_path
    )
