"""Stores that a stranger crafted: each defect is named in one error, in bounded time and memory."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.errors import StoreError
from tests.crafted import CASES, cases, damage, make_store, read_all

EXTRA_MEMORY = 1 << 30  # bytes a case may use beyond what the process has


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {form: make_store(folder / form / "s.h5", packed=form == "packed") for form in ("packed", "index")}


@pytest.fixture
def limited_memory() -> Iterator[None]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_sound_store_is_read(sound: dict[str, Path]) -> None:
    for path in sound.values():
        read_all(path)


def test_there_are_sixty_kinds() -> None:
    assert len(CASES) >= 60


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("form", "case"), [(form, case) for form in ("packed", "index") for case in cases(form)])
def test_a_crafted_defect_is_named(
    form: str, case: str, sound: dict[str, Path], tmp_path: Path, limited_memory: None
) -> None:
    shutil.copytree(sound[form].parent, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "s.h5", case)
    with pytest.raises(StoreError) as error:
        read_all(tmp_path / "s.h5")
    assert str(tmp_path) in str(error.value)
    assert "Unable to allocate" not in str(error.value)
