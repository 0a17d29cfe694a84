"""The leaderboard: which runs are compared, how they rank against the constant, and what is printed and written."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

from features.config import Config
from framebank.cli import main
from stage2_temporal.report import leaderboard_page
from stage2_temporal.report.search_plots import SearchedSetting
from stage2_temporal.runs.leaderboard import boards, describe_best, find_runs, row_label
from stage2_temporal.runs.pruned import PrunedMetrics, write_pruned
from tests.leaderboard_runs import write_run, write_runs


def test_rows_are_ranked_with_the_constant_among_them(tmp_path: Path) -> None:
    runs, errors = find_runs(write_runs(tmp_path))
    assert errors == [] and len(runs) == 4 + 6
    all_boards = boards(runs)
    assert [(b.target, b.split, b.folds) for b in all_boards] == [
        (("ego_speed",), "validation", 0),
        (("ego_speed",), "validation", 2),
        (("ego_speed",), "test", 0),
        (("ego_speed",), "test", 2),
        (("vx", "vy"), "validation", 0),
        (("vx", "vy"), "test", 0),
    ]
    board = all_boards[0]
    assert [(row.rank, row.head, round(row.skill, 3)) for row in board.rows] == [
        (1, "pooled_lstm", 0.8),
        (2, "flatten_lstm", 0.4),
        (None, "constant", 0.0),
        (3, "pooled_lstm", -0.3),
    ]
    assert board.constant.metrics["rmse"] == (4.0, None)
    assert [row.settings for row in board.rows if row.rank] == [{"units": 64}, {}, {"units": 8}]


def test_folds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    runs, _ = find_runs(write_runs(tmp_path))
    board = boards(runs)[1]
    best = board.rows[0]
    assert (best.settings, len(best.runs), best.seconds) == ({"units": 32, "learning_rate": 0.032}, 2, 2.5)
    assert best.metrics["skill"] == pytest.approx((0.75, statistics.stdev([0.7, 0.8])))
    assert board.constant.metrics["rmse"] == pytest.approx((4.5, statistics.stdev([4.0, 5.0])))
    assert board.examples == 40  # each fold validates on other examples
    assert boards(runs)[3].examples == 20  # but all folds are tested on the same
    assert row_label(best) == "pooled_lstm units=32 learning_rate=0.032"


def test_seeds_share_a_row_but_copies_and_other_folders_do_not(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"run-{seed}", seed / 10, train={"seed": seed})
    write_run(tmp_path / "run-copy", 0.1, train={"seed": 1})
    write_run(tmp_path / "sweep" / "run", 0.1, train={"seed": 5})
    rows = boards(find_runs(tmp_path)[0])[0].rows
    assert sorted(len(row.runs) for row in rows) == [0, 1, 1, 3]


def test_runs_scored_on_other_labels_are_on_another_board(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.1)
    write_run(tmp_path / "b", 0.9, labels="b")
    all_boards = boards(find_runs(tmp_path)[0])
    assert [(b.split, len(b.rows)) for b in all_boards] == [
        ("validation", 2), ("validation", 2), ("test", 2), ("test", 2),
    ]  # fmt: skip


def test_best_so_far_ignores_settings_with_missing_folds(tmp_path: Path) -> None:
    runs = [run for run in find_runs(write_runs(tmp_path))[0] if run.path.parent.name == "sweep"]
    assert describe_best([]) == ""
    assert describe_best(runs).startswith("best skill 0.750, ")
    without_a_fold_of_the_best = [run for run in runs if run.path.name != "32-0"]
    best = describe_best(without_a_fold_of_the_best)
    assert best.startswith("best skill 0.700, ")
    assert best.endswith("(constant 4.500): pooled_lstm units=64 learning_rate=0.064")


def test_csv_and_terminal_show_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text("[]")
    assert main(["leaderboard", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert f"{tmp_path}/broken/metrics.json" in printed.err
    assert printed.out.splitlines()[-1] == f"{tmp_path}/leaderboard.html"
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * (4 + 4 + 2)
    constants = [row for row in rows if row["head"] == "constant"]
    board_columns = ("target", "split", "folds")
    assert {tuple(r[c] for c in board_columns) for r in constants} == {tuple(r[c] for c in board_columns) for r in rows}
    best = next(r for r in rows if (r["split"], r["folds"], r["rank"]) == ("validation", "2", "1"))
    assert float(best["skill"]) == pytest.approx(0.75)
    assert (best["run"], best["report"]) == ("sweep/32-1", "sweep/32-1/report.html")
    assert (best["ev"], best["parameters"], best["runs"]) == ("", "1234", "2")
    velocity = next(r for r in rows if r["target"] == "vx vy" and r["head"] == "constant" and r["split"] == "test")
    assert float(velocity["ev"]) == 5.0
    line = next(line for line in printed.out.splitlines() if "units 32" in line)
    assert line.split()[0] == "1" and "0.750 ± 0.071" in line and line.split()[-1] == "sweep/32-1"


def test_target_option_selects_boards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path)
    for target in ("velocity", "vx,vy"):
        assert main(["leaderboard", "--runs", str(tmp_path), "--target", target]) == 0
        assert "ego_speed" not in capsys.readouterr().out
    assert main(["leaderboard", "--runs", str(tmp_path), "--target", "x"]) == 2
    assert "expected one of ego_speed; vx, vy" in capsys.readouterr().err


def test_folder_without_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--runs", str(tmp_path / "none")]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_page_escapes_names_and_links_reports(tmp_path: Path) -> None:
    runs, _ = find_runs(write_runs(tmp_path))
    html = leaderboard_page.leaderboard_html(boards(runs), tmp_path)
    assert "bad &amp; &lt;b&gt;worse&lt;/b&gt;" in html and "<b>" not in html
    assert 'href="good/report.html"' in html and 'href="sweep/32-1/report.html"' in html
    assert html.count('<tr class="constant">') == 6
    assert "http" not in html.replace("http-equiv", "")


def test_page_warns_if_no_model_beats_the_constant(tmp_path: Path) -> None:
    write_run(tmp_path / "bad", -0.5)
    html = leaderboard_page.leaderboard_html(boards(find_runs(tmp_path)[0]), tmp_path)
    assert "No model beats the constant predictor" in html


def test_pruned_runs_come_last_and_are_not_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path)
    for epoch, skill in ((2, 0.3), (5, 0.99)):
        config = Config.model_validate({"head": {"units": 100 + epoch}})
        write_pruned(
            tmp_path / "sweep" / f"p{epoch}", config, PrunedMetrics(epoch=epoch, epochs=9, skill=skill, seconds=1)
        )
    (tmp_path / "sweep" / "broken").mkdir()
    (tmp_path / "sweep" / "broken" / "pruned.json").write_text("{}")
    assert main(["leaderboard", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "broken/pruned.json" in printed.err
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    pruned = [row for row in rows if row["pruned_epoch"]]
    assert [(r["rank"], r["pruned_epoch"], r["skill"], r["run"]) for r in pruned] == [
        ("", "5", "0.99", "sweep/p5"), ("", "2", "0.3", "sweep/p2"),
    ]  # fmt: skip
    first = [row for row in rows if (row["target"], row["split"]) == ("ego_speed", "validation")]
    at = rows.index(pruned[0])
    assert rows[at + 1] == pruned[1] and rows[at + 2]["rank"] == "1" and pruned[0] in first
    line = next(line for line in printed.out.splitlines() if line.endswith("sweep/p5"))
    assert line.split()[0] == "pruned" and "units 105, stopped after epoch 5" in line
    assert '<tr class="pruned">' in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def test_page_of_a_search_shows_importances_and_slices(tmp_path: Path) -> None:
    runs, _ = find_runs(write_runs(tmp_path))
    skills, pruned = (0.1, 0.8, -5.0), (False, False, True)
    settings = [
        SearchedSetting("train.learning_rate", 0.75, (1e-4, 1e-2, 1e-3), skills, pruned),
        SearchedSetting("head.grid", 0.25, (0, 1, 1), skills, pruned, ("[1, 1]", "[3, 4]")),
    ]
    rate, grid = (setting.plot for setting in settings)
    assert rate.x_log and not grid.x_log
    assert [(s.name, s.x) for s in rate.series] == [
        ("finished", [1e-4, 1e-2]), ("stopped early", [1e-3]), ("best", [1e-2]),
    ]  # fmt: skip
    assert rate.y_range[0] > -1 and "skills below -0.2 are drawn there" in rate.note  # one bad run hides no other
    assert "0 is [1, 1]; 1 is [3, 4]" in grid.note
    html = leaderboard_page.leaderboard_html(boards(runs), tmp_path, settings)
    assert "Which settings matter" in html and "0.75" in html and html.count('<figure class="panel') == 2
    assert "Which settings matter" not in leaderboard_page.leaderboard_html(boards(runs), tmp_path)


@pytest.mark.parametrize("case", ["mixed units", "unknown error"])
def test_error_that_has_no_value_is_left_out(tmp_path: Path, case: str) -> None:
    """With mixed units a sum of errors means nothing; a damaged file may have none either."""
    run = write_run(tmp_path / "a", data={"target": ["vx", "x"]} if case == "mixed units" else {})
    if case == "unknown error":
        metrics = run / "metrics.json"
        metrics.write_text(metrics.read_text().replace('"constant": {"rmse": 5.0', '"constant": {"rmse": null'))
    runs, _ = find_runs(tmp_path)
    html = leaderboard_page.leaderboard_html(boards(runs), tmp_path)
    assert html.count('<p class="lede">Best: ') == 2
    assert ("(constant " in html) == (case == "unknown error")  # of the other split
    assert describe_best(runs).startswith("best skill ")
