"""The code of CONTRIBUTING.md and of the page on Python runs as it is shown, on small data sets."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from framebank.cli import main
from tests.docs.worked_examples import CodeBlock, code_blocks, make_small_project
from tests.helpers import ROOT, picture

CONTRIBUTING = code_blocks(ROOT / "CONTRIBUTING.md")
PYTHON_PAGE = code_blocks(ROOT / "docs" / "python-api.md")
PACKAGE = "my_extensions"


def blocks_below(heading: str, language: str) -> list[CodeBlock]:
    blocks = [block for block in CONTRIBUTING if block.heading == heading and block.language == language]
    assert blocks, heading
    return blocks


def run_commands(heading: str) -> None:
    """Run the `framebank` commands of CONTRIBUTING.md below a heading; each must succeed."""
    text = "".join(block.text for block in blocks_below(heading, "console"))
    for command in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        assert program == "framebank"
        assert main(arguments) == 0, command


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the files that CONTRIBUTING.md shows, small data sets, and the package installed."""
    folder = tmp_path_factory.mktemp("project")
    make_small_project(folder)
    for block in CONTRIBUTING:
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
    for i, split in enumerate(["train"] * 6 + ["validation"] * 2 + ["test"] * 2):
        drive = folder / "data" / "drives" / f"{split}-{i}"
        drive.mkdir(parents=True)
        for frame in range(6):
            cv2.imwrite(str(drive / f"{frame:03d}.png"), picture(10 * i + frame))
        (drive / "speed.txt").write_text("\n".join(str(5 + i + frame / 10) for frame in range(6)))
    # the page shows an editable installation, which would change the environment of the tests
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", folder / PACKAGE], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        patch.chdir(folder)
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_python_page_runs_from_top_to_bottom(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for block in PYTHON_PAGE if block.language == "python"]
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.text, f"python-api.md: {block.heading}", "exec"), names)
    assert (project / "stores" / "sample.h5").is_file() and (project / "ridge.keras").is_file()
    assert all(Path(run, "report.html").is_file() for run in [*names["runs"], "runs/gru"])
    assert all(path.is_file() for path in names["predictions"].files)
    assert names["maps"].shape[0] == 8
    assert "configs/none.toml" in capsys.readouterr().out


def test_tables_page_runs_from_top_to_bottom(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    for command in ("extract", "train"):
        assert main([command, "--config", "configs/sample.toml"]) == 0
    names: dict[str, Any] = {}
    capsys.readouterr()
    for block in code_blocks(ROOT / "docs" / "tables.md"):
        if block.language == "python" and block.heading != "PyTorch":
            exec(compile(block.text, f"tables.md: {block.heading}", "exec"), names)
    printed = capsys.readouterr().out
    assert "validation" in printed and "(8, 8, 6, 8, 40) (8, 1) (8,)" in printed  # errors by split, then shapes
    assert names["table"].ego_speed_pred.notna().any()


def test_head_has_under_30_lines_and_appears_in_the_leaderboard(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (head,) = blocks_below("Add a head", "python")
    assert len(head.text.splitlines()) < 30
    assert main(["extract", "--config", "configs/sample.toml"]) == 0
    capsys.readouterr()
    run_commands("Add a head")
    assert "bigru" in [word for line in capsys.readouterr().out.splitlines() for word in line.split()[1:2]]
    assert (project / "runs" / "sample-ego_speed-bigru" / "model.keras").is_file()


def test_backbone_is_extracted_and_trained_with(project: Path) -> None:
    run_commands("Add a backbone")
    assert (project / "stores" / "tiny.h5").is_file()


def test_data_set_is_extracted_and_trained_with(project: Path) -> None:
    run_commands("Add a data set")
    assert (project / "runs" / "drives-ego_speed-ridge" / "report.html").is_file()
