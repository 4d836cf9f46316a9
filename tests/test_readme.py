"""The commands, code and figures in README.md."""

import re

import pytest
from PIL import Image

from mixmatch.cli import train
from tests.helpers import ROOT, SMALL

README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in PYTHON_BLOCKS if "mixmatch.train" in block]
    block = block.replace("seed=2", "train.steps=3")
    scope = {}
    exec(block, scope)
    assert scope["results"].steps == 3
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(name)
    (call,) = re.findall(r"^# (model\.predict\(.*?\)):", block, re.MULTILINE)
    assert len(eval(call, scope)) == 2


@pytest.mark.slow
def test_the_example_of_a_method_trains(tmp_path, registries):
    (block,) = [block for block in PYTHON_BLOCKS if "METHODS[" in block]
    (tmp_path / "my_method.py").write_text(block)
    run = ["--import", str(tmp_path / "my_method.py"), "--run-dir", str(tmp_path / "run")]
    assert train.main([*run, *SMALL, "method=mean_teacher", "mean_teacher.weight=20"]) == 0
