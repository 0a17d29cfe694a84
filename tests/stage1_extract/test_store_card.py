"""A store's card is written beside it when asked, says what the store holds, and its code runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from features.store import Store
from framebank.cli import main
from stage1_extract.info import describe_store
from stage1_extract.store_card import card_path, has_current_card
from tests.helpers import write_store
from tests.stage2_helpers import drifting_clips


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maps, sequences = drifting_clips({"train": 3, "test": 1})
    return write_store(tmp_path_factory.mktemp("s") / "drive.h5", sequences, {"appearance": maps})


def test_info_writes_a_card_only_when_asked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = store.with_suffix(".md")
    assert main(["info", "--store", str(store)]) == 0
    assert not card.exists()
    assert main(["info", "--store", str(store), "--card"]) == 0
    assert str(card) in capsys.readouterr().out
    text = card.read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["pretty_name"] == "drive" and {"framebank", "Tiny"} <= set(head["tags"])
    with Store(store) as opened:
        lines = describe_store(opened).splitlines()
        assert all(f"    {line}".rstrip() in text.splitlines() for line in lines)
    assert "UNTRAINED" in text


def test_code_of_a_card_runs(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "--store", str(store), "--card"])
    monkeypatch.chdir(store.parent)
    (code,) = re.findall(r"```python\n(.*?)```", store.with_suffix(".md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert "(6, 3, 4, 16)" in capsys.readouterr().out


def test_card_is_current_until_the_store_changes(store: Path) -> None:
    card = card_path(store)
    main(["info", "--store", str(store), "--card"])
    assert has_current_card(store)
    os.utime(card, ns=(0, store.stat().st_mtime_ns - 1))
    assert not has_current_card(store)
    card.unlink()
    assert not has_current_card(store)
