"""Whole runs, through main.py: what they leave, how they continue, how they end on bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats

import main
import pseudo_label
from mixmatch.config import load_config
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.training.callbacks import Callback
from mixmatch.training.evaluators import CollapseWatch
from mixmatch.training.loop import train
from mixmatch.training.results import wilson_interval
from mixmatch.training.trainer import Trainer
from tests.helpers import ROOT, SMALL, assert_same_curves, assert_same_run, curves, final, metrics, run, signal_after


@pytest.mark.parametrize("method", ["mixmatch", "supervised"])
def test_a_run_leaves_what_it_should(tmp_path, capsys, method):
    assert run(tmp_path / "run", f"method={method}") == 0
    path = tmp_path / "run"
    config = yaml.safe_load((path / "config.yml").read_text())
    assert config["train"]["steps"] == 12 and config["train"]["lr"] == 0.002
    split = json.loads((path / "split.json").read_text())
    assert (len(split["labeled"]), len(split["validation"]), len(split["unlabeled"])) == (20, 50, 1327)

    entries = metrics(path)
    assert [entry["step"] for entry in entries] == [6, 12]
    results = json.loads((path / "results.json").read_text())
    tests = [entry["test_accuracy"] for entry in entries]
    assert results["test_accuracy"] == pytest.approx(sum(tests) / 2) and results["test_accuracy_last"] == tests[-1]
    best = max(entries, key=lambda entry: entry["validation_accuracy"])
    assert results["best_validation"] == {"accuracy": best["validation_accuracy"], "step": best["step"]}
    expected = {"steps": 12, "dataset": "digits", "method": method, "num_labeled": 20, "seed": 1, "device": "cpu"}
    assert expected.items() <= results.items()
    assert results["seconds"] > 0 and results["steps_per_second"] > 0 and results["torch"] == torch.__version__

    saved = {int(p.stem.removeprefix("step-")) for p in (path / "checkpoints").iterdir()}
    assert {12, best["step"]} <= saved and len(saved) <= 3

    scalars, events = curves(path)
    assert [step for step, _ in scalars["train/loss"]] == [3, 6, 9, 12]
    assert [step for step, _ in scalars["accuracy/test_accuracy"]] == [6, 12]
    images = {"mixed_batch", "confusion/test", "confusion/validation"}
    if method == "mixmatch":
        images |= {"views_and_guesses"}
        assert [value for _, value in scalars["train/lambda_u"]] == pytest.approx([22.5, 45, 67.5, 75])
        assert {"guesses/confidence", "guesses/guess_accuracy", "guesses/max_class_frequency"} <= scalars.keys()
    assert set(events.Tags()["images"]) == images
    printed = capsys.readouterr().out
    assert "step 6 of 12, loss" in printed and "done: test accuracy" in printed


def test_the_same_command_again_says_finished_and_another_config_is_refused(tmp_path, capsys):
    assert run(tmp_path / "run") == 0
    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name
    }
    capsys.readouterr()
    assert run(tmp_path / "run") == 0
    assert "is finished: test accuracy" in capsys.readouterr().out
    assert run(tmp_path / "run", "seed=2", "train.lr=0.1", "train.steps=14") == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "seed (1 there, 2 now), train.lr (0.002 there, 0.1 now), train.steps (12 there, 14" in error
    )
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())


def test_a_longer_run_is_the_run_that_was_that_long_from_the_start(tmp_path, capsys):
    assert run(tmp_path / "whole", "train.steps=20") == 0
    assert run(tmp_path / "run") == 0
    capsys.readouterr()
    assert run(tmp_path / "run", "train.steps=20") == 0
    printed = capsys.readouterr().out
    assert "continuing" in printed and "at step 12 of 20" in printed and "done: test accuracy" in printed
    ours, theirs = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert [entry["step"] for entry in ours] == [6, 12, 18, 20] == [entry["step"] for entry in theirs]
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["train"]["steps"] == 20
    # From now on it is that run: the former length is refused, and no length is asked of --run-dir alone.
    assert run(tmp_path / "run") == 2
    assert "train.steps (20 there, 12 now)" in capsys.readouterr().err
    assert main.main(["--run-dir", str(tmp_path / "run")]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_made_longer_is_not_finished_until_it_is(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "run") == 0
    signal_after(monkeypatch, 15, signal.SIGTERM)
    assert run(tmp_path / "run", "train.steps=20") == 128 + signal.SIGTERM
    assert RunDirectory(tmp_path / "run").read_results() is None
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 12  # kept until there are others
    monkeypatch.undo()
    assert pseudo_label.main(["--run-dir", str(tmp_path / "run")]) == 2
    assert "is no finished run" in capsys.readouterr().err
    assert run(tmp_path / "run", "train.steps=16") == 0  # not as long as was asked for, but no shorter than it is
    assert run(tmp_path / "run", "train.steps=20") == 0
    assert run(tmp_path / "run", "train.steps=19") == 2
    assert "train.steps (20 there, 19 now); it is at step 20 already" in capsys.readouterr().err
    assert main.main(["--run-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 20


@pytest.mark.parametrize(
    "settings",
    [
        ["train.lr_schedule=cosine"],
        ["mixmatch.ramp_up_steps=null"],
        ["method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.ramp_up_steps=null"],
    ],
)
def test_a_run_whose_schedules_depend_on_its_length_is_not_made_longer(tmp_path, capsys, settings):
    assert run(tmp_path / "run", *settings) == 0
    assert run(tmp_path / "run", *settings, "train.steps=20") == 2
    error = capsys.readouterr().err
    assert "train.steps (12 there, 20 now); its schedules depend on its length" in error and "init_from=RUN" in error


def test_how_often_a_run_is_looked_at_may_change_under_way(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    signal_after(monkeypatch, 7, signal.SIGTERM)
    assert run(tmp_path / "run") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert run(tmp_path / "run", "train.eval_every=3", "train.checkpoint_every=5", "train.log_every=1") == 0
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == [6, 9, 12]
    tensors, others = (final(path)[0] for path in (tmp_path / "run", tmp_path / "whole"))
    assert all(torch.equal(tensors[name], others[name]) for name in tensors if name != "totals")
    stored = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["train"]
    assert (stored["eval_every"], stored["checkpoint_every"], stored["log_every"]) == (3, 5, 1)


def test_run_alone_continues_whatever_the_default_config_says(
    tmp_path, monkeypatch, capsys
):
    signal_after(monkeypatch, 5, signal.SIGTERM)
    assert run(tmp_path / "run", "train.lr=0.004") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert main.main(["--run-dir", str(tmp_path / "run")]) == 0
    assert "continuing" in capsys.readouterr().out
    assert main.main(["--run-dir", str(tmp_path / "run"), "train.steps=14"]) == 0
    assert "at step 12 of 14" in capsys.readouterr().out
    assert main.main(["--run-dir", str(tmp_path / "run"), "--config", str(ROOT / "configs" / "digits.yml")]) == 2


def test_the_end_says_how_sure_it_is_what_is_confused_and_what_to_do_next(tmp_path, capsys):
    path = tmp_path / "my run"
    assert run(path) == 0
    printed = capsys.readouterr().out
    results = json.loads((path / "results.json").read_text())
    assert results["test_images"] == 400 and results["validation_images"] == 50
    shares = results["test_accuracy_by_class"]
    assert list(shares) == [str(i) for i in range(10)]
    # There are 40 test images of each digit.
    assert sum(shares.values()) / 10 == pytest.approx(results["test_accuracy_last"])
    assert results["test_accuracy_balanced"] == pytest.approx(results["test_accuracy_last"])
    confused = results["test_most_confused"]
    assert f"most confused: {confused['true']} taken for {confused['predicted']}, {confused['images']} of 40" in printed
    assert f"use it: python3 predict.py --run-dir '{path}' PICTURES" in printed
    assert f"go on: python3 pseudo_label.py --run-dir '{path}'" in printed
    # Killed before the results were written, it measures again.
    (path / "results.json").unlink()
    assert run(path) == 0
    again = json.loads((path / "results.json").read_text())
    assert {k: v for k, v in again.items() if "second" not in k} == {
        k: v for k, v in results.items() if "second" not in k
    }


@pytest.mark.parametrize("right, count", [(0, 10), (1, 10), (50, 100), (93, 100), (400, 400)])
def test_the_interval_of_an_accuracy_is_wilsons(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_guess_accuracy_leaves_out_what_is_trained_on(tmp_path):
    assert run(tmp_path / "all", "data.num_labeled=all", "data.labeled_as_unlabeled=true") == 0
    assert [entry["guess_accuracy"] for entry in metrics(tmp_path / "all")] == [None, None]
    assert run(tmp_path / "few", "data.labeled_as_unlabeled=true") == 0
    assert all(entry["guess_accuracy"] is not None for entry in metrics(tmp_path / "few"))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["method=supervised"],
        ["train.optimizer=sgd", "train.lr=0.03", "train.lr_decay_steps=[5]"],
        ["train.optimizer=muon", "train.lr_schedule=linear"],
        ["mixmatch.num_views=3", "mixmatch.guess_with_ema=true", "train.log_every=5", "train.eval_every=7"],
        ["method=remixmatch", "remixmatch.num_strong_views=2", "train.lr_schedule=cosine"],
        ["method=freematch", "freematch.unlabeled_ratio=2"],
        ["method=softmatch", "softmatch.unlabeled_ratio=2", "train.optimizer=sgd", "train.lr_schedule=cosine"],
    ],
    ids=["mixmatch", "supervised", "sgd", "muon", "ema guesses, odd rhythm", "remixmatch", "freematch", "softmatch"],
)
def test_a_run_stopped_anywhere_continues_to_the_same_weights(tmp_path, monkeypatch, capsys, settings):
    assert run(tmp_path / "whole", *settings) == 0
    for stop_at, number in ((2, signal.SIGTERM), (7, signal.SIGINT)):
        signal_after(monkeypatch, stop_at, number)
        assert run(tmp_path / "cut", *settings) == 128 + number
        assert f"at step {stop_at}; the same command continues" in capsys.readouterr().out
        monkeypatch.undo()
    assert run(tmp_path / "cut", *settings) == 0
    assert "continuing" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")


def test_no_whole_checkpoint_is_an_error_and_nothing_is_overwritten(tmp_path, capsys):
    run(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert run(tmp_path / "run") == 2
    assert "no checkpoint is whole" in capsys.readouterr().err
    assert all(path.stat().st_size == 0 for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_a_second_process_is_kept_out(tmp_path, capsys, monkeypatch):
    step = Trainer.train_step
    answers = []

    def meanwhile(self):
        step(self)
        if self.step == 2:
            command = [sys.executable, "main.py", "--run-dir", str(tmp_path / "run"), *SMALL]
            answers.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))

    monkeypatch.setattr(Trainer, "train_step", meanwhile)
    assert run(tmp_path / "run") == 0
    assert answers[0].returncode == 2
    assert f"is in use by process {os.getpid()} on " in answers[0].stderr and answers[0].stderr.count("\n") == 1


def test_a_split_file_can_be_given(tmp_path):
    run(tmp_path / "first", "seed=5")
    split = tmp_path / "first" / "split.json"
    assert run(tmp_path / "second", f"data.split_file={split}") == 0
    assert (tmp_path / "second" / "split.json").read_text() == split.read_text()


def test_collapse_is_said_once():
    progress = Progress()
    watch = CollapseWatch(["cat", "dog", "fox"], 3.0, "do something", progress)
    fine = {"step": 1, "guesses": [0.4, 0.3, 0.3], "max_class_frequency": 0.4, "effective_num_classes": 2.9}
    bad = {"step": 2, "guesses": [0.0, 0.95, 0.05], "max_class_frequency": 0.95, "effective_num_classes": 1.2}
    assert watch.warn([bad]) == watch.warn([bad, fine]) == watch.warn([fine, bad]) == watch.warn([{}, {}]) == []
    (warning,) = watch.warn([fine, bad, bad])
    assert warning.startswith("at step 2 the guessed labels go to few classes (95% to 'dog')")
    assert warning.endswith("; do something")
    assert (
        watch.warn([bad, bad])
        == CollapseWatch(["cat", "dog", "fox"], 3.0, "do something", progress).warn([bad, bad])
        == []
    )


class Beside(Callback):
    """A hook of one's own."""

    def start(self, trainer, memory):
        self.trainer, self.memory = trainer, memory

    def before_step(self, step, recorder):
        assert self.trainer.step == step
        self.memory["seen"] = self.memory.get("seen", 0) + 1
        return ["halfway"] if step == 6 else []

    def evaluate(self, step, recorder):
        return {"step_squared": step**2}

    def warn(self, history):
        return [f"step {entry['step']} is beyond 10" for entry in history[-1:] if entry["step"] > 10]

    def results(self):
        return {"steps_seen": self.memory["seen"]}


