"""What `framebank doctor` says of this machine, and of one on which something is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from framebank import doctor
from framebank.cli import main
from tests.helpers import ROOT


def test_doctor_names_versions_machine_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--frames", "0"]) == 0
    text = capsys.readouterr().out
    for line in (r"cores +\d+", r"memory +\d+\.\d GB", r"GPU +\w+", r"tensorflow +2\.\d+", r"system .*Python 3\."):
        assert re.search(f"^{line}", text, re.MULTILINE), line
    assert all(p.name in text for p in doctor.find_packages())


def test_every_extra_that_users_install_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"gpu", "docs", "dev"}
    for extra, (_, modules) in doctor.EXTRAS.items():
        required = " ".join(project["optional-dependencies"][extra])
        assert all(name in required for name in modules), extra


def test_without_openvino_doctor_says_what_is_there_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # which Python takes for a missing package
    assert main(["doctor", "--frames", "0"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^openvino +– +cpu", text, re.MULTILINE)
    assert text.partition("engines that can extract:")[2].split()[:2] == ["tensorflow", "folders"]
    assert "openvino: not installed; for extraction on CPUs at up to twice TensorFlow's speed" in text
    assert 'pip install "framebank[cpu]"' in text


def test_missing_requirement_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["doctor"]) == 2
    assert "av is missing, without which nothing works" in capsys.readouterr().err


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    assert not [path for path, fault in doctor.folder_faults(tmp_path).items() if "written" in fault]
    (tmp_path / "runs").write_text("")  # a file, in which nothing can be written
    faults = doctor.folder_faults(tmp_path)
    assert "cannot be written" in faults[str(tmp_path / "runs")]
    assert str(tmp_path / "stores") not in {path for path, fault in faults.items() if "written" in fault}


@pytest.mark.soak
def test_doctor_measures_each_engine_on_ten_frames(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    rates = dict(re.findall(r"^  (\w+) +([\d,.]+) frames/s", capsys.readouterr().out, re.MULTILINE))
    assert "tensorflow" in rates and all(float(rate.replace(",", "")) > 0.1 for rate in rates.values())
