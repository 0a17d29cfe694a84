"""What the pages say of commands, options, make targets and files is true, and the documentation builds."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import framebank
from features.config import CONFIG_SECTIONS, Config
from features.head_config import SETTINGS
from framebank.commands import COMMANDS
from tests.docs.worked_examples import code_blocks
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "configs").glob("*.toml"))]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def settings() -> set[str]:
    """All settings, as `section.name`; those of every head."""
    sections = {name: [type(Config.model_fields[name].get_default())] for name in CONFIG_SECTIONS}
    sections["head"] = list(SETTINGS.values())
    return {f"{section}.{name}" for section, models in sections.items() for m in models for name in m.model_fields}


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_commands_options_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`([^`\n]+)`", text)
    code = "\n".join([*(block.text for block in code_blocks(page)), *inline]).replace("\\\n", " ")
    known_settings = settings()
    for name, options in re.findall(r"^framebank ([a-z]+)([^\n#]*)", code, re.MULTILINE):
        assert name in COMMANDS, name
        own = {field.name for field in fields(COMMANDS[name])} | {"help", "tyro_write_completion", "version"}
        for option in re.findall(r"--([a-z_.-]+)", options):
            assert option.replace("-", "_") in own | known_settings, f"{name} --{option}"
    for option in re.findall(r"--([a-z]+\.[a-z_]+)", text):
        assert option in known_settings | {"section.key"}, option
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_of_pages_outside_the_site_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("page", "lines"), [("README.md", 120), ("docs/performance.md", 60)])
def test_page_is_short(page: str, lines: int) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= lines


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    settings_page = (tmp_path / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "learning_rate" in settings_page and "pooled_lstm" in settings_page
    assert "framebank.load_examples" in (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")


def test_citation_names_this_version_and_each_reference_is_complete() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["version"] == framebank.__version__
    assert {"title", "authors", "message"} <= set(CITATION)
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= set(reference), reference
        assert {"year", "version"} & set(reference), reference["title"]
        assert all("family-names" in author or "name" in author for author in reference["authors"])
