"""What tests of whole extractions share: an engine with the small backbone, and clips to extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stage1_extract.datasets import image_sequence
from stage1_extract.datasets.archive import ReadablePath, read_file
from tests.extraction_helpers import extraction_config
from tests.helpers import write_clips

if TYPE_CHECKING:
    from stage1_extract.engines.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The engine of `extraction_config`."""
    from stage1_extract.backbone.trunk import build_trunk
    from stage1_extract.engines.engine import Engine

    return Engine(build_trunk(extraction_config()), 8)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A data set of ten clips."""
    return write_clips(tmp_path / "data")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are read as a whole."""
    names: list[str] = []

    def counted(path: ReadablePath) -> bytes:
        names.append(str(path))
        return read_file(path)

    monkeypatch.setattr(image_sequence, "read_file", counted)
    return names
