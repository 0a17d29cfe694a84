"""What `make check` says of a vulnerability service's answers."""

from __future__ import annotations

import runpy

from tests.helpers import ROOT

summarise = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["summarise"]
SOUND = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def test_a_known_weakness_is_named_and_fails() -> None:
    text, status = summarise({"dependencies": [SOUND, WEAK]})
    assert (text.splitlines()[0], status) == ("b 2: PYSEC-1, corrected in 2.1", 1)


def test_no_service_is_said_in_one_line() -> None:
    for report in ({}, {"dependencies": [UNKNOWN, UNKNOWN]}):
        text, status = summarise(report)
        assert status == 0 and "skipped" in text and "\n" not in text


def test_packages_without_a_weakness_are_counted() -> None:
    assert summarise({"dependencies": [SOUND, UNKNOWN]}) == ("pip-audit: no known weakness in 1 of 2 packages", 0)