def test_a_hook_of_ones_own_reports_measures_warns_and_joins_the_results(tmp_path, capsys):
    class Stop(Beside):
        def warn(self, history):
            raise KeyboardInterrupt

    Stop.__name__ = "Beside"
    with pytest.raises(KeyboardInterrupt):
        train(load_config(None, SMALL), tmp_path / "run", hooks=[Stop()])  # after the checkpoint at step 4
    results = train(load_config(None, SMALL), tmp_path / "run", hooks=[Beside()])
    printed = capsys.readouterr()
    assert "\nhalfway\n" in printed.out and "warning: step 12 is beyond 10\n" in printed.err
    assert [entry["step_squared"] for entry in metrics(tmp_path / "run")] == [36, 144]
    assert curves(tmp_path / "run")[0]["train/step_squared"] == [(6, 36), (12, 144)]
    assert results["steps_seen"] == 12 == json.loads((tmp_path / "run" / "results.json").read_text())["steps_seen"]


@pytest.fixture
def photographs(tmp_path):
    from PIL import Image

    for part, count in (("train/cat", 4), ("train/dog", 7), ("unlabeled", 20)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (i * 9, len(part) * 9, 50)).save(tmp_path / "photos" / part / f"{i}.png")
    return tmp_path / "photos"


def test_own_photographs_few_labeled_and_a_heap_unlabeled(tmp_path, photographs):
    folder = [
        "data.dataset=folder",
        f"data.root={photographs}",
        "data.num_labeled=all",
        "data.num_validation=2",
        "data.image_size=12",
    ]
    assert run(tmp_path / "run", *folder) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_accuracy"] is None and results["best_validation"]["accuracy"] >= 0
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["labeled"]) == 9 and len(split["unlabeled"]) == 20


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "nowhere.yml"], "nowhere.yml: No such file or directory"),
        (["--confg", "x"], "unrecognized arguments: --confg"),
        (["train.lr"], "overrides look like train.lr=0.03"),
        (["data.num_labeled=25"], "data.num_labeled: must be divisible by the 10 classes of digits, got 25"),
        (["data.num_labeled=100000"], "data.num_labeled: 10000 images of each class are too many: class '0' has 138"),
        (["data.dataset=folder", "data.root=nowhere"], "nowhere/train: is not there"),
        (["data.split_file=nowhere.json"], "nowhere.json: No such file"),
        (["device=cuda:99"], "device: cuda:99 is not there"),
        (["data.num_labeled=all"], "no image is left to be unlabeled"),
        (["data.crop_padding=8"], "data.crop_padding: must be below the image's 8 pixels, got 8"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_no_permission_to_write(tmp_path, capsys, monkeypatch):
    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write anywhere, so the fault is put in
    assert run(tmp_path / "run") == 2
    assert "run: cannot be written (Permission denied)" in capsys.readouterr().err


def test_a_run_directory_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert "file: cannot be written" in capsys.readouterr().err


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "data.num_labeled" in printed and "train.checkpoint_every" in printed


def test_the_default_run_directory_is_named_after_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main([*SMALL, "name=mine", "seed=3"]) == 0
    assert (tmp_path / "runs" / "mine-seed3" / "results.json").exists()


def test_requirements_and_environment_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.txt"] and "python>=3.11" in environment["dependencies"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


def test_default_config_is_the_papers():
    config = load_config(ROOT / "config.yml")
    assert (config.mixmatch.num_views, config.mixmatch.temperature, config.mixmatch.alpha) == (2, 0.5, 0.75)
    assert (config.mixmatch.lambda_u, config.mixmatch.ramp_up_steps, config.train.steps) == (75, 16000, 2**20)
    assert (config.train.lr, config.train.weight_decay, config.train.ema_decay) == (0.002, 0.02, 0.999)
