"""The promises of SECURITY.md name tests that exist, and that `make test` runs, or `make soak` where it says so."""

from __future__ import annotations

import ast
import re

from tests.helpers import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_promise_names_tests_that_are_run() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`( \(`make soak`\))?", row)
        assert any(not soak for *_, soak in named), row
        assert row.count("::") == len(named), row
        for file, name, soak in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            [function] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
            decorators = [ast.unparse(d) for d in function.decorator_list]
            assert any(d.startswith("pytest.mark.soak") for d in decorators) == bool(soak), name
            in_browser = any("browser" in d for d in decorators)  # skipped only where there is none
            assert in_browser or not any(d.startswith("pytest.mark.skip") for d in decorators), name
