"""The report: what a run found, in one page."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from features.config import Config
from features.errors import DataError
from features.sequences import Label, Sequence
from stage2_temporal.metrics import as_json, scores, verdict
from stage2_temporal.report import write_report
from stage2_temporal.report.clips import pick, strip
from stage2_temporal.report.draw import figure, svg, ticks
from stage2_temporal.report.plots import POINTS, curves, scatters, thin, timeline
from stage2_temporal.report.results import Example, read_results

VELOCITY = ("vx", "vy")


def road(frame: int, speed: float, distance: float) -> bytes:
    """A thumbnail: a road whose dashes pass by, and a car ahead."""
    picture = np.full((90, 160, 3), (178, 160, 140), np.uint8)
    picture[42:] = (82, 84, 86)
    for k in range(5):
        depth = 3 + 6 * k + 6 - (speed * frame * 0.1) % 6
        width, row = round(30 / depth), round(42 + 130 / depth)
        cv2.rectangle(picture, (80 - 150 // max(1, round(depth)) - width, row), (80 - 40 // round(depth), row + 2),
                      (230, 230, 230), -1)  # fmt: skip
    half, foot = 170 / distance, 42 + 130 / distance
    cv2.rectangle(
        picture, (round(90 - half), round(foot - 1.6 * half)), (round(90 + half), round(foot)), (40, 30, 150), -1
    )
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


class Stored:
    """Sequences and thumbnails as a store holds them, without the file."""

    def __init__(self, sequences: tuple[Sequence, ...]) -> None:
        self.sequences = sequences
        self.first = np.cumsum([0, *(s.length for s in sequences)])[:-1]
        self.asked: list[int] = []

    def index(self, sequence_id: str) -> int:
        return [s.id for s in self.sequences].index(sequence_id)

    def thumbnail(self, row: int) -> bytes:
        self.asked.append(row)
        at = int(np.searchsorted(self.first, row, side="right")) - 1
        targets = self.sequences[at].labels[0].targets
        return road(row - int(self.first[at]), targets.get("ego_speed", 14.0), 12 + 7 * (at % 6))


def make_run(
    folder: Path,
    target: tuple[str, ...] = ("ego_speed",),
    *,
    noise: float = 0.35,
    shrink: float = 0.9,
    clips: int = 40,
    length: int = 8,
    dense: bool = False,
    **changes: Any,
) -> tuple[Path, Stored]:
    """A run's folder as training writes it, its figures computed from its own predictions, and its store.

    Args:
        noise: deviation of the predictions' noise in deviations of the target.
        shrink: factor towards the mean: 0 is a constant predictor.
        dense: one sequence a split with a label for every frame, instead of clips with one each.
        changes: keys of metrics.json to set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(target))
    mean, deviation = (np.array([18.0]), np.array([7.5])) if len(target) == 1 else (np.zeros(2), np.array([2.3, 0.3]))
    sequences, rows, splits = [], [], {}
    train: Any = None
    for split, count in (("train", 3 * clips), ("validation", clips), ("test", clips)):
        true = mean + deviation * rng.normal(size=(count, len(target)))
        if dense:
            true = mean + deviation * np.sin(np.arange(count) / 9)[:, None]
        train = true if train is None else train
        constant = train.mean(axis=0)
        predicted = constant + shrink * (true - constant + noise * deviation * rng.normal(size=true.shape))
        for i in range(count):
            name = split if dense else f"{split}/{i + 1}"
            last = i + length - 1 if dense else length - 1
            rows.append([split, name, i if dense else 0, last, last - length + 1, 1, length,
                         *np.ravel(list(zip(true[i], predicted[i], strict=True))), 30 + i])  # fmt: skip
        labels = [
            Label(length - 1, dict(zip(target, map(float, t), strict=True)), box=(560, 340, 840, 610)) for t in true
        ]
        if dense:
            sequences.append(Sequence(split, split, count + length, 10.0, (1280, 720), "0" * 64, tuple(labels)))
        else:
            sequences += [
                Sequence(f"{split}/{i + 1}", split, length, 10.0, (1280, 720), "0" * 64, (v,))
                for i, v in enumerate(labels)
            ]
        position = np.column_stack([rng.uniform(8, 70, count), np.zeros(count)])
        model = scores(true, predicted, constant, target, position)
        blank = scores(true, np.broadcast_to(constant, true.shape), constant, target, position)
        splits[split] = {"examples": count, "model": as_json(model), "constant": as_json(blank)}
    sentence, constant_like = verdict("test", model)
    metrics = {
        "target": target, "unit": "m/s", "head": "pooled_lstm", "backbone": "EfficientNetLite0", "weights": "imagenet",
        "trained_backbone": True, "parameters": {"total": 5_020_673, "trainable": 1_739_265, "frozen": 3_281_408},
        "epochs": 12, "best_epoch": 10, "seconds": 41.2,
        "store": {"path": "stores/sample.h5", "fingerprint": "5f" * 32, "frames": 2560, "sequences": 320},
        "splits": splits, "verdict": sentence, "no_better_than_constant": constant_like, **changes,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.toml").write_text(Config().to_toml())
    with (folder / "history.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["epoch", "loss", "rmse", "val_loss", "val_rmse", "seconds"])
        for epoch in range(1, 13):
            error = deviation[0] * (0.3 + 0.9 * math.exp(-epoch / 4))
            later = 1.08 * error + 0.05 * abs(epoch - 10)
            writer.writerow([epoch, error**2 / deviation[0] ** 2, error, later**2 / deviation[0] ** 2, later, 3.4])
    write_predictions(folder, target, rows)
    return folder, Stored(tuple(sequences))


def write_predictions(folder: Path, target: tuple[str, ...], rows: list[list[Any]]) -> None:
    head = ["split", "sequence", "label", "frame", "first", "stride", "length"]
    values = [f"{c}_{kind}" for c in target for kind in ("true", "pred")]
    with (folder / "predictions.csv").open("w", newline="") as f:
        csv.writer(f).writerows([[*head, *values, "distance"], *rows])


def read_predictions(folder: Path) -> list[list[str]]:
    with (folder / "predictions.csv").open(newline="") as f:
        return list(csv.reader(f))[1:]


def body(folder: Path, store: Stored) -> str:
    """The report without plotly's own code."""
    text = write_report(folder, store).read_text(encoding="utf-8")
    return re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", text, count=1, flags=re.S)


def row(page: str, split: str, predictor: str) -> str:
    """A split's first row of the table of metrics for a predictor."""
    group = next(part for part in page.split("<tbody")[1:] if f'rowspan="2">{split}<' in part)
    return re.search(rf'<tr class="{predictor}">(.*?)</tr>', group, flags=re.S)[1]  # type: ignore[index]


def test_each_split_has_its_row_beside_the_constant_and_test_is_first(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path / "night-drive"))
    metrics = json.loads((tmp_path / "night-drive" / "metrics.json").read_text())
    for split, figures in metrics["splits"].items():
        for predictor in ("model", "constant"):
            cells = re.findall(r"<td>(.*?)</td>", row(page, split, predictor))
            wanted = [figures[predictor][k] for k in ("rmse", "mae", "skill", "spread_ratio")]
            assert cells == [f"{v:.3f}".replace("-", "−") for v in wanted]
    order = re.findall(r'class="split" rowspan="2">(\w+)<', page)
    assert order == ["test", "validation", "train"]
    assert '<tbody class="counts">' in page.split('rowspan="2">validation')[0]
    assert "<h1>night-drive</h1>" in page
    assert "5,020,673" in page and "5f" * 32 in page and 'layout = "sample"'.replace('"', "&#34;") in page


def test_each_component_has_its_figures_and_its_plots(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path, VELOCITY))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for split in metrics["splits"].values():
        for predictor in ("model", "constant"):
            for column in VELOCITY:
                assert f"<td>{split[predictor]['components'][column]['rmse']:.3f}</td>" in page
            assert f"<td>{split[predictor]['ev']['mean']:.2f}</td>" in page
    assert page.count("<h4>Predicted against true</h4>") == 2
    assert page.count('class="plot"') == page.count("<svg") == 8


