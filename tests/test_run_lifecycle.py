"""Runs and stages that are started, stopped, killed, moved, copied, removed, damaged and continued in any order.

No run ever has weights or results of another, and no finished result is lost.
More cases: LIFECYCLES=500 python -m pytest tests/test_run_lifecycle.py
"""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import main
import pseudo_label
from mixmatch.files import DamagedFile, load_tensors
from mixmatch.runs.directory import RunDirectory
from tests.helpers import SMALL, after_each_step, at_step, metrics, without_times

pytestmark = pytest.mark.hostile
TINY = [*SMALL, "data.num_labeled=10", "data.num_validation=10", "train.steps=6", "train.eval_every=3"]
TINY += ["train.checkpoint_every=2", "train.batch_size=2", "mixmatch.num_views=1"]
STAGE = ["pseudo_label.steps=4", "pseudo_label.select=top"]
SEEDS = (1, 2)
NAMES = st.sampled_from(["a", "b", "c"])
ENDS = st.sampled_from(["kill", "stop"])
STOPPED = 128 + signal.SIGTERM


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it. The writer's thread still ends its work."""


def train(path, seed):
    return main.main(["--run-dir", str(path), *TINY, f"seed={seed}"])


def train_stage(path, parent):
    return pseudo_label.main(["--run-dir", str(parent), "--output-dir", str(path), *STAGE])


def newest_weights(path):
    """Return the step and the weights of the newest intact checkpoint, None without one."""
    for file in sorted((path / "checkpoints").glob("step-*.safetensors"), reverse=True):
        try:
            tensors, meta = load_tensors(file)
        except DamagedFile:
            continue
        return meta["step"], {name: value for name, value in tensors.items() if name.startswith("model.")}
    return None


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The weights after each step, the history and the results of each undisturbed run and stage."""
    root, found = tmp_path_factory.mktemp("references"), {}
    for seed in SEEDS:
        parent, stage = root / f"{seed}", root / f"{seed}-stage"
        for kind, path in (("run", parent), ("stage", stage)):
            weights = {} if kind == "run" else {6: found[seed, "run"][0][6]}

            def keep(trainer, weights=weights):
                values = trainer.model.state_dict()
                weights[trainer.step] = {f"model.{name}": value.clone() for name, value in values.items()}

            with pytest.MonkeyPatch.context() as patch:
                after_each_step(patch, keep)
                assert (train(path, seed) if kind == "run" else train_stage(path, parent)) == 0
            history, results = without_times(metrics(path)), json.loads((path / "results.json").read_text())
            found[seed, kind] = weights, {entry["step"]: entry for entry in history}, results
    return found


class Lifecycle(RuleBasedStateMachine):
    """Run directories, with the seed and kind of what each must contain."""

    references = None

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.contents, self.finished = {}, set()

    def teardown(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def disturbed(self, step, how, command):
        """Return the exit code of a command that is stopped or killed at a step; None if killed."""

        def end():
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, step, end)
            try:
                return command()
            except Killed:
                return None

    @rule(name=NAMES, seed=st.sampled_from(SEEDS), step=st.integers(1, 7), how=ENDS)
    def start_or_continue_a_run(self, name, seed, step, how):
        code = self.disturbed(step, how, lambda: train(self.root / name, seed))
        if self.contents.get(name, (seed, "run")) != (seed, "run"):
            assert code == 2  # another run is there, and stays
            return
        assert code in (0, None, STOPPED)
        if newest_weights(self.root / name) is not None:
            self.contents[name] = seed, "run"
        if code == 0 or (code == STOPPED and (self.root / name / "results.json").exists()):  # in the last step
            self.finished.add(name)

    @rule(name=NAMES, parent=NAMES, step=st.integers(7, 11), how=ENDS)
    def start_or_continue_a_stage(self, name, parent, step, how):
        before, source = self.contents.get(name), self.contents.get(parent)
        if source is not None and source[1] == "stage":
            return  # a stage of a stage has no reference
        code = self.disturbed(step, how, lambda: train_stage(self.root / name, self.root / parent))
        if before is not None and before[1] == "stage":
            assert code in (0, None, 2, STOPPED)
        elif source is None or parent not in self.finished or before is not None:
            assert code == 2
        elif newest_weights(self.root / parent)[0] < 6:
            assert code == 2  # the last checkpoint of the parent is damaged
        else:
            assert code in (0, None, STOPPED)
            self.contents[name] = source[0], "stage"
        if code == 0 or (code == STOPPED and (self.root / name / "results.json").exists()):  # in the last step
            self.finished.add(name)

    @rule(name=NAMES)
    def remove(self, name):
        shutil.rmtree(self.root / name, ignore_errors=True)
        self.contents.pop(name, None)
        self.finished.discard(name)

    @rule(source=NAMES, goal=NAMES, copy=st.booleans())
    def move_or_copy(self, source, goal, copy):
        if source == goal or not (self.root / source).exists():
            return
        self.remove(goal)
        (shutil.copytree if copy else shutil.move)(self.root / source, self.root / goal)
        if source in self.contents:
            self.contents[goal] = self.contents[source]
        if source in self.finished:
            self.finished.add(goal)
        if not copy:
            self.remove(source)

    @precondition(lambda self: self.contents)
    @rule(name=NAMES, how=st.sampled_from(["cut", "flip", "empty"]))
    def damage_the_newest_checkpoint(self, name, how):
        files = sorted((self.root / name / "checkpoints").glob("step-*.safetensors"))
        if len(files) < 2:
            return
        content = files[-1].read_bytes() or b"x"
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        files[-1].write_bytes({"cut": content[:middle], "flip": flipped, "empty": b""}[how])

    @invariant()
    def every_directory_contains_its_own_run(self):
        for name, key in self.contents.items():
            path, (weights, history, expected) = self.root / name, self.references[key]
            step, values = newest_weights(path)
            assert all(torch.equal(values[weight], weights[step][weight]) for weight in values), (name, key, step)
            entries = metrics(path) if (path / "metrics.jsonl").exists() else []
            assert all(entry == history[entry["step"]] for entry in without_times(entries)), name
            if name in self.finished:
                ours, theirs = without_times([json.loads((path / "results.json").read_text()), expected])
                assert ours == theirs, name
                assert RunDirectory(path).read_results() is not None


def test_no_order_of_events_mixes_or_loses_runs(references):
    Lifecycle.references = references
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=int(os.environ.get("LIFECYCLES", "10")),
            stateful_step_count=12,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
