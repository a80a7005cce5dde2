"""The shape of the package: imports go one way, surfaces are complete, the command line starts without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import robustbench_ln

PACKAGE = Path(robustbench_ln.__file__).parent
ROOT = "robustbench_ln"

# A room may import rooms of a lower rank, and itself. To add a room, give it the lowest rank that its imports allow.
RANKS = {
    "types": 0,
    "errors": 0,
    "_version": 0,
    "yaml_files": 1,
    "numerics": 1,
    "files": 1,
    "corruptions": 2,
    "norms": 2,
    "data": 2,
    "metrics": 2,
    "models": 3,  # may use norms
    "results": 3,  # may use metrics
    "planning": 4,
    "evaluation": 5,
    "training": 5,
    "inspection": 5,
    "converting": 5,
    "corrupting": 5,
    "previewing": 5,
    "benchmarks": 5,
    "reports": 5,
    "api": 6,
    "comparing": 6,  # may use reports for the ink
    "gating": 7,
    ROOT: 7,  # the package's own __init__, the names that users import
    "testing": 8,
    "cli": 8,
    "__main__": 9,
}


def room_of(module: str) -> str:
    """`robustbench_ln.norms.layer` lies in `norms`; `robustbench_ln` itself is the room of that name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ROOT


def modules() -> dict[str, Path]:
    """Every module of the package, by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = (ROOT, *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything of ours that a module imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            # `from robustbench_ln import evaluation` imports a room, `from robustbench_ln import evaluate` does not.
            names = [f"{base}.{alias.name}" if base == ROOT and alias.name in RANKS else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == ROOT)


def broken_arrows(source: str, module: str, where: str, *, is_package: bool = False) -> list[str]:
    """Imports that go the wrong way, in words."""
    own = room_of(module)
    found = []
    for line, name in imports(source, module, is_package=is_package):
        other = room_of(name)
        if other != own and RANKS[other] >= RANKS[own]:
            found.append(f"{where}:{line}: {own} (rank {RANKS[own]}) imports {name} (rank {RANKS[other]})")
    return found


def test_every_room_has_a_rank():
    rooms = {room_of(module) for module in modules()}
    assert rooms <= RANKS.keys(), f"give these a rank in RANKS: {sorted(rooms - RANKS.keys())}"


def test_imports_go_one_way():
    found = []
    for module, path in modules().items():
        where = str(path.relative_to(PACKAGE.parent))
        source = path.read_text(encoding="utf-8")
        found += broken_arrows(source, module, where, is_package=path.name == "__init__.py")
    assert not found, "\n".join(["imports that point back:", *found])


@pytest.mark.parametrize(
    "line",
    [
        "from robustbench_ln.evaluation import run",
        "from robustbench_ln import evaluation",
        "from robustbench_ln import evaluate",
        "import robustbench_ln.cli.app",
        "from ..cli import options",
        "from robustbench_ln.data import Dataset",  # of the same rank, and another room
        "def late():\n    from robustbench_ln.api import evaluate",
        "if TYPE_CHECKING:\n    from robustbench_ln.results import Results",
    ],
)
def test_an_import_that_points_back_is_found(line: str):
    assert broken_arrows(line, "robustbench_ln.norms.layer", "layer.py")


@pytest.mark.parametrize(
    "line",
    [
        "from robustbench_ln.types import Condition",
        "from robustbench_ln.norms.modes import parse_mode",
        "from . import modes",
        "from .. import errors",
        "import torch",
    ],
)
def test_an_import_that_points_forward_is_allowed(line: str):
    assert not broken_arrows(line, "robustbench_ln.norms.layer", "layer.py")


def surface(source: str) -> tuple[set[str], set[str], set[str]]:
    """Names in `__all__`, names that must be there, names that are bound at the top level of a module.

    What must be there: public names that the module defines, and those it imports and does not itself use.
    """
    tree = ast.parse(source)
    listed: set[str] = set()
    defined: set[str] = set()
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            imported |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if names == {"__all__"} and isinstance(node, ast.Assign):
            listed = set(ast.literal_eval(node.value))
            continue
        defined |= names
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    public = {name for name in defined | (imported - used) if not name.startswith("_")}
    return listed, public, defined | imported


PACKAGES = [module for module, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_equals_what_a_package_offers(package: str):
    listed, public, bound = surface(modules()[package].read_text(encoding="utf-8"))
    assert not public - listed, "offered, but not in __all__"
    assert not listed - bound, "in __all__, but neither imported nor defined"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_all_resolves(package: str):
    module = import_module(package)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing


def test_the_public_names_are_those_that_dir_shows():
    assert dir(robustbench_ln) == sorted(robustbench_ln.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = robustbench_ln.no_such_name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("robustbench_ln", {"torch", "torchvision", "numpy", "scipy", "matplotlib", "pandas", "PIL", "pydantic"}),
        ("robustbench_ln.cli.app", {"torch", "torchvision", "numpy", "scipy", "matplotlib", "PIL", "pydantic"}),
        # As long in coming as torch itself, and needed by few of the networks.
        ("robustbench_ln.api", {"torchvision", "timm", "onnx", "matplotlib", "pandas"}),
    ],
)
def test_nothing_starts_with_heavy_imports_it_may_not_need(module: str, heavy: set[str]):
    code = f"import {module}, json, sys; print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(json.loads(done.stdout))
