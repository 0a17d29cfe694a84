"""A sweep's TOML file: the runs that it expands into, and the errors in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config, read_config
from features.errors import BadInputs, ConfigError
from features.strict_model import read_toml
from stage2_temporal.sweep.spec import Sweep, expand_entry, sweep_entries
from tests.helpers import ROOT


def sweep(*tables: dict[str, Any], **plan: Any) -> Sweep:
    return Sweep.model_validate({"sweep": plan, "entries": list(tables)})


def test_grid_is_every_combination_of_its_lists() -> None:
    table = {"head.units": [8, 16], "head.grid": [[1, 1], [3, 4]], "head.dense": 0}
    entries = sweep_entries(sweep(table, folds=3, seeds=[0, 7]), Config())
    assert len(entries) == 4 * 2 * 3
    heads = {(c.head.units, c.head.grid, c.head.dense) for c in entries.values()}
    assert heads == {(u, g, 0) for u in (8, 16) for g in ((1, 1), (3, 4))}
    repeats = [(c.train.seed, c.train.folds, c.train.fold) for c in entries.values()][:6]
    assert repeats == [(seed, 3, fold) for seed in (0, 7) for fold in range(3)]
    assert re.fullmatch(r"pooled_lstm-\w{8}-seed0-fold1", list(entries)[1])


def test_keys_may_be_dotted_or_nested() -> None:
    flat = {"head.units": [8], "train.learning_rate": {"low": 1e-4, "high": 1e-2}, "draws": 2}
    nested = {"head": {"units": [8]}, "train": {"learning_rate": {"low": 1e-4, "high": 1e-2}}, "draws": 2}
    assert list(expand_entry(flat, 0)) == list(expand_entry(nested, 0))


def test_draws_follow_the_distributions_and_the_seed() -> None:
    table = {
        "draws": 100,
        "head.units": {"low": 16, "high": 256, "log": True},
        "head.dense": {"low": 0, "high": 3},
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "head.dropout": {"low": 0.0, "high": 0.5},
        "head.activation": ["relu", "tanh"],
    }
    drawn = list(expand_entry(table, 3))
    assert drawn == list(expand_entry(table, 3))
    assert drawn != list(expand_entry(table, 4))
    assert len(drawn) == 100
    units, dense, rates = (np.array([d[k] for d in drawn]) for k in ("head.units", "head.dense", "train.learning_rate"))
    assert all(isinstance(d["head.units"], int) for d in drawn)
    assert units.min() >= 16 and units.max() <= 256
    assert 0.35 < (units < 64).mean() < 0.65  # about half of them below the geometric mean
    assert set(dense) == {0, 1, 2, 3}
    assert rates.min() >= 1e-4 and rates.max() <= 1e-2
    assert 0.35 < (rates < 1e-3).mean() < 0.65
    assert {d["head.activation"] for d in drawn} == {"relu", "tanh"}
    assert len(sweep_entries(sweep(table), Config())) == 100


def test_draws_from_lists_never_repeat() -> None:
    table = {"head.units": [1, 2, 3], "head.dense": [1, 2]}
    assert len({tuple(s.items()) for s in expand_entry(table | {"draws": 4}, 0)}) == 4
    assert list(expand_entry(table | {"draws": 9}, 0)) == list(expand_entry(table, 0))


def test_settings_are_tried_once_under_a_name_that_depends_on_them_alone() -> None:
    both = sweep_entries(sweep({"head.units": [8, 16]}, {"head.units": [16, 32]}), Config())
    assert [c.head.units for c in both.values()] == [8, 16, 32]
    alone = sweep_entries(sweep({"head.units": 32}, name="other", seeds=[0]), Config())
    assert [*alone] == [*both][2:]
    longer = sweep_entries(sweep({"head.units": 32}), Config.model_validate({"train": {"epochs": 3}}))
    assert longer.keys() != alone.keys()


def test_limit_samples_settings_and_time_budget_shuffles_them() -> None:
    table = {"head.units": list(range(1, 41))}
    limited = sweep_entries(sweep(table, limit=5, folds=2), Config())
    assert len(limited) == 10 and len({c.head.units for c in limited.values()}) == 5
    assert [*limited] == [*sweep_entries(sweep(table, limit=5, folds=2), Config())]
    shuffled = [c.head.units for c in sweep_entries(sweep(table, minutes=1.0), Config()).values()]
    assert sorted(shuffled) == list(range(1, 41)) != shuffled


def test_errors_of_all_entries_are_reported_together() -> None:
    wrong = sweep(
        {"head.unit": 3},
        {"head.units": ["many", 8]},
        {"head.grid": [3, 4]},
        {"train.seed": [1, 2]},
        {"backbone.name": "VGG16"},
        {"head.units": {"low": 9, "high": 3}},
        {"head.units": {"low": 3, "high": 9}},
        {"head.units": {"low": 3, "hihg": 9}},
        {"head.units": []},
        {"head": 3},
        {"draws": -1},
        {"head.name": "bert"},
        {"head.units": 8},
    )
    with pytest.raises(BadInputs) as caught:
        sweep_entries(wrong, Config())
    expected = [
        "entry 1: unknown key head.unit",
        "entry 2: head.units: input should be a valid integer",
        "entry 3: head.grid",
        "entry 4: train.seed cannot be set in an entry; expected seeds under [sweep]",
        "entry 5: backbone.name cannot vary within a sweep",
        "low must be below high",
        "entry 7: an entry with a distribution needs a number of draws",
        "unknown key head.units.hihg (did you mean high?)",
        "entry 9: head.units: the list is empty",
        "entry 10: head cannot vary",
        "entry 11: draws: wrong value; expected a whole number, 0 or more; got -1",
        "entry 12: ",
    ]
    assert len(caught.value.faults) == len(expected)
    for error, part in zip(caught.value.faults, expected, strict=True):
        assert part in error
    assert "12 entries" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sweep]\nfold = 3\n[[entries]]\n", "unknown key sweep.fold (did you mean folds?)"),
        ("[sweep]\nseeds = []\n[[entries]]\n", "sweep.seeds"),
        ('[sweep]\nname = "../x"\n[[entries]]\n', "sweep.name"),
        ("[sweeps]\n[[entries]]\n", "unknown key sweeps (did you mean sweep?)"),
        ("[sweep]\n", "entries: field required"),
        ("[sweep", "not TOML"),
    ],
)
def test_errors_in_the_file_are_named_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_toml(Sweep, path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config"):
        read_toml(Sweep, tmp_path / "none.toml")


def test_shipped_sweep_fits_the_sample_config() -> None:
    configs = ROOT / "configs"
    entries = sweep_entries(read_toml(Sweep, configs / "sweep.toml"), read_config(configs / "sample.toml"))
    assert len(entries) > 20
