"""Whole runs with main.py: what they write and print, how they continue, how they end on invalid input."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main
import mixmatch
import pseudo_label
from mixmatch.config import load_config
from mixmatch.data import load_data
from mixmatch.errors import UserError
from mixmatch.evaluation import class_recalls
from mixmatch.runs.directory import LockedRun, RunDirectory
from mixmatch.runs.progress import HistoryEntry
from mixmatch.runs.results import HeldOutResults
from mixmatch.runs.writer import RunWriter
from mixmatch.training import evaluators
from mixmatch.training.callbacks import Callback
from mixmatch.training.evaluators import Accuracy, CollapseWarning, LabeledAccuracy
from mixmatch.training.messages import describe_imbalance
from mixmatch.training.results import describe_accuracy
from mixmatch.training.setup import find_split
from mixmatch.training.trainer import Trainer
from tests.factories import SPLIT, make_toy_trainer, toy_data
from tests.helpers import (
    ROOT,
    SMALL,
    assert_same_curves,
    assert_same_run,
    at_step,
    curves,
    final,
    metrics,
    run,
    signal_after,
)


def results_of(path):
    return json.loads((path / "results.json").read_text())


@pytest.mark.parametrize("method", ["mixmatch", "supervised", "fixmatch"])
def test_files_and_output_of_a_run(tmp_path, capsys, pictures, method):
    path = tmp_path / "my run"
    assert run(path, f"method={method}") == 0
    config = yaml.safe_load((path / "config.yml").read_text())
    assert config["train"]["steps"] == 12 and config["train"]["lr"] == 0.002
    split = json.loads((path / "split.json").read_text())
    num_unlabeled = 1347 if method == "fixmatch" else 1327  # MixMatch's do not have the labeled ones
    assert [len(split[name]) for name in ("labeled", "validation", "unlabeled")] == [20, 50, num_unlabeled]

    entries, results = metrics(path), results_of(path)
    assert [entry["step"] for entry in entries] == [6, 12]
    assert results["test_accuracy"] == entries[-1]["test_accuracy"] and results["test_accuracy_median20"] is None
    best = max(entries, key=lambda entry: entry["validation_accuracy"])
    assert results["best_validation"] == {"accuracy": best["validation_accuracy"], "step": best["step"]}
    expected = {"steps": 12, "dataset": "digits", "method": method, "num_labeled": 20, "seed": 1, "device": "cpu"}
    assert expected.items() <= results.items()
    assert results["seconds"] > 0 and results["steps_per_second"] > 0 and results["torch"] == torch.__version__
    test = results["test"]
    assert test["images"] == 400 and results["validation"]["images"] == 50
    assert list(test["accuracy_by_class"]) == [str(i) for i in range(10)]
    # There are 40 test images of each digit.
    assert statistics.mean(test["accuracy_by_class"].values()) == pytest.approx(test["accuracy"])
    assert test["balanced_accuracy"] == pytest.approx(test["accuracy"]) == results["test_accuracy"]

    saved = {int(p.stem.removeprefix("step-")) for p in (path / "checkpoints").iterdir()}
    assert {12, best["step"]} <= saved and len(saved) <= 3

    scalars, events = curves(path)
    assert [step for step, _ in scalars["train/loss"]] == [3, 6, 9, 12]
    assert [step for step, _ in scalars["accuracy/test_accuracy"]] == [6, 12]
    assert {"mixed_batch", "confusion/test", "confusion/validation"} <= set(events.Tags()["images"])
    assert ("views_and_guesses" in events.Tags()["images"]) == (method != "supervised")
    assert results["flops_per_forward"] > 1e5
    if method == "mixmatch":
        assert [value for _, value in scalars["train/lambda_u"]] == pytest.approx([22.5, 45, 67.5, 75])
        assert {"guesses/confidence", "guesses/guess_accuracy", "guesses/max_class_frequency"} <= scalars.keys()

    accuracies = {"validation_accuracy", "test_accuracy", "labeled_accuracy"}
    assert {*(f"accuracy/{name}" for name in accuracies), "loss/validation_loss", "loss/test_loss"} <= scalars.keys()
    assert all(0 <= entry["labeled_accuracy"] <= 100 and entry["test_loss"] > 0 for entry in entries)
    assert not any("balanced" in key for key in entries[0])  # the classes of the held-out images are equal

    printed = capsys.readouterr().out
    best_line = f"best validation {best['validation_accuracy']:.2f}% at step {best['step']}"
    assert best_line in next(line for line in printed.splitlines() if line.startswith("step 12 of 12"))
    assert "step 6 of 12, loss" in printed and f"done: test accuracy {results['test_accuracy']:.2f}%" in printed
    assert "of 400 images (95% interval " in printed
    confused = test["most_confused"]
    assert f"confused: {confused['true']} predicted as {confused['predicted']}, {confused['images']} of 40" in printed
    assert f"predict: python3 -m mixmatch predict --run-dir '{path}' IMAGES" in printed
    stage = f"python3 -m mixmatch pseudo-label --run-dir '{path}' pseudo_label.method=softmatch"
    assert (stage in printed) == (method == "mixmatch")

    # Killed before the results were written, it evaluates again.
    (path / "results.json").unlink()
    assert run(path, f"method={method}") == 0
    again = results_of(path)
    assert {k: v for k, v in again.items() if "second" not in k} == {
        k: v for k, v in results.items() if "second" not in k
    }


def test_all_checkpoints_are_kept_and_an_older_one_can_be_continued_or_begin_a_run(tmp_path, capsys):
    path = tmp_path / "run"
    more = ["data.num_validation=0", "train.checkpoint_every=2"]
    assert run(path, *more, "train.keep_checkpoints=all") == 0
    saved = sorted((path / "checkpoints").iterdir())
    assert [file.name for file in saved] == [f"step-{step:08d}.safetensors" for step in range(2, 13, 2)]
    assert "test accuracy" in capsys.readouterr().out

    # An older one begins a new run, or predicts.
    old = mixmatch.load_model(saved[1]).network.state_dict()
    assert run(tmp_path / "next", *more, f"init_from={saved[1]}", "train.keep_checkpoints=1", "train.steps=3") == 0
    assert "initial weights from" in capsys.readouterr().out
    newest = mixmatch.load_model(saved[-1]).network.state_dict()
    assert not all(torch.equal(old[name], newest[name]) for name in old)
    assert [file.name for file in (tmp_path / "next" / "checkpoints").iterdir()] == ["step-00000003.safetensors"]

    # Without the newer ones and the results, the run goes on from it to the same weights.
    shutil.copytree(path, tmp_path / "back")
    for file in (*sorted((tmp_path / "back" / "checkpoints").iterdir())[2:], tmp_path / "back" / "results.json"):
        file.unlink()
    assert run(tmp_path / "back", *more, "train.keep_checkpoints=3") == 0  # may change on resume
    assert "at step 4 of 12" in capsys.readouterr().out
    assert_same_run(path, tmp_path / "back")
    assert len([*(tmp_path / "back" / "checkpoints").iterdir()]) == 3

    saved[1].write_bytes(b"")
    assert run(tmp_path / "other", *more, f"init_from={saved[1]}") == 2
    assert f"{saved[1]}: " in (error := capsys.readouterr().err) and error.endswith("; use another checkpoint\n")
    assert run(tmp_path / "other", *more, f"init_from={saved[1].with_name('step-00000005.safetensors')}") == 2
    assert "step-00000005.safetensors: No such file" in capsys.readouterr().err


def test_balanced_accuracy_is_a_curve_where_classes_are_unequal(tmp_path):
    trainer = make_toy_trainer()  # 40 test images of 3 classes
    accuracy = Accuracy("test", ["a", "b", "c"])
    accuracy.start(trainer, {})
    with RunWriter(LockedRun(tmp_path), 0, 1, enabled=False) as writer:
        values = accuracy.evaluate(0, writer)
    recalls = class_recalls(accuracy.last.confusion)
    assert values["test_balanced_accuracy"] == pytest.approx(statistics.mean(recalls))


def test_labeled_accuracy_is_that_of_evenly_spaced_labeled_images(tmp_path, monkeypatch):
    trainer = make_toy_trainer()
    monkeypatch.setattr(evaluators, "MAX_LABELED", 4)
    seen = []
    monkeypatch.setattr(
        trainer, "predict", lambda images, index: seen.append(index.tolist()) or torch.eye(3)[index % 3]
    )
    accuracy = LabeledAccuracy()
    accuracy.start(trainer, {})
    with RunWriter(LockedRun(tmp_path), 0, 1, enabled=False) as writer:
        assert accuracy.evaluate(0, writer) == {"labeled_accuracy": 100}
    assert seen == [[0, 2, 4, 6]]


@pytest.fixture
def falling(monkeypatch):
    """Let the validation accuracy of runs fall after step 4."""
    evaluate = Accuracy.evaluate

    def falling(self, step, writer):
        values = evaluate(self, step, writer)
        return values | ({"validation_accuracy": 50.0 - abs(step - 4)} if self.images == "validation" else {})

    monkeypatch.setattr(Accuracy, "evaluate", falling)


def test_a_run_ends_early_is_finished_and_goes_on_with_more_patience(tmp_path, monkeypatch, capsys, falling):
    path, often = tmp_path / "run", ["train.eval_every=2"]
    assert run(path, *often, "train.patience=2") == 0
    assert "stopped at step 8 of 12: 2 evaluations without a better validation accuracy" in capsys.readouterr().out
    assert (results_of(path)["steps"], results_of(path)["evaluations_since_best"]) == (8, 2)
    assert final(path)[1]["step"] == 8 and RunDirectory(path).read_results() is not None
    assert mixmatch.load_model(path, best=True).classes == [str(i) for i in range(10)]
    # The same command, also after a kill before the results were written, trains nothing more.
    for remove in (False, True):
        if remove:
            (path / "results.json").unlink()
        assert run(path, *often, "train.patience=2") == 0
        assert final(path)[1]["step"] == results_of(path)["steps"] == 8
    # With more patience, or none, it is the run that did not stop.
    assert run(path, *often, "train.patience=3") == 0
    assert results_of(path)["steps"] == 10
    assert run(path, *often, "train.patience=null") == 0
    assert run(tmp_path / "whole", *often) == 0
    assert_same_run(path, tmp_path / "whole")


def test_a_run_that_improves_does_not_end_early_and_patience_needs_validation_images(tmp_path, capsys, falling):
    assert run(tmp_path / "run", "train.patience=1", "train.steps=4", "train.eval_every=1") == 0
    assert results_of(tmp_path / "run")["steps"] == 4 and "stopped" not in capsys.readouterr().out
    assert run(tmp_path / "none", "train.patience=1", "data.num_validation=0") == 2
    assert "error: train.patience: needs validation images; set data.num_validation" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_median_is_that_of_20_evaluations(tmp_path, capsys):
    assert run(tmp_path / "run", "train.steps=21", "train.eval_every=1") == 0
    accuracies, results = [entry["test_accuracy"] for entry in metrics(tmp_path / "run")], results_of(tmp_path / "run")
    assert results["test_accuracy"] == accuracies[-1]
    assert results["test_accuracy_median20"] == statistics.median(accuracies[1:])
    assert f"median of the last 20 evaluations {results['test_accuracy_median20']:.2f}%" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is_and_another_config_is_refused(tmp_path, capsys):
    assert run(tmp_path / "run") == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*") if "lock" not in file.name}
    capsys.readouterr()
    assert run(tmp_path / "run") == 0
    assert "is finished: test accuracy" in capsys.readouterr().out
    assert run(tmp_path / "run", "seed=2", "train.lr=0.1", "train.steps=14") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(key in error for key in ("seed (1", "train.lr (0.002", "train.steps (12"))
    assert main.main(["--run-dir", str(tmp_path / "run"), "--config", "digits"]) == 2
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


@pytest.mark.slow
def test_without_results_a_finished_run_writes_what_it_has_lost(tmp_path):
    assert run(tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("garbage\n")
    (tmp_path / "damaged" / "images.json").write_text("")
    for name in ("results.json", "model.safetensors"):
        (tmp_path / "damaged" / name).unlink()
    assert run(tmp_path / "damaged") == 0
    assert_same_run(tmp_path / "run", tmp_path / "damaged")
    for name in ("model.safetensors", "images.json"):
        assert (tmp_path / "damaged" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.slow
def test_a_longer_run_is_identical_to_one_that_was_that_long_from_the_start(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    assert run(tmp_path / "whole", "train.steps=20") == 0
    assert run(path) == 0
    signal_after(monkeypatch, 15, signal.SIGTERM)
    assert run(path, "train.steps=20") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert "at step 12 of 20" in capsys.readouterr().out
    # It is not finished now, though it has results.
    assert RunDirectory(path).read_results() is None and results_of(path)["steps"] == 12
    assert pseudo_label.main(["--run-dir", str(path)]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert run(path, "train.steps=20") == 0
    assert_same_run(path, tmp_path / "whole")
    assert yaml.safe_load((path / "config.yml").read_text())["train"]["steps"] == 20
    # It cannot become shorter, nor end where it was not evaluated, and --run-dir alone takes its own length.
    assert run(path) == 2
    assert "it is at step 20 already" in capsys.readouterr().err
    signal_after(monkeypatch, 23, signal.SIGTERM)
    assert run(path, "train.steps=30") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert run(path, "train.steps=23") == 2
    assert "it is at step 23 already" in capsys.readouterr().err
    assert run(path, "train.steps=24") == 0
    assert main.main(["--run-dir", str(path)]) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_intervals_may_change_when_a_run_continues(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    signal_after(monkeypatch, 7, signal.SIGTERM)
    at_step(monkeypatch, 2, lambda: time.sleep(2))
    assert run(tmp_path / "run") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert run(tmp_path / "run", "train.eval_every=3", "train.checkpoint_every=5", "train.log_every=1") == 0
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == [6, 9, 12]
    tensors, others = (final(path)[0] for path in (tmp_path / "run", tmp_path / "whole"))
    assert all(torch.equal(tensors[name], others[name]) for name in tensors if name != "metrics")
    stored = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["train"]
    assert (stored["eval_every"], stored["checkpoint_every"], stored["log_every"]) == (3, 5, 1)
    results = results_of(tmp_path / "run")  # of all parts of the run
    assert results["seconds"] > 2 and results["steps_per_second"] == pytest.approx(12 / results["seconds"], rel=0.01)


@pytest.mark.parametrize(
    "method, among",
    [
        *(("mixmatch", False), ("supervised", False)),
        *((method, True) for method in ("remixmatch", "fixmatch", "freematch", "softmatch")),
    ],
)
def test_labeled_images_are_unlabeled_too_as_in_the_papers_of_the_methods(tmp_path, method, among):
    config = load_config(None, [*SMALL, f"method={method}"])
    split = find_split(RunDirectory(tmp_path), config, load_data(config.data, torch.device("cpu")), None, 0)
    assert (set(split.labeled) <= set(split.unlabeled)) == among


def test_results_name_the_worst_confusion_and_the_recall_of_each_class(monkeypatch):
    trainer, accuracy = make_toy_trainer(), Accuracy("test", ["a", "b", "c"])  # 14, 13 and 13 test images
    accuracy.start(trainer, {})
    predicted = trainer.dataset.held_out["test"][1].clone()
    predicted[[0, 3, 6, 1]] = torch.tensor([2, 2, 2, 0])
    monkeypatch.setattr(trainer, "predict", lambda images: torch.eye(3)[predicted])
    details = accuracy.results()["test"]
    assert details.most_confused.model_dump() == {"true": "a", "predicted": "c", "images": 3, "of": 14}
    assert details.accuracy_by_class == pytest.approx({"a": 1100 / 14, "b": 1200 / 13, "c": 100})


@pytest.mark.slow
def test_guess_accuracy_excludes_labeled_images(tmp_path):
    assert run(tmp_path / "all", "data.num_labeled=all", "data.labeled_as_unlabeled=true") == 0
    assert [entry["guess_accuracy"] for entry in metrics(tmp_path / "all")] == [None, None]
    assert run(tmp_path / "few", "data.labeled_as_unlabeled=true") == 0
    assert all(entry["guess_accuracy"] is not None for entry in metrics(tmp_path / "few"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.optimizer=sgd", "train.lr=0.03", "train.lr_decay_steps=[5]"],
        ["train.optimizer=muon", "train.lr_schedule=linear"],
        ["mixmatch.num_views=3", "mixmatch.guess_with_ema=true", "train.log_every=5", "train.eval_every=7"],
        ["method=freematch", "freematch.unlabeled_ratio=2"],
    ],
    ids=["mixmatch", "sgd", "muon", "ema guesses", "freematch"],  # others in test_pseudo_label
)
def test_a_run_stopped_anywhere_continues_to_the_same_weights(tmp_path, monkeypatch, capsys, settings):
    assert run(tmp_path / "whole", *settings) == 0
    for stop_at, number in ((2, signal.SIGTERM), (7, signal.SIGINT)):
        signal_after(monkeypatch, stop_at, number)
        assert run(tmp_path / "cut", *settings) == 128 + number
        assert f"at step {stop_at}; start it again to continue" in capsys.readouterr().out
        monkeypatch.undo()
    assert run(tmp_path / "cut", *settings) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path, monkeypatch):
    step, answers = Trainer.train_step, []

    def meanwhile(self):
        step(self)
        if self.step == 2:
            command = [sys.executable, "main.py", "--run-dir", str(tmp_path / "run"), *SMALL]
            answers.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))

    monkeypatch.setattr(Trainer, "train_step", meanwhile)
    assert run(tmp_path / "run") == 0
    assert answers[0].returncode == 2
    assert f"is in use by process {os.getpid()} on " in answers[0].stderr and answers[0].stderr.count("\n") == 1


@pytest.mark.slow
def test_a_start_without_a_checkpoint_does_not_block_another_config(tmp_path, monkeypatch):
    signal_after(monkeypatch, 2, signal.SIGTERM)
    assert run(tmp_path / "run", "seed=2") == 128 + signal.SIGTERM
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run(tmp_path / "run", "seed=1") == run(tmp_path / "whole") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_split_file_can_be_given(tmp_path, capsys):
    assert run(tmp_path / "first", "seed=5") == 0
    split = tmp_path / "first" / "split.json"
    assert run(tmp_path / "second", f"data.split_file={split}") == 0
    assert (tmp_path / "second" / "split.json").read_text() == split.read_text()
    labeled = json.loads(split.read_text())["labeled"]
    for number, (override, among) in enumerate((("auto", True), ("true", True), ("false", False))):
        settings = [f"data.split_file={split}", "method=fixmatch", f"data.labeled_as_unlabeled={override}"]
        assert run(tmp_path / str(number), *settings) == 0
        unlabeled = json.loads((tmp_path / str(number) / "split.json").read_text())["unlabeled"]
        assert ({*labeled} <= {*unlabeled}) == among and sorted({*unlabeled}) == unlabeled
    assert run(tmp_path / "back", f"data.split_file={tmp_path / '0' / 'split.json'}") == 0
    assert (tmp_path / "back" / "split.json").read_text() == split.read_text()
    capsys.readouterr()
    assert run(tmp_path / "other", f"data.split_file={split}", "data.num_validation=30") == 2
    assert "data.num_validation: is 30, but data.split_file has 50 validation images" in capsys.readouterr().err
    assert run(tmp_path / "other", f"data.split_file={split}", "data.num_labeled=40") == 2
    assert "data.num_labeled: is 40, but data.split_file labels 20 images" in capsys.readouterr().err


def test_collapsed_guesses_are_warned_of_once():
    def entry(step, **values):
        return HistoryEntry(step=step, validation_accuracy=None, test_accuracy=None, **values)

    fine = entry(1, guesses=[0.4, 0.3, 0.3], effective_num_classes=2.9)
    bad = entry(2, guesses=[0.0, 0.95, 0.05], effective_num_classes=1.2)
    state = {}
    callbacks = [CollapseWarning(["cat", "dog", "fox"], 3.0, "do something") for _ in range(2)]
    for callback in callbacks:
        callback.start(None, state)
    for history in ([bad], [bad, fine], [fine, bad], [entry(1), entry(2)]):
        assert callbacks[0].warnings(history) == []
    assert callbacks[0].warnings([fine, bad, bad]) == ["step 2: 95% of the guessed labels are 'dog'; do something"]
    assert callbacks[0].warnings([bad, bad]) == callbacks[1].warnings([bad, bad]) == []


@pytest.mark.slow
def test_runs_warn_of_collapsed_guesses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CollapseWarning, "warnings", lambda self, history: [self.classes[-1], self.hint])
    assert run(tmp_path / "run") == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4 and warnings[2] == "warning: 9" and "mixmatch.lambda_u" in warnings[3]


def test_the_interval_of_an_accuracy_is_wilsons():
    n, p, z = 400, 0.9425, 1.959964
    center, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = (100 * (center + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    details = HeldOutResults(images=n, accuracy=100 * p, balanced_accuracy=90.0, accuracy_by_class={})
    expected = f"test: 94.25% of 400 images (95% interval {low:.1f} to {high:.1f}), balanced accuracy 90.00%"
    assert describe_accuracy("test", details) == [expected]


def test_imbalanced_labels_are_noted():
    data, split = toy_data(), replace(SPLIT, labeled=[0, 3, 1, 4, 2, 5])
    assert describe_imbalance(data, split) == []
    (note,) = describe_imbalance(data, replace(split, labeled=[0, 3, 6, 1, 4, 2, 5]))
    assert "classes are imbalanced: 2 (c1) to 3 (c0) labeled images; results.json will contain" in note


class Example(Callback):
    name = "example"

    def __init__(self, interrupt_at=None):
        self.interrupt_at = interrupt_at

    def before_step(self, step, writer):
        assert self.trainer.step == step
        if step == self.interrupt_at:
            raise KeyboardInterrupt
        self.state["seen"] = self.state.get("seen", 0) + 1
        return ["halfway"] if step == 6 else []

    def evaluate(self, step, writer):
        return {"step_squared": np.int64(step**2), "own/step": torch.tensor(float(step)), "nothing": None}

    def warnings(self, history):
        return [f"step {entry.step} is beyond 10" for entry in history[-1:] if entry.step > 10]

    def results(self):
        return {"steps_seen": np.int64(self.state["seen"])}


@pytest.mark.slow
def test_a_callback_prints_measures_warns_and_joins_the_results(tmp_path, caplog):
    caplog.set_level("INFO", "mixmatch")
    config = load_config(None, SMALL)
    with pytest.raises(KeyboardInterrupt):
        mixmatch.train(config, tmp_path / "run", callbacks=[Example(interrupt_at=5)])  # after the checkpoint at step 4
    results = mixmatch.train(config, tmp_path / "run", callbacks=[Example()])
    records = [(record.levelname, record.message) for record in caplog.records]
    assert ("INFO", "halfway") in records and ("WARNING", "step 12 is beyond 10") in records
    assert [entry["step_squared"] for entry in metrics(tmp_path / "run")] == [36, 144]
    assert curves(tmp_path / "run")[0]["train/step_squared"] == [(6, 36), (12, 144)]
    assert curves(tmp_path / "run")[0]["own/step"] == [(6, 6), (12, 12)]
    assert results.steps_seen == 12 == results_of(tmp_path / "run")["steps_seen"]
    with pytest.raises(UserError, match="two are named 'example'"):
        mixmatch.train(config, tmp_path / "other", callbacks=[Example(), Example()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, name", [("evaluate", "test_accuracy"), ("evaluate", "loss"), ("results", "seed"), ("results", "validation")]
)
def test_a_callback_cannot_replace_what_the_run_measures(tmp_path, part, name):
    callback = type("Mine", (Callback,), {part: lambda self, *arguments: {name: 99.0}})()
    with pytest.raises(UserError, match=f"callbacks: Mine returns '{name}', which the run has; use another name"):
        mixmatch.train(load_config(None, [*SMALL, "data.num_validation=0"]), tmp_path / "run", callbacks=[callback])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "nowhere.yml"], "nowhere.yml: no such file; give a YAML file"),
        (["--confg", "x"], "unrecognized arguments: --confg"),
        (["--import"], "argument --import: expected one argument; see --help"),
        (["--run-dir", ""], "argument --run-dir: must be a directory with a name; see --help"),
        (["--run-dir", "/"], "argument --run-dir: must be a directory with a name; see --help"),
        (["data.num_labeled=55"], "data.num_labeled: must be divisible by the 10 classes of digits"),
        (["data.num_labeled=100000"], "but needs 10000 for training; lower data.num_labeled"),
        (["data.dataset=folder", "data.root=nowhere"], "nowhere: does not exist"),
        (["data.split_file=nowhere.json"], "nowhere.json: cannot be read (No such file"),
        (["device=cuda:99"], "device: cuda:99 does not exist"),
        (["data.num_labeled=all"], "no unlabeled images are left"),
        (["data.crop_padding=8"], "data.crop_padding: must be less than the image's 8 pixels"),
        (["init_from=nowhere"], "nowhere"),
    ],
)
def test_invalid_input_ends_in_one_line_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main.main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert "file: cannot be written" in capsys.readouterr().err

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)  # root may write anywhere
    assert run(tmp_path / "run") == 2
    assert "run: cannot be written (Permission denied)" in capsys.readouterr().err


def test_the_default_config_is_the_papers():
    config = load_config(ROOT / "config.yml")
    assert (config.mixmatch.num_views, config.mixmatch.temperature, config.mixmatch.alpha) == (2, 0.5, 0.75)
    assert (config.mixmatch.lambda_u, config.mixmatch.ramp_up_steps, config.train.steps) == (75, 16000, 2**20)
    assert (config.train.lr, config.train.weight_decay, config.train.ema_decay) == (0.002, 0.02, 0.999)


@pytest.mark.slow
def test_a_run_without_its_config_is_not_continued_with_another(tmp_path, capsys):
    path = tmp_path / "run"
    assert run(path) == 0
    (path / "config.yml").unlink()
    (path / "results.json").unlink()
    assert run(path, "train.lr=0.5", "train.steps=24") == 2
    assert "has checkpoints but no config.yml; restore it, or remove the directory" in capsys.readouterr().err
