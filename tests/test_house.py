"""The architecture rules: which folder may import which, one meaning per name, and no old names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "stage1_extract", "stage2_temporal", "framebank")

# folder → what it may import, and everything that these may import; all folders may import features
ARROWS = {
    "stage1_extract": "features",
    "cli": "predict finetune sweep train fused report stage1_extract",
    "predict": "sliding report stage1_extract",
    "sliding": "heads runs stage1_extract",
    "finetune": "fused report stage1_extract",  # it writes the run's report again
    "fused": "heads stage1_extract",
    "sweep": "train",
    "train": "heads report",
    "heads": "training vehicle",
    "training": "data evaluation",  # a history has its rows in evaluation
    "vehicle": "data",
    "report": "runs",
    "runs": "evaluation data",
    "evaluation": "features",
    "data": "features",
    "features": "",
}
USERS_OF_STAGE_ONE = {"predict", "sliding", "fused", "finetune"}  # in stage2_temporal

# public names that two modules may define, and why
SHARED_NAMES = {
    "main": "the entry point of each command line",
    "HINT": "the hint that most errors of a module end in",
}

# The names of the first version, which the field's words replaced. Left out are those that have a good use beside the
# bad one they had: Sequence, cells, components, decode, inspect, motion, read, scene, stream, summary, value, whole.
OLD_NAMES = """
    mend Piece Held uncovered assembly Disk only_writer asked standing Standing Frozen having layouts footage packets
    trail Draft Place enough Extras Strip Reel Trails Look like twin accelerate thaw Still ahead auto retime
    slider Boxed Told Sight clocked is_told Solved Trained decide fed entered Reading Line doubt Outcome Done Written
    carry_out wanted found made there own held on
"""


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of each product module, by dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in paths
    }


@cache
def imports(module: str) -> set[str]:
    """Dotted names of all modules that a module imports, also those inside its functions."""
    names = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"{module}: relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules() else node.module for name in full}
    return names


def folder(module: str) -> str:
    """The key of `ARROWS` that a module belongs to."""
    package, *rest = module.split(".")
    if package == "framebank" or rest[-1:] == ["__main__"]:
        return "cli"
    return rest[0] if package == "stage2_temporal" and rest else package


def reachable(start: str) -> set[str]:
    """A folder and all folders that it may import."""
    return {start, "features"}.union(*(reachable(target) for target in ARROWS[start].split()))


def edges() -> Iterator[tuple[str, str]]:
    """Each import of one product module by another."""
    for module in modules():
        for target in imports(module) & set(modules()) - {module}:
            yield module, target


def test_folders_import_one_way() -> None:
    wrong = [
        f"{module} → {target}"
        for module, target in edges()
        if folder(target) != "stage2_temporal" and folder(target) not in reachable(folder(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_do_not_import_in_a_circle() -> None:
    graph = {module: imports(module) & set(modules()) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" → ".join(e.args[1]))


def test_only_the_models_on_images_import_stage_one() -> None:
    users = {folder(a) for a, b in edges() if a.startswith("stage2_temporal.") and b.startswith("stage1_extract")}
    assert users - {"cli"} <= USERS_OF_STAGE_ONE


def test_only_the_entry_points_import_framebank() -> None:
    users = {a for a, b in edges() if b.split(".")[0] == "framebank" and not a.startswith("framebank")}
    assert users <= {"stage1_extract.__main__", "stage2_temporal.__main__"}


def test_stage_two_has_at_most_four_top_level_modules() -> None:
    assert len(list((ROOT / "stage2_temporal").glob("*.py"))) <= 4


def test_features_import_no_network_and_one_module_imports_h5py() -> None:
    libraries = {module: {name.split(".")[0] for name in imports(module)} for module in modules()}
    for module, names in libraries.items():
        assert not (module.startswith("features") and names & {"tensorflow", "keras", "cv2", "sklearn"}), module
    assert [module for module, names in libraries.items() if "h5py" in names] == ["features.hdf5"]


def test_importing_features_loads_no_heavy_library() -> None:
    code = "import sys, features; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not {"tensorflow", "keras", "cv2", "pydantic", "sklearn", "stage1_extract"} & set(loaded.split())


def test_a_public_name_is_defined_in_one_module() -> None:
    places = defaultdict(list)
    for module, tree in modules().items():
        if folder(module) == "cli":  # a subcommand has the name of the function that it calls
            continue
        for name in {name for node in tree.body for name in defined(node) if not name.startswith("_")}:
            places[name].append(module)
    wrong = [f"{n}: {', '.join(where)}" for n, where in places.items() if len(where) > 1 and n not in SHARED_NAMES]
    assert not wrong, "\n".join(wrong)


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def bound(node: ast.AST) -> str:
    """The name that a node of a syntax tree binds or passes as a keyword; empty for all other nodes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.arg | ast.keyword):
        return node.arg or ""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return ""


def test_old_names_are_not_used() -> None:
    old = set(OLD_NAMES.split())
    names = {module: {*module.split("."), *map(bound, ast.walk(tree))} & old for module, tree in modules().items()}
    wrong = [f"{module}: {', '.join(sorted(left))}" for module, left in names.items() if left]
    assert not wrong, "\n".join(wrong)
