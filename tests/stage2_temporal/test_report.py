"""The report page: metrics, verdict, and what it does with unknown or hostile values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from features.errors import DataError
from features.sequences import FrameSequence
from stage2_temporal.report import write_report
from stage2_temporal.report.plots import curves, scatters
from stage2_temporal.runs.results import read_results
from tests.report_runs import VELOCITY, body, make_run, read_predictions, row, script_data, write_predictions


def test_each_split_has_rows_for_model_and_constant_and_test_is_first(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path / "night-drive"))
    metrics = json.loads((tmp_path / "night-drive" / "metrics.json").read_text())
    for split, scores in metrics["splits"].items():
        for predictor in ("model", "constant"):
            cells = re.findall(r"<td>(.*?)</td>", row(page, split, predictor))
            values = [scores[predictor][k] for k in ("rmse", "mae", "skill", "spread_ratio")]
            assert cells == [f"{v:.3f}".replace("-", "−") for v in values]
    order = re.findall(r'class="split" rowspan="2">(\w+)<', page)
    assert order == ["test", "validation", "train"]
    assert '<tbody class="verdict-split">' in page.split('rowspan="2">validation')[0]
    assert "<h1>night-drive</h1>" in page
    assert "5,020,673" in page and "5f" * 32 in page and 'layout = "sample"'.replace('"', "&#34;") in page


def test_each_component_has_metrics_and_plots(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path, VELOCITY))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for split in metrics["splits"].values():
        for predictor in ("model", "constant"):
            for column in VELOCITY:
                assert f"<td>{split[predictor]['components'][column]['rmse']:.3f}</td>" in page
    assert page.count("<h4>Predicted against true</h4>") == 2
    assert page.count('class="plot"') == page.count('" aria-hidden="true" data-component=') + 2 == 8


def test_errors_by_distance_are_shown_for_model_and_constant(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, VELOCITY)
    page = body(folder, store)
    assert page.count("[(m/s)²]") == 1 and "EP [" not in page
    metrics = json.loads((folder / "metrics.json").read_text())
    for split in metrics["splits"].values():
        split["model"]["ep"] = {"near": 1.25, "medium": 4.5, "far": None, "mean": None}
        split["constant"]["ep"] = {"near": 7.5, "medium": 80.0, "far": None, "mean": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    ev, ep = body(folder, store).split('<h3 id="by-distance">')[1].split("</section>")[0].split("EP [m²]")
    bands = ("near", "medium", "far", "mean")
    for name, split in metrics["splits"].items():
        for predictor in ("model", "constant"):
            for table, measure in ((ev, "ev"), (ep, "ep")):
                values = [split[predictor][measure][band] for band in bands]
                expected = ["–" if v is None else f"{v:.3f}" for v in values]
                assert re.findall(r"<td>(.*?)</td>", row(table, name, predictor)) == expected
    assert 'id="by-distance"' not in body(*make_run(tmp_path / "speed"))


def test_banner_tells_whether_the_model_beats_the_constant(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path / "flat", shrink=0.05))
    assert '<p class="banner bad"><strong>No better than a constant on the test split</strong>The predictions' in page
    page = body(*make_run(tmp_path / "good"))
    assert 'class="banner bad"' not in page
    assert '<p class="banner"><strong>Better than a constant on the test split</strong>Skill 0.' in page


def test_untrained_backbone_has_a_warning_banner(tmp_path: Path) -> None:
    trained = body(*make_run(tmp_path / "a"))
    random = body(*make_run(tmp_path / "b", weights="random", trained_backbone=False))
    assert "Untrained backbone" not in trained
    assert '<p class="banner bad"><strong>Untrained backbone</strong>' in random


def test_values_from_data_are_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    folder, store = make_run(tmp_path / "a<b", verdict=evil, head=evil)
    store.sequences = tuple(FrameSequence(evil + s.id, *list(vars(s).values())[1:]) for s in store.sequences)
    rows = read_predictions(folder)
    write_predictions(folder, ("ego_speed",), [[r[0], evil + r[1], *r[2:]] for r in rows])
    page = write_report(folder, store).read_text()
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<h1>a&lt;b</h1>" in page


def test_page_loads_no_other_files(tmp_path: Path) -> None:
    page = write_report(*make_run(tmp_path)).read_text()
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src &#39;none&#39;" in page
    assert set(re.findall(r'src="([a-z]+:)', page)) == {"data:"}


def test_unknown_values_are_dashes_and_missing_from_plots(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    nothing = dict.fromkeys(("rmse", "mae", "skill", "spread_ratio")) | {"components": {}, "ev": None}
    metrics["splits"]["test"] |= {"model": nothing, "constant": nothing}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = (folder / "history.csv").read_text().splitlines()
    (folder / "history.csv").write_text("\n".join([lines[0], *(f"{i},{2 / i},{3 / i},,,1" for i in (1, 2, 3))]))
    rows = read_predictions(folder)
    without_label = {id(r) for r in rows if r[0] == "test"} | {
        id(r) for r in rows if r[1] in ("validation/1", "validation/2")
    }
    write_predictions(folder, ("ego_speed",), [[*r[:7], "", *r[8:]] if id(r) in without_label else r for r in rows])

    results = read_results(folder)
    assert results.splits == ["validation", "train", "test"]
    assert len(results.verdict_examples) == 38
    assert len(scatters(results, 0)[0].series[1].x) == 38
    assert [s.name for s in curves(results)[0].series] == ["training", "saved model"]
    assert "training split" not in curves(results)[1].note and "train split" in curves(results)[1].note
    page = body(folder, store)
    assert re.findall(r"<td>(.*?)</td>", row(page, "test", "model")) == ["–"] * 4
    assert "NaN" not in page and "None" not in page
    data = script_data(folder)
    assert data["dots"] == len(data["clips"]) == 38
    assert not {"validation/1", "validation/2"} & {c["name"] for c in data["clips"]}


def test_run_without_labels_or_epochs_has_a_report(tmp_path: Path) -> None:
    folder, store = make_run(tmp_path, splits={})
    (folder / "history.csv").write_text("epoch,loss,rmse,val_loss,val_rmse,seconds\n")
    page = body(folder, store)
    assert (
        "No example of this run has a label" in page
        and "<svg" not in page
        and "<script" not in (folder / "report.html").read_text()
    )


def test_mixed_units_are_omitted_from_titles(tmp_path: Path) -> None:
    page = body(*make_run(tmp_path, unit=None))
    assert "None" not in page and ">RMSE</th>" in page


def test_verdict_prefers_the_validation_split_that_chose_the_epoch(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["splits"]["validation-store"] = metrics["splits"].pop("test")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert read_results(folder).splits == ["validation", "validation-store", "train"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", "not JSON"),
        ("metrics.json", '{"target": "x"}', "target"),
        ("predictions.csv", "split,sequence\n", "no column label"),
        ("history.csv", "epoch,loss,rmse,val_loss,val_rmse,seconds\n1,fast,2,3,4,5\n", "line 2: could not convert"),
        ("config.toml", None, "no such file"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    folder, store = make_run(tmp_path)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        write_report(folder, store)
    assert name in str(caught.value) and "Try:" in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("mean", "reason"),
    [
        ([[0.1, 0.2], [0.3]], "not equally long"),
        ([], "or empty"),
        ([["<b>"]], "number"),
        ([[1e400]], "JSON"),
        ("x", "list"),
    ],
)
def test_damaged_occlusion_is_refused(tmp_path: Path, mean: object, reason: str) -> None:
    folder, store = make_run(tmp_path / "r")
    content = json.dumps({"examples": 4, "mean": mean, "clips": {}}).replace("Infinity", "1e400")
    (folder / "occlusion.json").write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        body(folder, store)
    assert "occlusion.json: " in str(caught.value) and "\n" not in str(caught.value)
