"""A run's card says what the run is, and holds no figure that is not in metrics.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.config import Config
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.runs.card import CARD, write_card
from stage2_temporal.train import evaluate, train
from tests.helpers import RECIPE, write_store
from tests.report_runs import VELOCITY, make_run
from tests.stage2_helpers import drifting_clips, train_config


def values(part: Any) -> Iterator[Any]:
    """All values of a JSON document, and the keys of its objects."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield key
            yield from values(value)
    elif isinstance(part, list):
        for value in part:
            yield from values(value)
    else:
        yield part


def foreign_figures(run: Path) -> list[str]:
    """The numbers in a run's card that are no rounded number, nor part of a text, of its metrics.json."""
    text = (run / CARD).read_text(encoding="utf-8")
    known = list(values(json.loads((run / "metrics.json").read_text())))
    for name in sorted({run.name, *(v for v in known if isinstance(v, str) and len(v) > 3)}, key=len, reverse=True):
        text = text.replace(name, " ")
    numbers = [float(v) for v in known if isinstance(v, int | float) and not isinstance(v, bool)]
    wrong = []
    for token in re.findall(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?![\w.]*\w)", text):
        decimals, figure = len(token.partition(".")[2]), float(token.replace("−", "-"))
        if not any(abs(figure - number) <= 0.5001 * 10**-decimals for number in numbers):
            wrong.append(token)
    return wrong


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Config]:
    """A store, and a run of ridge regression on it that has intervals."""
    maps, sequences = drifting_clips({"train": 40, "validation": 12, "test": 12})
    folder = tmp_path_factory.mktemp("card")
    store = write_store(folder / "s.h5", sequences, {"appearance": maps}, trunk={"parameters": 1000, "cut": "after x"},
                        recipe=replace(RECIPE, weights_digest="5e" * 32))  # fmt: skip
    config = train_config({"name": "ridge"})
    with Store(store) as opened:
        train(config, opened, read_task(config, opened), folder / "ridge-run", report=False)
    return store, folder / "ridge-run", config


def test_card_of_a_trained_run_holds_only_figures_of_its_metrics(trained: tuple[Path, Path, Config]) -> None:
    run = trained[1]
    text = (run / CARD).read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text())
    assert foreign_figures(run) == []
    model, constant = metrics["splits"]["test"]["model"], metrics["splits"]["test"]["constant"]
    assert f"{model['rmse']:.3f}" in text and f"{constant['rmse']:.3f}" in text
    assert f"{metrics['splits']['test']['intervals']['ego_speed']['coverage']:.3f}" in text
    assert metrics["verdict"] in text and "UNTRAINED" in text and metrics["recipe"]["weights_digest"] in text


@pytest.mark.parametrize("target", [("ego_speed",), VELOCITY])
def test_card_of_an_older_run_holds_only_figures_of_its_metrics(tmp_path: Path, target: tuple[str, ...]) -> None:
    run, _ = make_run(tmp_path / "older-2-run", target)
    write_card(run)
    assert foreign_figures(run) == []


def test_a_figure_from_elsewhere_is_noticed(trained: tuple[Path, Path, Config], tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run")
    write_card(run)
    with (run / CARD).open("a", encoding="utf-8") as file:
        file.write("Skill 0.123456 on 31415 clips.\n")
    assert foreign_figures(run) == ["0.123456", "31415"]


def test_metadata_has_the_form_that_model_hubs_read(trained: tuple[Path, Path, Config]) -> None:
    run = trained[1]
    head = yaml.safe_load((run / CARD).read_text(encoding="utf-8").split("---\n")[1])
    metrics = json.loads((run / "metrics.json").read_text())
    assert head["library_name"] == "keras" and "framebank" in head["tags"] and "ridge" in head["tags"]
    ((index,), (result,)) = head["model-index"], head["model-index"][0]["results"]
    assert index["name"] == "ridge-run"
    assert set(result) == {"task", "dataset", "metrics"} and result["dataset"]["split"] == "test"
    assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["rmse"] == pytest.approx(metrics["splits"]["test"]["model"]["rmse"], abs=5e-4)
    assert set(found) == {"rmse", "mae", "skill"}


def test_card_is_written_again_with_the_metrics(trained: tuple[Path, Path, Config]) -> None:
    store, run, _ = trained
    before = (run / CARD).read_text(encoding="utf-8")
    (run / CARD).unlink()
    with Store(store) as opened:
        evaluate(run, opened)
    assert (run / CARD).read_text(encoding="utf-8") == before


def test_names_cannot_break_the_card(tmp_path: Path) -> None:
    name = 'a"b: [c]\n---\n<img src=x>|`x`'
    run, _ = make_run(tmp_path / "run", data={"name": name, "layout": "manifest"})
    write_card(run)
    text = (run / CARD).read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert "`a\"b: [c] --- <img src=x>|'x'`" in text  # as code, where markup means nothing


def test_loading_code_is_five_lines_and_valid(trained: tuple[Path, Path, Config]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (trained[1] / CARD).read_text(encoding="utf-8"), re.DOTALL)
    compile(code, "card", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
