"""The config: shipped files are read, run folders of older versions are read, and faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.config import Config, read_config, read_run_config
from features.errors import ConfigError
from features.head_config import SETTINGS, AutoConfig, FusionConfig, GRUConfig, head_settings_class

# those of sweeps are read in test_sweep.py
CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("*.toml") if not p.stem.endswith("sweep"))

# as written by the first version, which put the settings of all heads into every run
OLD_RUN = """
[data]
target = "ego_speed"
[head]
name = "fusion"
streams = ["motion"]
units = 64
layers = 2
dense = 64
dropout = 0.3
activation = "tanh"
alpha = 1.0
kernel = "rbf"
grid = [1, 1]
components = 0
members = 5
ranges = 3
difference = false
lags = [1, 2, 4]
[train]
epochs = 40
standardise_inputs = true
[finetune]
epochs = 3
warmup = 0.1
threads = 0
"""


def read(text: str, folder: Path) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    return read_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_read_and_written_without_loss(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    # what to compare is not part of a run
    assert read(config.to_toml(), tmp_path) == config.model_copy(update={"compare": ()})


def test_all_configs_are_shipped() -> None:
    assert {p.stem for p in CONFIGS} >= {"sample", "competition", "competition-rgb", "tusimple", "video"}


def test_target_may_be_several_columns(tmp_path: Path) -> None:
    assert read('[data]\ntarget = ["distance", "rate"]\n', tmp_path).data.columns == ("distance", "rate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3\n", r"unknown key train.epoch \(did you mean epochs\?\); the keys are epochs, batch"),
        ("[training]\nepochs = 3\n", r"unknown key training \(did you mean train\?\)"),
        ("[train]\nepochs = 'three'\n", "train.epochs: .*got 'three'"),
        ("[train]\nepochs = 0\n", "train.epochs: .*greater than 0, got 0"),
        ("[train]\nepochs = '40'\n", "train.epochs: .*valid integer, got '40'"),
        ("[train]\nlearning_rate = '1'\n", "train.learning_rate: .*valid number, got '1'"),
        ("[train]\nstandardise = 'true'\n", "train.standardise: .*valid boolean, got 'true'"),
        ("[head]\nname = 'ridge'\ngrid = ['3', 4]\n", "head.grid.0: .*valid integer, got '3'"),
        ("[data]\nlayout = 'tusimpel'\n", r"data.layout: no such layout \(did you mean tusimple\?\)"),
        ("[train\n", "not TOML"),
        ("[head]\nname = 'gru'\nunits = 0\n", "head.units: .*got 0"),
        (
            "[head]\nname = 'gru'\nunitz = 3\n",
            r"unknown key head.unitz \(did you mean units\?\); the keys of gru are .*units",
        ),
        ("[head]\nname = 'gru'\nalpha = 3.0\nlags = [1]\n", "unknown keys head.alpha, head.lags; the keys of gru are "),
        ("[head]\nname = 'auto'\nunits = 3\n", "unknown key head.units; the keys of auto are name"),
        ("[head]\nname = 'gruu'\n", r"no such head \(did you mean gru\?\), expected one of auto, .*fusion"),
        ("head = 3\n", "head: expected a table"),
    ],
)
def test_faults_are_named_with_the_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(text, tmp_path)
    assert str(tmp_path / "config.toml") in str(error.value)


def test_missing_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such config"):
        read_config("nowhere.toml")


def test_each_head_has_its_own_settings_with_descriptions() -> None:
    for name, model in SETTINGS.items():
        config = Config.model_validate({"head": {"name": name}})
        assert type(config.head) is head_settings_class(name) is model
        assert Config.model_validate(config.model_dump()) == config
        assert model.when.endswith(".")
        assert all(field.description for key, field in model.model_fields.items() if key != "name")
    assert set(SETTINGS["box_ridge"].model_fields) == {"name", "alpha", "box_noise"}
    assert set(AutoConfig.model_fields) == {"name"}


def test_run_of_an_older_version_is_read_without_removed_settings(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(OLD_RUN)
    config = read_run_config(tmp_path)
    assert config.head == FusionConfig(streams=("motion",), dropout=0.3)
    assert (config.train.epochs, config.finetune.epochs) == (40, 3)
    with pytest.raises(ConfigError, match=r"unknown keys head.layers, .*train.standardise_inputs"):
        read_config(tmp_path / "config.toml")


def test_switching_heads_keeps_the_settings_both_have() -> None:
    head = GRUConfig(units=5, grid=(2, 2), activation="relu")
    assert head.renamed("tcn").model_dump(exclude_unset=True) == {"name": "tcn", "units": 5, "grid": (2, 2)}
    with pytest.raises(ConfigError, match="no such head"):
        head.renamed("bert")