def test_a_constant_like_model_is_called_one(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path / "flat", shrink=0.05))
    assert '<p class="banner bad"><strong>No better than a constant on the test split</strong>The predictions' in page
    page = body(*make_run(tmp_path / "good"))
    assert 'class="banner bad"' not in page
    assert '<p class="banner"><strong>Better than a constant on the test split</strong>Skill 0.' in page


def test_an_untrained_backbone_is_named_loudly(tmp_path: Path) -> None:
    trained = body(*make_run(tmp_path / "a"))
    random = body(*make_run(tmp_path / "b", weights="random", trained_backbone=False))
    assert "Untrained backbone" not in trained
    assert '<p class="banner bad"><strong>Untrained backbone</strong>' in random


def test_what_comes_from_data_is_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    folder, store = make_run(tmp_path / "a<b", verdict=evil, head=evil)
    store.sequences = tuple(Sequence(evil + s.id, *list(vars(s).values())[1:]) for s in store.sequences)
    rows = read_predictions(folder)
    write_predictions(folder, ("ego_speed",), [[r[0], evil + r[1], *r[2:]] for r in rows])
    page = body(folder, store)
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<h1>a&lt;b</h1>" in page


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path))
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+/", page)
    assert "default-src 'none'" in page
    assert set(re.findall(r'src="([a-z]+:)', page)) == {"data:"}


