"""The report's plots: what they show and how they are drawn."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

from stage2_temporal.report.page import environment
from stage2_temporal.report.plots import MAX_POINTS, Plot, curves, scatters, timeline
from stage2_temporal.report.svg import ticks
from stage2_temporal.runs.results import read_results
from tests.report_runs import body, make_run


def plot_svg(plot: Plot) -> str:
    """A plot as the page draws it."""
    panel = environment().get_template("predictions.html.jinja").module.panel  # type: ignore[attr-defined]
    return str(panel(plot, 3))


def test_sequence_with_many_labels_is_plotted_over_time(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, dense=True, clips=60)
    plot = timeline(read_results(folder), store, 0)
    assert plot is not None
    assert plot.series[0].x[:2] == [0.7, 0.8] and len(plot.series[0].x) == 60
    assert "Over time" in body(folder, store)
    assert timeline(read_results(make_run(tmp_path / "clips")[0]), store, 0) is None


def test_large_cloud_is_thinned_evenly_with_a_note(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path, clips=2500)
    plot = scatters(read_results(folder), 0)[0]
    assert len(plot.series[1].x) == MAX_POINTS and "Shows 2,000 of 2,500 examples." in plot.note


def test_histogram_counts_every_example(tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path)[0])
    histogram = scatters(results, 0)[1]
    assert [sum(s.y) for s in histogram.series] == [40, 40]
    constant = results.constant
    assert constant is not None
    first, width = histogram.series[0].x[0], histogram.series[0].x[1] - histogram.series[0].x[0]
    inside = sum(first - width / 2 <= e.predicted[0] - e.true[0] < first + width / 2 for e in results.verdict_examples)
    assert histogram.series[0].y[0] == inside


def test_losses_over_a_wide_range_get_a_logarithmic_axis(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path)
    (folder / "history.csv").write_text(
        "epoch,loss,rmse,val_loss,val_rmse,seconds\n1,5000,3,,3,1\n2,4,2,5,2,1\n3,3,2,4,2,1\n"
    )
    loss, rmse = curves(read_results(folder))
    assert loss.log and not rmse.log
    assert math.isnan(loss.series[1].y[0])
    assert ">1000</text>" in plot_svg(loss)


def test_long_tick_labels_leave_room_for_the_axis_title(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path)
    (folder / "history.csv").write_text(
        "epoch,loss,rmse,val_loss,val_rmse,seconds\n1,0.02,3,0.02,3,1\n2,0.0002,2,0.0002,2,1\n"
    )
    loss, rmse = (plot_svg(plot) for plot in curves(read_results(folder)))
    places = [float(x) for x, label in re.findall(r'<text x="([\d.]+)"[^>]* class="end">([^<]+)<', loss)]
    assert "0.0005</text>" in loss and min(places) >= 60  # 6 digits of 7 units end here; the title takes 16 units
    assert '<text x="46"' in rmse


def test_one_epoch_gives_no_curve(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    (folder / "history.csv").write_text("epoch,loss,rmse,val_loss,val_rmse,seconds\n1,5,3,4,3,1\n")
    assert curves(read_results(folder)) == []
    assert "so there is no learning curve" in body(folder, store)


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_round_and_inside(log: bool) -> None:
    values = ticks((0.13, 872.0), 6, log=log)
    assert values == ([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500] if log else [200, 400, 600, 800])


def test_columns_of_a_plot_have_their_values_as_title(tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path)[0])
    _, rmse = curves(results)
    titles = re.findall(r"<title>(.*?)</title>", plot_svg(rmse))
    assert len(titles) == 12 and titles[9].startswith("epoch 10: training ")
    assert titles[9].endswith(f"constant {results.metrics.splits['validation'].constant.rmse:.4g}")
    histogram = scatters(results, 0)[1]
    titles = re.findall(r"<title>(.*?)</title>", plot_svg(histogram))
    bars = re.findall(r"^(\S+) to (\S+): model (\d+), constant (\d+)$", "\n".join(titles), flags=re.M)
    assert len(bars) == len(titles) == len(histogram.series[0].x)
    assert sum(int(n) for _, _, n, _ in bars) == sum(int(n) for *_, n in bars) == 40
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bars))
    assert "<title>" not in plot_svg(scatters(results, 0)[0])
