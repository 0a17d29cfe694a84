"""What is installed: the wheel's files and metadata, and an installation into an empty environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGES = ("features", "framebank", "stage1_extract", "stage2_temporal")
CONFIG = """
[data]
path = "clips"
target = "ego_speed"
also = ["velocity"]
[backbone]
cut = "block3b_add"
top = false
[extract]
motion = true
[head]
name = "auto"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend alone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    if (ROOT / ".git").exists():
        lines = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        files = {name for name in lines if (ROOT / name).exists()}
    else:
        paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
        files = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as z:
        packed = {name for name in z.namelist() if ".dist-info/" not in name}
    assert packed == files
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed
    assert "stage2_temporal/report/templates/page.html.jinja" in packed


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        text = {name.split("/")[-1]: z.read(name).decode() for name in z.namelist() if ".dist-info/" in name}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "framebank = framebank.__main__:main" in text["entry_points.txt"]
    assert f"Version: {project['version']}\n" in text["METADATA"]
    extras = {*re.findall(r"^Provides-Extra: (\w+)$", text["METADATA"], re.MULTILINE)}
    assert extras == project["optional-dependencies"].keys()
    assert "LICENSE" in text


LARGE_EXTRAS = ("torch", "hub", "gpu")  # gigabytes, for which the tests of what they add skip


def test_lock_pins_every_dependency_by_hash() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert text.count("==") > 80 and "://" not in text
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert all("==" in requirement and "--hash=sha256:" in requirement for requirement in requirements)
    locked = {requirement.split("==")[0] for requirement in requirements}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: r for name, r in project["optional-dependencies"].items() if name not in LARGE_EXTRAS}
    declared = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    assert {re.split(r"[\[<>=; ]", requirement)[0] for requirement in declared} <= locked


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    venv.create(tmp_path / "env", with_pip=True)
    bin_folder, work = tmp_path / "env" / "bin", tmp_path / "work"
    work.mkdir()
    (tmp_path / "task.toml").write_text(CONFIG)

    def run(*command: str) -> str:
        ended = subprocess.run(
            [str(bin_folder / command[0]), *command[1:]],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    lock = (ROOT / "requirements.lock").read_text().splitlines()
    (tmp_path / "pins.txt").write_text("\n".join(line.rstrip(" \\") for line in lock if "==" in line))
    run("pip", "install", "--quiet", "--constraint", str(tmp_path / "pins.txt"), f"{wheel}[cpu]")
    script = "import framebank, sys; print(framebank.__file__, sorted({'tensorflow', 'cv2'} & set(sys.modules)))"
    assert run("python", "-c", script).strip() == f"{framebank_file(tmp_path)} []"
    assert "usage: framebank" in run("framebank")
    config = ("--config", "../task.toml")
    run("framebank", "sample", *config)
    assert "2,560 frames in the store" in run("framebank", "extract", *config)
    out = run("framebank", "train", *config)
    reports = re.findall(r"^runs/.*/report\.html$", out, re.MULTILINE)
    assert reports == [f"runs/task-{name}/report.html" for name in ("ego_speed-fusion", "velocity-box_ridge")]
    assert all((work / report).stat().st_size > 10_000 for report in reports)


def framebank_file(folder: Path) -> Path:
    """The module as the environment in a folder has it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "env" / "lib" / version / "site-packages" / "framebank" / "__init__.py"