def test_unknown_values_are_dashes_and_leave_no_trace_in_plots(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    nothing = dict.fromkeys(("rmse", "mae", "skill", "spread_ratio")) | {"components": {}, "ev": None}
    metrics["splits"]["test"] |= {"model": nothing, "constant": nothing}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = (folder / "history.csv").read_text().splitlines()
    (folder / "history.csv").write_text("\n".join([lines[0], *(f"{i},{2 / i},{3 / i},,,1" for i in (1, 2, 3))]))
    rows = read_predictions(folder)
    blank = {id(r) for r in rows if r[0] == "test"} | {id(r) for r in rows if r[1] in ("validation/1", "validation/2")}
    write_predictions(folder, ("ego_speed",), [[*r[:7], "", *r[8:]] if id(r) in blank else r for r in rows])

    results = read_results(folder)
    assert results.splits == ["validation", "train", "test"]
    assert len(results.counted) == 38
    cloud = scatters(results, 0)[0].series[1]
    assert len(cloud.x) == 38 and not any("validation/1," in t for t in cloud.text or [])
    assert [s.name for s in curves(results)[0].series] == ["training", "kept"]
    assert "training split" not in curves(results)[1].note and "train split" in curves(results)[1].note
    page = body(folder, store)
    assert re.findall(r"<td>(.*?)</td>", row(page, "test", "model")) == ["–"] * 4
    assert "NaN" not in page and "None" not in page


def test_a_run_without_labels_or_epochs_still_has_a_report(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, splits={})
    (folder / "history.csv").write_text("epoch,loss,rmse,val_loss,val_rmse,seconds\n")
    page = body(folder, store)
    assert "No example of this run has a label" in page and "<svg" not in page and "Plotly" not in page


def test_the_worst_clips_show_their_own_frames(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    page = body(folder, store)
    known = read_results(folder).counted
    ranked = sorted(known, key=lambda e: -e.error)
    shown = re.findall(r'<div class="values">\s*<h4>(.*?)</h4>', page)
    assert shown == [e.sequence for e in ranked[:8]] + [e.sequence for e in ranked[:-4:-1]]
    rows = [int(store.first[store.index(e.sequence)]) + f for e in [*ranked[:8], *ranked[:-4:-1]] for f in range(8)]
    assert store.asked == rows
    assert page.count("data:image/jpeg;base64,") == 88
    assert page.count('class="box" style="left:43.75%;top:47.22%;width:21.88%;height:37.50%"') == 11
    assert f"{ranked[0].true[0]:.2f}" in page and f"{ranked[0].predicted[0]:.2f}" in page


def test_targets_of_several_units_have_none(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path, unit=None))
    assert "None" not in page and ">RMSE</th>" in page


def test_the_validation_that_chose_the_epoch_counts_before_the_stored_one(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["splits"]["validation-store"] = metrics["splits"].pop("test")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert read_results(folder).splits == ["validation", "validation-store", "train"]


def example(sequence: str, first: int, error: float, stride: int = 1) -> Example:
    return Example("test", sequence, 0, first + 7, first, stride, 8, (0.0,), (error,), math.nan)


def test_no_two_worst_clips_share_a_frame() -> None:
    rows = [example("a", 0, 9.0), example("a", 1, -10.0), example("b", 1, 8.0), example("a", 20, 1.0)]
    assert pick(rows, 3, worst=True) == [rows[1], rows[2], rows[3]]
    assert pick(rows, 1, worst=False) == [rows[3]]


def test_long_windows_are_thinned_to_a_strip() -> None:
    assert strip(range(4)) == [0, 1, 2, 3]
    assert strip(range(0, 80, 2)) == [0, 12, 22, 34, 44, 56, 66, 78]


def test_a_long_sequence_is_plotted_over_time(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, dense=True, clips=60)
    plot = timeline(read_results(folder), store, 0)
    assert plot is not None
    assert plot.series[0].x[:2] == [0.7, 0.8] and len(plot.series[0].x) == 60
    assert "Over time" in body(folder, store)
    assert timeline(read_results(make_run(tmp_path / "clips")[0]), store, 0) is None


def test_a_cloud_is_thinned_evenly_and_says_so(tmp_path: Path) -> None:
    assert thin(5) == [0, 1, 2, 3, 4]
    assert len(set(thin(POINTS * 3 + 1))) == POINTS and thin(2 * POINTS)[:2] == [0, 2]
    folder, _ = make_run(tmp_path, clips=2500)
    plot = scatters(read_results(folder), 0)[0]
    assert len(plot.series[1].x) == POINTS and "2,000 of 2,500 examples are drawn" in plot.note


def test_the_histogram_counts_every_example(tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path)[0])
    histogram = scatters(results, 0)[1]
    assert [sum(v or 0 for v in s.y) for s in histogram.series] == [40, 40]
    constant = results.constant
    assert constant is not None
    first, width = histogram.series[0].x[0], histogram.series[0].x[1] - histogram.series[0].x[0]
    inside = sum(first - width / 2 <= e.predicted[0] - e.true[0] < first + width / 2 for e in results.counted)
    assert histogram.series[0].y[0] == inside


def test_wide_losses_get_a_logarithmic_axis(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path)
    (folder / "history.csv").write_text("epoch,loss,rmse,val_loss,val_rmse\n1,5000,3,nan,3\n2,4,2,5,2\n3,3,2,4,2\n")
    loss, rmse = curves(read_results(folder))
    assert loss.log and not rmse.log
    assert loss.series[1].y[0] is None
    assert figure(loss)["layout"]["yaxis"]["type"] == "log"
    assert ">1000</text>" in svg(loss)


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_round_and_inside(log: bool) -> None:
    found = ticks((0.13, 872.0), 6, log=log)
    assert found == ([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500] if log else [200, 400, 600, 800])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.json", "{", "Invalid JSON"),
        ("metrics.json", '{"target": "x"}', "target"),
        ("predictions.csv", "split,sequence\n", "no column label"),
        ("history.csv", "epoch,loss,rmse,val_loss,val_rmse\n1,fast,2,3,4\n", "line 2: could not convert"),
        ("config.toml", None, "no such file"),
    ],
)
def test_a_broken_run_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    folder, store = make_run(tmp_path)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        write_report(folder, store)
    assert name in str(caught.value) and "Mend:" in str(caught.value)
    assert not (folder / "report.html").exists()
