"""The arrows between the rooms point down, without an exception and without a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "natix_hf"
# From the top floor down. A room may import rooms of lower floors, and itself.
FLOORS = (
    "__main__",
    "cli",
    "apidoc",
    "estimate",
    "api deploy launch selective",
    "pipeline",
    "preflight",
    "phases",
    "report",
    "runs",
    "keys",
    "recipe",
    "results",
    "trainers",
    "bulk serve",
    "bundle",
    "ssl",
    "models",
    "data",
    "intake",
    "synthetic",
    "subnet",
    "calibration",
    "metrics",
    "labels",
    "section yaml12",
    "provenance",
    "interrupt",
    "terminal resources typed",
    "errors disk",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def _imports(tree: ast.AST) -> list[str]:
    """Every module of the package that a file imports, wherever in the file, and under TYPE_CHECKING too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.startswith("natix_hf.")]


def _wrong(file: str, source: str) -> list[str]:
    room = file.partition("/")[0].removesuffix(".py")
    wanted = {name.split(".")[1] for name in _imports(ast.parse(source))}
    above = {other for other in wanted & set(FLOOR) if other != room and FLOOR[other] <= FLOOR[room]}
    return [f"{file} imports {other}" for other in sorted(above)]


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert {room for room in rooms if room != "py"} == set(FLOOR) - {"__main__"}


def test_no_arrow_points_up() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE]
    found = [_wrong(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) for path in files]
    assert [line for lines in found for line in lines] == []


@pytest.mark.parametrize(
    "line",
    ["from natix_hf.phases import graph", "import natix_hf.cli.app", "if 1:\n    from natix_hf.runs.graph import X"],
)
def test_a_planted_arrow_is_seen(line: str) -> None:
    assert _wrong("data/rows.py", line)


# It goes alone to machines that have nothing else of ours.
ALONE = "bundle/read_policy.py"


def test_files_are_rooms() -> None:
    """Past some 300 lines a file is two rooms, except the one that a bundle ships."""
    long = {path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
            for path in PACKAGE.rglob("*.py")}  # fmt: skip
    assert {name: lines for name, lines in long.items() if lines > 340 and name != ALONE} == {}
    assert _imports(ast.parse((PACKAGE / ALONE).read_text(encoding="utf-8"))) == []
