"""The servers that run commands with faults, and the folder that the commands work in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_helpers import Faults, fault_server
from tests.helpers import write_clips
from tests.kill_scenarios import BASE, SWEEP


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A server without TensorFlow."""
    with fault_server(tmp_path_factory.mktemp("light")) as faults:
        yield faults


@pytest.fixture(scope="session")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A server with all libraries."""
    with fault_server(tmp_path_factory.mktemp("heavy"), "tensorflow") as faults:
        yield faults


@pytest.fixture(scope="session")
def base(heavy: Faults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a store, and a run that was fine-tuned, exported and used for a prediction."""
    folder = tmp_path_factory.mktemp("base")
    write_clips(folder / "clips", {"Train": 4, "Validation": 2, "Test": 2}, frames=4)
    extract = {"dtype": "float32", "engine": "tensorflow", "shard": 8, "threads": 2}
    from tests.image_runs import image_config  # here, since it loads TensorFlow

    config = image_config(Path("clips"), extract=extract, train={"epochs": 1, "batch": 4})
    (folder / "task.toml").write_text(config.to_toml())
    (folder / "sweep.toml").write_text(SWEEP.format(jobs=1))
    for arguments in BASE:
        ended = heavy.run(folder, arguments)
        assert ended.status == 0, ended.text
    return folder
