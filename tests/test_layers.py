"""One way through the house: every module imports only from floors below its own, or from its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compressor"
STOREYS = (
    "errors records",
    "algebra",
    "attention",
    "recurrent computed",
    "units",
    "foreign",
    "sources",
    "observe",
    "findings",
    "planning",
    "training surgery",
    "verify export sections",
    "report recipe options",
    "stages questions",
    "candidates outcome clock costing rotation studies",
    "workbench",
    "judgement",
    "pipeline",
    "recording verification",
    "capacity variants",
    "deliver",
    "api analysis flags progress launch request stopping",
    "jobs comparison",
    "frontier",
    "replay tools",
    "__init__ cli",
    "__main__",
)
FLOORS = {room: floor for floor, rooms in enumerate(STOREYS) for room in rooms.split()}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every import of ours, including those inside functions but not those for types only."""
    found = []
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "compressor":
            names = [node.module] if node.module != "compressor" else [f"compressor.{a.name}" for a in node.names]
            found += [(node.lineno, name) for name in names]
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "compressor"]
    return found


def violations(path: Path, tree: ast.AST) -> list[str]:
    own, wrong = room(path), []
    for line, name in imports(tree):
        other = [*name.split("."), "__init__"][1]
        if other != own and FLOORS[other] >= FLOORS[own]:
            place = path.relative_to(PACKAGE)
            wrong.append(f"{place}:{line} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    assert violations(path, ast.parse(path.read_text())) == []


def test_an_import_that_goes_up_is_found() -> None:
    bad = "from compressor.surgery.refit import Refit"
    assert violations(PACKAGE / "algebra" / "moments.py", ast.parse(bad)) == [
        "algebra/moments.py:1 (floor 1) imports surgery (floor 10)"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION] == []


def test_importing_the_package_is_cheap() -> None:
    import subprocess
    import sys

    heavy = ("torch", "onnx", "onnxruntime", "torch_pruning")
    code = f"import sys, compressor; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_test_files_are_unique() -> None:
    """Folders of tests are no packages: two files of one name cannot be collected together."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
