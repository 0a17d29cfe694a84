"""The promises of SECURITY.md name tests that exist and that `make test` runs."""

from __future__ import annotations

import ast
import re

from tests.helpers import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_promise_names_tests_that_are_run() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            [function] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
            assert not any("soak" in ast.unparse(d) or "skip" in ast.unparse(d) for d in function.decorator_list)
