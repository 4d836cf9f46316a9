"""Imports run one way, and the methods and data sets need few of them."""

import ast
import graphlib
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def imported_modules(code, names):
    """Those of ``names`` that a module imports, in functions too, but not for type checkers only."""
    found, skipped = set(), set()
    for node in ast.walk(code):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(ast.walk(node))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node not in skipped:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            found |= submodules or {node.module}
    return found & names


def test_imports_run_one_way():
    files = [*ROOT.glob("*.py"), *(ROOT / "mixmatch").rglob("*.py"), *(ROOT / "reproduce").rglob("*.py")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    assert len(modules) > 30
    imports = {name: imported_modules(ast.parse(file.read_text()), modules.keys()) for name, file in modules.items()}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which lists the modules of a cycle


@pytest.mark.slow
def test_methods_and_data_sets_import_little_but_torch():
    script = "import torch, sys; known = set(sys.modules); "
    script += "import mixmatch.methods.mixmatch; print(*set(sys.modules) - known); "
    script += "import mixmatch.data; print(*set(sys.modules) - known)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    by_methods, by_both = (set(line.split()) for line in done.stdout.splitlines())
    assert "mixmatch.methods.mixup" in by_methods and "mixmatch.data" in by_both - by_methods
    heavy = {"matplotlib", "sklearn", "tensorboard", "torchvision"}
    assert not by_both & heavy and not by_methods & {"PIL", "psutil", "tqdm"}
