"""The command ``mixmatch``: its subcommands, how messages name them, and the installed package."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import mixmatch
from mixmatch.cli.common import command_line, next_steps
from mixmatch.cli.main import SUBCOMMANDS, main
from mixmatch.config import config_names
from mixmatch.runs.directory import RunDirectory
from tests.helpers import ROOT, SMALL, run

PLUGIN = ROOT / "tests" / "fixtures" / "plugin.py"


def test_help_version_and_unknown_commands(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert main(["--help"]) == 0 and capsys.readouterr().out == printed
    assert all(f"\n  {name} " in printed for name in SUBCOMMANDS) and "mixmatch train --config digits" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"mixmatch {mixmatch.__version__}\n"
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: 'trian': unknown command; the commands are {', '.join(SUBCOMMANDS)}\n"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_that_names_it(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python3 -m mixmatch {name} ")


def test_the_start_does_not_import_torch():
    script = "import sys; from mixmatch.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "program, predict, compare",
    [
        ("main.py", "python3 predict.py", "python3 -m mixmatch compare"),
        ("./pseudo_label.py", "python3 predict.py", "python3 -m mixmatch compare"),
        ("../my code/main.py", "python3 '../my code/predict.py'", "python3 -m mixmatch compare"),
        ("bin/mixmatch", "bin/mixmatch predict", "bin/mixmatch compare"),
        ("/my site/mixmatch/__main__.py", "python3 -m mixmatch predict", "python3 -m mixmatch compare"),
        ("/bin/pytest", "python3 -m mixmatch predict", "python3 -m mixmatch compare"),
        ("-c", "python3 -m mixmatch predict", "python3 -m mixmatch compare"),
    ],
)
def test_commands_are_named_as_this_one_was_started(monkeypatch, program, predict, compare):
    monkeypatch.setattr(sys, "argv", [program])
    assert (command_line("predict"), command_line("compare")) == (predict, compare)


def test_an_installed_command_on_the_path_is_named_without_its_folder(tmp_path, monkeypatch):
    program = tmp_path / "mixmatch"
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert command_line("predict") == f"{program} predict"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line("predict") == "mixmatch predict"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py")])
    monkeypatch.chdir(ROOT)
    assert command_line("predict") == "python3 predict.py"


@pytest.mark.slow
def test_the_next_steps_fit_the_run(tmp_path, capsys):
    """A stage is advised after a run with few labels by another method; the best checkpoint if it is not the last."""
    enabled = ["pseudo_label.enabled=true", "pseudo_label.method=softmatch", "pseudo_label.steps=2"]
    assert run(tmp_path / "my run", *enabled) == 0
    lines = capsys.readouterr().out.splitlines()
    stage = tmp_path / "my run-softmatch"
    assert f"predict: python3 -m mixmatch predict --run-dir '{stage}' IMAGES" in lines
    assert lines[-1] == f"curves: tensorboard --logdir {tmp_path}" and "continue with" not in "\n".join(lines)

    results = RunDirectory(tmp_path / "my run").read_results()
    softmatch = f"'{tmp_path / 'my run'}' pseudo_label.method=softmatch"
    short = " softmatch.unlabeled_ratio=1 softmatch.momentum=0.99 pseudo_label.lr_schedule=linear"
    for best, expected in ((6, True), (12, False)):
        results.best_validation.step = best
        lines = next_steps(results, tmp_path / "my run")
        assert any("step 6: add --best" in line for line in lines) == expected
        assert f"continue with SoftMatch: python3 -m mixmatch pseudo-label --run-dir {softmatch}{short}" in lines
    lines = next_steps(results.model_copy(update={"steps": 20_000}), tmp_path / "my run")
    assert f"continue with SoftMatch: python3 -m mixmatch pseudo-label --run-dir {softmatch}" in lines
    for values in ({"method": "softmatch"}, {"num_labeled": 251}):
        assert "continue with" not in "\n".join(next_steps(results.model_copy(update=values), stage))


def test_list(capsys, registries, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "--import", str(PLUGIN)]) == 0
    printed = capsys.readouterr().out
    names = [*config_names(), *mixmatch.DATASETS, *mixmatch.METHODS, *mixmatch.MODELS]
    assert {"digits", "toy", "stripes", "tiny"} < {*names}
    assert [name for name in names if f"\n  {name} " not in printed and f"\n  {name}\n" not in printed] == []
    assert "FixMatch as in its paper" in printed and "Cross-entropy on the labeled batch\n" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.slow
def test_the_default_config_is_the_one_in_the_folder_or_the_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [setting for setting in SMALL if setting != "data.dataset=digits"]
    assert main(["train", *small, "train.steps=0"]) == 2
    assert capsys.readouterr().err.startswith("error: config: train.steps: ")
    (tmp_path / "config.yml").write_text("data: {dataset: digits, root: []}")
    assert main(["train"]) == 2
    assert capsys.readouterr().err.startswith("error: config.yml: data.root: ")
    (tmp_path / "config.yml").write_text("name: mine\ndata: {dataset: digits}")
    assert main(["train", *small, "train.steps=2"]) == 0
    assert (tmp_path / "runs" / "mine-seed1" / "results.json").exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, installed in an environment of its own, where dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("installed")
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "mixmatch", checkout / "mixmatch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"mixmatch-{mixmatch.__version__}-")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").rglob("site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    shutil.rmtree(checkout)
    return folder / "venv" / "bin"


@pytest.fixture
def call(installed, tmp_path):
    """Run a command in an empty folder and return what it prints; ``mixmatch`` is on the PATH."""
    folder = tmp_path / "project"
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{installed}:{environment['PATH']}"

    def call(command):
        done = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder
    return call


@pytest.mark.slow
def test_the_installed_command_does_all_steps_in_an_empty_folder(call, installed):
    assert call("mixmatch --version") == f"mixmatch {mixmatch.__version__}\n"
    assert Path(call("python -c 'import mixmatch; print(mixmatch.__file__)'")).is_relative_to(installed.parent)
    assert "  digits " in call("mixmatch list")
    small = " ".join(setting for setting in SMALL if setting != "data.dataset=digits")
    printed = call(f"mixmatch train --check --config digits {small} train.steps=20")
    assert printed.endswith("check passed: ready to train\n")

    path = "runs/digits-20-seed1"
    lines = call(f"mixmatch train --config digits {small}").splitlines()
    assert f"predict: mixmatch predict --run-dir {path} IMAGES" in lines
    assert json.loads((call.folder / path / "results.json").read_text())["commit"] == "unknown"

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:40], digits.target[:40], strict=True)):
        file = call.folder / "images" / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(file)
    printed = call(f"mixmatch predict --run-dir {path} images")
    assert "of 40 files whose class is known" in printed
    rows = list(csv.DictReader((call.folder / "predictions.csv").open()))
    assert len(rows) == 40 and {row["true_class"] for row in rows} == set("0123456789")

    stage = next(line for line in lines if line.startswith("continue")).removeprefix("continue with SoftMatch: ")
    assert f"mixmatch predict --run-dir {path}-softmatch IMAGES" in call(f"{stage} pseudo_label.steps=2")
    printed = call(f"mixmatch compare {path} {path}-softmatch --csv table.csv --plot curves.png")
    assert "| mixmatch " in printed and "| softmatch " in printed
    assert len((call.folder / "table.csv").read_text().splitlines()) == 3
    assert Image.open(call.folder / "curves.png").width > 500
    assert "usage: python3 -m mixmatch predict" in call("python -m mixmatch predict --help")
    (site,) = installed.parent.rglob("site-packages")
    files = (file.relative_to(ROOT) for file in (ROOT / "mixmatch").rglob("*.*") if file.suffix != ".pyc")
    assert all((site / file).exists() for file in files)  # also configs, the labeling page and py.typed
