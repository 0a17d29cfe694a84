"""The config: every shipped file reads, and faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.config import read_config
from features.errors import ConfigError

# sweep.toml is a sweep's, see test_sweep.py
CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("*.toml") if p.stem != "sweep")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_read_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(config.to_toml())
    assert read_config(copy) == config


def test_the_promised_configs_are_there() -> None:
    assert {p.stem for p in CONFIGS} >= {"sample", "competition", "competition-rgb", "tusimple", "video"}


def test_several_target_columns(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[data]\ntarget = ["distance", "rate"]\n')
    assert read_config(path).data.columns == ("distance", "rate")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[train]\nepoch = 3\n", "unknown key train.epoch"),
        ("[training]\nepochs = 3\n", "unknown key training"),
        ("[train]\nepochs = 'three'\n", "train.epochs"),
        ("[train]\nepochs = 0\n", "train.epochs"),
        ("[data]\nlayout = 'kitti'\n", "data.layout"),
        ("[train\n", "not TOML"),
    ],
)
def test_faults_are_named_with_the_file(text: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=names) as error:
        read_config(path)
    assert str(path) in str(error.value)


def test_no_such_config() -> None:
    with pytest.raises(ConfigError, match="no such config"):
        read_config("nowhere.toml")
