"""A method, a network and a data set from a file outside the package; and which way imports run."""

import ast
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import torch

import main
import pseudo_label
from mixmatch.config import all_keys, load_config, to_yaml
from mixmatch.data.pool import Pool
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from mixmatch.methods import METHODS, Method
from mixmatch.methods.base import Examples, Loss
from mixmatch.models import MODELS
from tests.factories import CPU, SPLIT, make_toy_trainer, toy_data
from tests.helpers import ROOT, assert_same_curves, assert_same_run, curves, final, metrics

TOYS = ROOT / "tests" / "fixtures" / "plugin.py"
SETTINGS = [
    "method=toy",
    "device=cpu",
    "model.network=tiny",
    "model.channels=6",
    "model.bn_momentum=0.1",
    "data.dataset=stripes",
    "data.noise=10",
    "data.num_labeled=8",
    "data.num_validation=10",
    "train.ema_decay=0.9",
    "train.batch_size=8",
    "train.eval_every=20",
    "train.checkpoint_every=4",
    "train.log_every=10",
    "toy.weight=2.0",
]


def command(path, *overrides):
    return [sys.executable, "main.py", "--import", str(TOYS), "--run-dir", str(path), *SETTINGS, *overrides]


def test_a_toy_method_network_and_data_set_train_by_the_command_and_survive_a_kill(tmp_path, registries):
    settings = ["train.steps=400"]
    options = {"cwd": ROOT, "text": True}
    done = subprocess.run(command(tmp_path / "whole", *settings), capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert "toy, stripes 8x8, 2 classes: 8 labeled, 182 unlabeled, 10 validation, 40 test images; tiny" in done.stdout
    for pause in (0.2, 0.1):
        process = subprocess.Popen(command(tmp_path / "cut", *settings), stdout=subprocess.PIPE, **options)
        process.stdout.readline()
        time.sleep(pause)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command(tmp_path / "cut", *settings), capture_output=True, check=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")

    scalars = curves(tmp_path / "whole")[0]
    assert len(scalars["train/distance"]) == 40 and scalars["train/toy_weight"][-1] == (400, 2.0)
    assert {"distance", "toy_weight", "guess_accuracy"} <= metrics(tmp_path / "whole")[0].keys()
    state = final(tmp_path / "whole")[0]["method.shares"]
    assert state.sum().item() == pytest.approx(1, abs=1e-3) and not torch.equal(state, torch.full((2,), 0.5))
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["test_accuracy_last"] > 90

    # The run says what it needs, in one line; nothing of it was run. With the file it opens anywhere.
    with pytest.raises(UserError, match=r"config.yml: method: must be .*, got 'toy'; --import FILE brings others"):
        load_model(tmp_path / "whole")
    import_toys()
    model = load_model(tmp_path / "whole")
    assert model.classes == ["lying", "standing"] and model.network.conv.out_channels == 6
    to = ["--output-dir", str(tmp_path / "round"), "pseudo_label.steps=20"]
    assert pseudo_label.main(["--import", str(TOYS), "--run-dir", str(tmp_path / "whole"), *to]) == 0
    assert "method.shares" in final(tmp_path / "round")[0]


def import_toys():
    from mixmatch.cli.common import import_files

    import_files(["--import", str(TOYS)])


def test_help_lists_imported_keys_and_slips_are_one_line(tmp_path, registries, capsys):
    with pytest.raises(SystemExit):
        main.main(["--import", str(TOYS), "--help"])
    printed = capsys.readouterr().out
    for key in ("toy.weight", "model.channels", "data.noise", "mixmatch.alpha", "model.depth"):
        assert f"\n  {key} " in printed
    arguments = ["--import", str(TOYS), "--run-dir", str(tmp_path / "run"), *SETTINGS]
    for slip, message in {
        "toy.wieght=1": "toy.wieght: unknown key; did you mean toy.weight?",
        "toy.weight=-1": "toy.weight: must be greater than or equal to 0, got -1",
        "model.depth=10": "model.depth: unknown key",
        "data.noise=x": "data.noise: must be a valid integer, got 'x'",
    }.items():
        assert main.main([*arguments, slip]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


HEAD = "from mixmatch.methods import METHODS\nfrom mixmatch.methods.base import Method\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            HEAD + "class Mine(Method):\n    parts = ('loss', 'x')\nMETHODS['mine'] = Mine",
            "parts cannot be called loss",
        ),
        (HEAD + "METHODS['run_name'] = METHODS['mixmatch']", "'run_name' cannot be the name"),
        (
            HEAD + "from mixmatch.settings import Settings\nclass S(Settings):\n    k: int\n"
            "class Mine(Method):\n    Settings = S\nMETHODS['mine'] = Mine",
            "S: every key needs a default: k: Field required",
        ),
        (HEAD + "METHODS['mine'] = type('Mine', (), {})", "METHODS: mine: must be a class made from Method"),
        (HEAD + "METHODS['mine'] = 'mixmatch'", "METHODS: mine: must be a class made from Method, got 'mixmatch'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import models", "the networks are imported as mixmatch.models"),
        ("import mixmatch.main", "ModuleNotFoundError"),
        (None, "No such file"),
        ("1 +", "SyntaxError"),
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("from mixmatch.methods import METHODS\nMETHODS['train'] = METHODS['mixmatch']", "'train' cannot be the name"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, registries, capsys, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert main.main(["--import", str(file), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_postponed_annotations_and_sections_without_keys_work(tmp_path, registries, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Annotated\n"
        "from pydantic import Field\nfrom mixmatch.methods import METHODS, Method\n"
        "from mixmatch.settings import Settings\n\n@dataclass\nclass Thing:\n    a: int = 1\n\n"
        "class S(Settings):\n    rate: Annotated[float, Field(gt=0)] = Field(1.0, description='a rate')\n\n"
        "class Mine(Method):\n    Settings = S\n\nclass Plain(Method):\n    pass\n"
        "METHODS |= {'mine': Mine, 'plain': Plain}\n"
    )
    assert main.main(["--import", str(file), "mine.rate=-1"]) == 2
    assert "mine.rate: must be greater than 0, got -1" in capsys.readouterr().err
    assert main.main(["--import", str(file), "plain=3"]) == 2
    assert "plain: must be a section without keys" in capsys.readouterr().err


def test_another_network_starts_from_its_own_defaults_not_the_former_ones(registries):
    class Deep(MODELS["wide_resnet"].settings_type):
        depth: int = 3

    class Other(MODELS["wide_resnet"]):
        Settings = Deep

    MODELS["deep"] = Other
    config = load_config(ROOT / "config.yml", ["model.network=deep", "model.bn_momentum=0.5"])
    assert (config.model.depth, config.model.bn_momentum) == (3, 0.5)
    assert load_config(ROOT / "config.yml", ["model.network=wide_resnet"]).model.depth == 28
    assert [key for key, _ in all_keys()].count("model.depth") == 2


class Unguessed(Method):
    """Mean Teacher in kind: unlabeled images, and no guesses. Its parts are none."""

    num_views = 1
    guesses = False

    def make_examples(self, networks, batch, draws):
        return Examples(torch.cat([batch.x, batch.u[0]]), torch.cat([batch.p, batch.p]))

    def loss(self, network, examples, schedules):
        logits = network(examples.images, num_batches=2)
        return Loss(logits[: self.task.batch_size].logsumexp(dim=1).mean() - 0 * logits.sum(), {})


def test_a_method_that_guesses_nothing_trains_and_one_that_says_it_does_is_named(registries):
    METHODS["unguessed"] = Unguessed
    trainer = make_toy_trainer(method="unguessed")
    trainer.train_step()
    assert trainer.read_statistics().keys() == {"lr", "loss"} and "views" not in trainer.preview()
    METHODS["unguessed"] = type("Wrong", (Unguessed,), {"guesses": True})
    with pytest.raises(ValueError, match="let it say guesses = False"):
        make_toy_trainer(method="unguessed").train_step()


def test_a_pool_answers_by_what_is_asked():
    pool = Pool(toy_data(), SPLIT, CPU, seed=1)
    assert [len(pool.places(3, size, size).x_index) for size in (8, 4, 8)] == [8, 4, 8]
    whole = pool.places(3, 8, 16)
    shares = [pool.places(3, 8, 16, rank, 2) for rank in (0, 1)]
    for together, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat(parts), together)
    generator = torch.Generator().manual_seed(0)
    batch = pool.batch(whole, pool.draw(8, 16, num_views=3, generator=generator))
    assert batch.x.shape == (8, 3, 8, 8) and batch.p.shape == (8, 3) and batch.u.shape == (3, 16, 3, 8, 8)


def test_a_config_can_be_pickled():
    for config in (load_config(None), load_config(ROOT / "configs" / "digits.yml", ["model.width=0.5"])):
        assert pickle.loads(pickle.dumps(config)) == config


def test_a_run_that_uses_nothing_imported_opens_without_the_import(tmp_path, registries):
    import_toys()
    (tmp_path / "plain.yml").write_text(to_yaml(load_config(ROOT / "configs" / "digits.yml")))
    (tmp_path / "mine.yml").write_text(to_yaml(load_config(ROOT / "configs" / "digits.yml", ["method=toy"])))
    plain, mine = ((tmp_path / name).read_text() for name in ("plain.yml", "mine.yml"))
    assert "toy" not in plain and "supervised:" not in plain and "\ntoy:\n" in mine and str(TOYS) not in mine
    del METHODS["toy"]
    assert load_config(tmp_path / "plain.yml") == load_config(ROOT / "configs" / "digits.yml")


def modules():
    """Every module of the package and the commands, by name, with the names of those it imports."""
    graph = {}
    packages = {"mixmatch": ROOT / "mixmatch", "mixmatch.models": ROOT / "models", "reproduce": ROOT / "reproduce"}
    for package, folder in packages.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            graph[".".join(part for part in parts if part != "__init__")] = file
    graph |= {name: ROOT / f"{name}.py" for name in ("main", "predict", "pseudo_label")}
    imports = {}
    for name, file in graph.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (named & graph.keys()) or ({node.module} & graph.keys())
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & graph.keys()
        imports[name] = found - {name}
    return imports


def assert_no_circle(graph):
    state = {}

    def visit(name, path):
        assert state.get(name) != "open", f"a circle: {' -> '.join([*path, name])}"
        if name in state:
            return
        state[name] = "open"
        for other in sorted(graph[name]):
            visit(other, [*path, name])
        state[name] = "done"

    for name in graph:
        visit(name, [])


def test_imports_run_one_way():
    graph = modules()
    assert len(graph) > 30
    assert_no_circle(graph)


def test_packages_import_each_other_one_way():
    """mixmatch.data, mixmatch.methods and so on, each as a whole."""
    packages = {}
    for name, others in modules().items():
        package = ".".join(name.split(".")[:2])
        packages.setdefault(package, set()).update(".".join(other.split(".")[:2]) for other in others)
    assert_no_circle({package: others - {package} for package, others in packages.items()})


def test_no_file_and_no_function_is_too_long():
    folders = ("mixmatch", "models", "reproduce", "benchmarks")
    for file in [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]:
        text = file.read_text()
        assert len(text.splitlines()) <= 300 or file == ROOT / "mixmatch" / "config.py", file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = len((ast.get_docstring(node) or "").splitlines())
                assert node.end_lineno - node.lineno + 1 - docstring <= 60, (file.name, node.name)


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "mixmatch").rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"mixmatch.models"}


@pytest.mark.parametrize("editable", [False, True])
def test_it_works_from_anywhere_once_installed(tmp_path, editable):
    checkout = tmp_path / "checkout"
    for folder in ("mixmatch", "models"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").rglob("site-packages")
    (site / "dependencies.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
    subprocess.run([*pip, *["--editable"] * editable, "."], cwd=checkout, check=True)
    # Another project, which has folders of these names itself.
    for name in ("models", "data", "tests"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    script = """
import mixmatch
from mixmatch.models import WideResNet
config = mixmatch.build_config({"data": {"dataset": "digits", "num_labeled": 20}, "model": {"depth": 10, "width": 0.5},
                                "train": {"steps": 2, "batch_size": 8}})
print(mixmatch.train(config, "run", quiet=True)["steps"], mixmatch.load_model("run").classes[3], mixmatch.__file__)
"""
    done = subprocess.run([python, "-c", script], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.stdout.startswith("2 3 "), done.stderr
    assert (str(checkout) in done.stdout) is editable
