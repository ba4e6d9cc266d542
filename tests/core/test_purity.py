"""The core decides and does nothing else: what its modules may import, and what they may not walk."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flowserve.core

FOLDER = Path(flowserve.core.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))
ALLOWED = {
    "bisect", "collections", "collections.abc", "copy", "dataclasses", "enum", "functools", "hashlib", "heapq", "json", "math", "operator", "types", "typing",
}  # fmt: skip
LAYERS = (
    "flowserve.core.",
    "flowserve.core",
    "flowserve.graphs.analysis",
    "flowserve.graphs.objectives",
    "flowserve.graphs.output_length",
    "flowserve.graphs.plan",
    "flowserve.config",
    "flowserve.ids",
    "flowserve.errors",
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_imports_only_pure_things(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are by full name"
            names = [node.module or ""]
        for name in names:
            assert name in ALLOWED or name.startswith(LAYERS), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_makes_no_sets_and_asks_for_no_identity(path: Path) -> None:
    """What is never made is never walked; and `id` and `hash` differ between processes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Set | ast.SetComp), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"set", "frozenset", "id", "hash", "open", "print"}, f"{path.name}:{node.lineno}"


def test_importing_the_scheduler_loads_nothing_heavy() -> None:
    code = "import sys, flowserve.core.step, flowserve.core.log; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "torch", "faiss", "fastapi", "uvicorn", "networkx"}
