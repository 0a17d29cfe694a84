"""A sweep's TOML: what it stands for, and what it must not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config
from features.errors import BadInputs, ConfigError
from features.sequences import FrameSequence, Label
from features.windows import make_examples
from stage2_temporal.data.splits import fold_splits
from stage2_temporal.sweep.spec import Sweep, expand_entry, read_sweep, sweep_entries


def sweep(*tables: dict[str, Any], **plan: Any) -> Sweep:
    return Sweep.model_validate({"sweep": plan, "entries": list(tables)})


def test_a_grid_is_the_product_of_its_lists() -> None:
    table = {"head.units": [8, 16], "head.grid": [[1, 1], [3, 4]], "head.dense": 0}
    found = sweep_entries(sweep(table, folds=3, seeds=[0, 7]), Config())
    assert len(found) == 4 * 2 * 3
    assert len({entry.name for entry in found}) == len(found)
    heads = {(e.config.head.units, e.config.head.grid, e.config.head.dense) for e in found}
    assert heads == {(u, g, 0) for u in (8, 16) for g in ((1, 1), (3, 4))}
    placed = [(e.config.train.seed, e.config.train.folds, e.config.train.fold) for e in found[:6]]
    assert placed == [(seed, 3, fold) for seed in (0, 7) for fold in range(3)]
    assert found[1].name.startswith("pooled_lstm-") and found[1].name.endswith("-seed0-fold1")


def test_both_ways_to_write_a_key_are_one() -> None:
    flat = {"head.units": [8], "train.learning_rate": {"low": 1e-4, "high": 1e-2}, "draws": 2}
    nested = {"head": {"units": [8]}, "train": {"learning_rate": {"low": 1e-4, "high": 1e-2}}, "draws": 2}
    assert list(expand_entry(flat, 0)) == list(expand_entry(nested, 0))


def test_distributions_are_drawn_with_the_seed() -> None:
    table = {
        "draws": 200,
        "head.units": {"low": 16, "high": 256, "log": True},
        "head.dense": {"low": 0, "high": 3},
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "head.dropout": {"low": 0.0, "high": 0.5},
        "head.activation": ["relu", "tanh"],
    }
    drawn = list(expand_entry(table, 3))
    assert drawn == list(expand_entry(table, 3))
    assert drawn != list(expand_entry(table, 4))
    assert len(drawn) == 200
    units, dense, rates = (np.array([d[k] for d in drawn]) for k in ("head.units", "head.dense", "train.learning_rate"))
    assert all(isinstance(d["head.units"], int) for d in drawn)
    assert units.min() >= 16 and units.max() <= 256
    assert 0.35 < (units < 64).mean() < 0.65  # half of them below the geometric middle
    assert set(dense) == {0, 1, 2, 3}
    assert rates.min() >= 1e-4 and rates.max() <= 1e-2
    assert 0.35 < (rates < 1e-3).mean() < 0.65
    assert {d["head.activation"] for d in drawn} == {"relu", "tanh"}
    assert len(sweep_entries(sweep(table), Config())) == 200


def test_draws_from_lists_alone_never_repeat_and_end_with_the_grid() -> None:
    table = {"head.units": [1, 2, 3], "head.dense": [1, 2]}
    assert len({tuple(s.items()) for s in expand_entry(table | {"draws": 4}, 0)}) == 4
    assert list(expand_entry(table | {"draws": 9}, 0)) == list(expand_entry(table, 0))


def test_a_setting_is_tried_once_and_its_name_depends_on_nothing_else() -> None:
    both = sweep_entries(sweep({"head.units": [8, 16]}, {"head.units": [16, 32]}), Config())
    assert [e.config.head.units for e in both] == [8, 16, 32]
    alone = sweep_entries(sweep({"head.units": 32}, name="other", seeds=[0]), Config())
    assert alone[0].name == both[2].name
    longer = sweep_entries(sweep({"head.units": 32}), Config.model_validate({"train": {"epochs": 3}}))
    assert longer[0].name != alone[0].name


def test_a_limit_chooses_settings_and_a_time_budget_mixes_them() -> None:
    table = {"head.units": list(range(1, 41))}
    some = sweep_entries(sweep(table, limit=5, folds=2), Config())
    assert len(some) == 10 and len({e.config.head.units for e in some}) == 5
    assert some == sweep_entries(sweep(table, limit=5, folds=2), Config())
    mixed = [e.config.head.units for e in sweep_entries(sweep(table, minutes=1.0), Config())]
    assert sorted(mixed) == list(range(1, 41)) != mixed


def test_every_fault_is_found_in_one_pass() -> None:
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
        {"head.units": 8},
    )
    with pytest.raises(BadInputs) as caught:
        sweep_entries(wrong, Config())
    expected = [
        "entry 1: unknown key head.unit, known are name, ",
        "entry 2: head.units: input should be a valid integer",
        "entry 3: head.grid",
        "entry 4: train.seed is not an entry's to say; expected seeds under [sweep]",
        "entry 5: backbone.name cannot vary within a sweep",
        "low must be below high",
        "entry 7: a distribution is drawn from, but not how often",
        "unknown key hihg, known are low, high, log",
        "entry 9: head.units: an empty list",
        "entry 10: head cannot vary",
        "entry 11: draws; expected a whole number; got -1",
    ]
    assert len(caught.value.faults) == len(expected)
    for said, wanted in zip(caught.value.faults, expected, strict=True):
        assert wanted in said
    assert "11 entries" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sweep]\nfold = 3\n[[entries]]\n", "unknown key sweep.fold, known are name, folds, seeds"),
        ("[sweep]\nseeds = []\n[[entries]]\n", "sweep.seeds"),
        ('[sweep]\nname = "../x"\n[[entries]]\n', "sweep.name"),
        ("[sweeps]\n[[entries]]\n", "unknown key sweeps, known are sweep, entries"),
        ("[sweep]\n", "entries: field required"),
        ("[sweep", "not TOML"),
    ],
)
def test_what_the_file_must_not_say(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such sweep"):
        read_sweep(tmp_path / "none.toml")


def test_the_shipped_sweep_reads_and_fits_the_sample_config() -> None:
    root = Path(__file__).parents[2]
    from features.config import read_config

    found = sweep_entries(read_sweep(root / "configs" / "sweep.toml"), read_config(root / "configs" / "sample.toml"))
    assert len({e.name for e in found}) == len(found) > 20


def clips(counts: dict[str, int], labels: int = 1) -> list[FrameSequence]:
    return [
        FrameSequence(
            f"{split}/{i}", split, 8, 10.0, (64, 36), "", tuple(Label(7, {"v": float(i)}) for _ in range(labels))
        )
        for split, count in counts.items()
        for i in range(count)
    ]


@pytest.mark.parametrize("labels", [1, 3])
def test_folds_divide_training_and_validation_by_sequence(labels: int) -> None:
    sequences = clips({"train": 11, "validation": 4, "test": 5}, labels)
    found = make_examples(sequences, np.arange(len(sequences)) * 8, ("v",), length=8)
    held_out: list[int] = []
    for fold in range(4):
        names = fold_splits(found, 4, fold)
        assert set(names[found.split == "test"]) == {"test"}
        mine, others = set(found.sequence[names == "validation"]), set(found.sequence[names == "train"])
        assert not mine & others and len(mine | others) == 15
        assert len(mine) in (3, 4)
        held_out += mine
    assert sorted(held_out) == list(range(15))


def test_unlabelled_examples_go_with_their_sequence_or_train() -> None:
    sequences = clips({"train": 4})
    sequences.append(FrameSequence("train/x", "train", 8, 10.0, (64, 36), "", (Label(7, {"v": float("nan")}),)))
    found = make_examples(sequences, np.arange(5) * 8, ("v",), length=8)
    names = [fold_splits(found, 2, fold).tolist() for fold in range(2)]
    assert [n.count("validation") for n in names] == [2, 2]
    assert names[0][4] == names[1][4] == "train"


@pytest.mark.parametrize(("folds", "fold", "says"), [(1, 0, "2 to 4"), (5, 0, "2 to 4"), (2, 2, "0 to 1")])
def test_folds_that_do_not_fit(folds: int, fold: int, says: str) -> None:
    found = make_examples(clips({"train": 4}), np.arange(4) * 8, ("v",), length=8)
    with pytest.raises(ConfigError, match=says):
        fold_splits(found, folds, fold)
