"""The house: which way the imports run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUSED = {"fuse.py", "finetune.py", "predict.py", "predict_boxes.py", "slider.py", "stream.py", "export.py"}


def imports(path: Path) -> set[str]:
    """Top-level names of every import in a file, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_features_imports_neither_stage_nor_tensorflow() -> None:
    for path in modules("features"):
        assert not imports(path) & {"stage1_extract", "stage2_temporal", "tensorflow", "keras"}, path


def test_stage_one_never_imports_stage_two() -> None:
    for path in modules("stage1_extract"):
        assert "stage2_temporal" not in imports(path), path


def test_only_the_fused_side_of_stage_two_imports_stage_one() -> None:
    for path in modules("stage2_temporal"):
        assert path.name in FUSED or "stage1_extract" not in imports(path), path


def test_one_module_imports_h5py() -> None:
    users = [p.relative_to(ROOT).as_posix() for package in PACKAGES for p in modules(package) if "h5py" in imports(p)]
    assert users == ["features/hdf5.py"]


PACKAGES = ("features", "stage1_extract", "stage2_temporal")


@pytest.mark.parametrize("heavy", ["tensorflow", "keras", "cv2", "pydantic", "sklearn", "stage1_extract"])
def test_import_features_stays_light(heavy: str) -> None:
    code = f"import sys, features; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_grows_beyond_one_concept() -> None:
    long = {p.name: n for package in PACKAGES for p in modules(package) if (n := len(p.read_text().splitlines())) > 350}
    assert not long
