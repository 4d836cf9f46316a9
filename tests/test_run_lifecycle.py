"""Run directories in whatever order people start, stop, kill, pause, move, copy, remove, damage and continue them.

Whatever happens: no run has weights or results of another, no finished result is lost, there is no traceback.
More of it: LIVES=500 python -m pytest tests/test_lives.py
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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import main
import pseudo_label
from mixmatch.errors import Interrupted
from mixmatch.files import DamagedFile, load_tensors
from mixmatch.runs.directory import RunDirectory
from tests.helpers import SMALL, after_each_step, at_step, metrics, without_times

TINY = [*SMALL, "data.num_labeled=10", "data.num_validation=10", "train.steps=6", "train.eval_every=3"]
TINY += ["train.checkpoint_every=2", "train.batch_size=2", "mixmatch.num_views=1"]
ROUND = ["pseudo_label.steps=4", "pseudo_label.select=top"]
SEEDS = (1, 2)
PLACES = ("a", "b", "c")


class Killed(BaseException):
    """Stands in for SIGKILL in this process: nothing catches it. What the recorder was given is still written."""


def command(path, seed, *more):
    return main.main(["--run-dir", str(path), *TINY, f"seed={seed}", *more])


def weights(path):
    """Those of the newest checkpoint that is whole, with its step; None if there are none."""
    for file in sorted((path / "checkpoints").glob("step-*.safetensors"), reverse=True):
        try:
            tensors, meta = load_tensors(file)
        except (DamagedFile, OSError):
            continue
        return meta["step"], {name: value for name, value in tensors.items() if name.startswith("model.")}
    return None


class Truth:
    """Each seed's run and round, left alone, step by step."""

    def __init__(self):
        self.root = Path(tempfile.mkdtemp())
        self.weights = {}
        self.results = {}
        self.history = {}
        for seed in SEEDS:
            for kind in ("run", "round"):
                seen = self.weights[seed, kind] = {}

                def watch(trainer, seen=seen):
                    seen[trainer.step] = {
                        f"model.{name}": value.clone() for name, value in trainer.model.state_dict().items()
                    }

                path = self.root / f"{seed}"
                with pytest.MonkeyPatch.context() as patch:
                    after_each_step(patch, watch)
                    if kind == "run":
                        assert command(path, seed) == 0
                    else:
                        seen.update({6: self.weights[seed, "run"][6]})
                        path = self.root / f"{seed}-round"
                        start = ["--run-dir", str(self.root / f"{seed}"), "--output-dir", str(path), *ROUND]
                        assert pseudo_label.main(start) == 0
                self.results[seed, kind] = json.loads((path / "results.json").read_text())
                self.history[seed, kind] = without_times(metrics(path))


truth = None


class Lives(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        global truth
        if truth is None:
            truth = Truth()
        self.root = Path(tempfile.mkdtemp())
        self.is_of = {}  # place: (seed, kind)
        self.finished = set()

    def teardown(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def train(self, place, seed, kind="run", parent=None, at=None, how=None):
        """Train into a place, perhaps stopped or killed at a step, and return the exit code; None if killed."""

        def stop():
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

        path = self.root / place
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, at, stop)
            try:
                if kind == "run":
                    return command(path, seed)
                return pseudo_label.main(["--run-dir", str(self.root / parent), "--output-dir", str(path), *ROUND])
            except Killed:
                return None
            except Interrupted:
                return 128 + signal.SIGTERM

    @rule(
        place=st.sampled_from(PLACES),
        seed=st.sampled_from(SEEDS),
        at=st.integers(1, 7),
        how=st.sampled_from(["kill", "stop"]),
    )
    def start_or_continue(self, place, seed, at, how):
        code = self.train(place, seed, at=at, how=how)
        there = self.is_of.get(place)
        if there is not None and there != (seed, "run"):
            assert code == 2  # another run is there, and stays
            return
        assert code in (0, None, 128 + signal.SIGTERM), code
        if weights(self.root / place) is not None:
            self.is_of[place] = seed, "run"
        if code == 0:
            self.finished.add(place)

    @rule(
        place=st.sampled_from(PLACES),
        parent=st.sampled_from(PLACES),
        at=st.integers(7, 11),
        how=st.sampled_from(["kill", "stop"]),
    )
    def start_or_continue_a_round(self, place, parent, at, how):
        of, there = self.is_of.get(parent), self.is_of.get(place)
        code = self.train(place, None, "round", parent, at, how)
        if there is not None and there[1] == "round":
            assert code in (0, None, 2, 128 + signal.SIGTERM)
        elif of is None or of[1] == "round" or parent not in self.finished or there is not None or place == parent:
            # A round on a round is one of the round's settings; these lives have none.
            if of is not None and of[1] == "round" and code != 2:
                shutil.rmtree(self.root / place)
                self.forget(place)
                return
            assert code == 2, (of, there, code)
        elif weights(self.root / parent)[0] < 6:
            assert code == 2  # the last checkpoint of a finished run is damaged: no round begins at an earlier one
        else:
            assert code in (0, None, 128 + signal.SIGTERM), code
            self.is_of[place] = of[0], "round"
        if code == 0:
            self.finished.add(place)

    @rule(place=st.sampled_from(PLACES))
    def remove(self, place):
        shutil.rmtree(self.root / place, ignore_errors=True)
        self.forget(place)

    @rule(source=st.sampled_from(PLACES), goal=st.sampled_from(PLACES), copying=st.booleans())
    def move_or_copy(self, source, goal, copying):
        if source == goal or not (self.root / source).exists():
            return
        self.remove(goal)
        (shutil.copytree if copying else shutil.move)(self.root / source, self.root / goal)
        if source in self.is_of:
            self.is_of[goal] = self.is_of[source]
        if source in self.finished:
            self.finished.add(goal)
        if not copying:
            self.forget(source)

    @precondition(lambda self: self.is_of)
    @rule(place=st.sampled_from(PLACES), how=st.sampled_from(["cut", "flip", "empty"]))
    def damage_the_newest_checkpoint(self, place, how):
        files = sorted((self.root / place / "checkpoints").glob("step-*.safetensors"))
        if len(files) < 2:
            return
        content = files[-1].read_bytes() or b"x"
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        files[-1].write_bytes({"cut": content[:middle], "flip": flipped, "empty": b""}[how])

    @rule(place=st.sampled_from(PLACES), seed=st.sampled_from(SEEDS), at=st.integers(1, 5), copying=st.booleans())
    def take_a_place_from_a_live_run(self, place, seed, at, copying):
        """While a run trains, its folder is moved away and another put there: it must end and leave that alone."""
        if place in self.is_of or place in self.finished:
            return
        self.remove(place)
        aside, other = self.root / "aside", truth.root / f"{3 - seed}"

        def take_over():
            if not aside.exists():
                (self.root / place).rename(aside)
                if copying:
                    shutil.copytree(other, self.root / place)

        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, at, take_over)
            assert command(self.root / place, seed) == 2
        shutil.rmtree(aside, ignore_errors=True)
        if copying:
            self.is_of[place] = 3 - seed, "run"
            self.finished.add(place)

    def forget(self, place):
        self.is_of.pop(place, None)
        self.finished.discard(place)

    @invariant()
    def every_place_holds_what_it_should(self):
        for place, of in getattr(self, "is_of", {}).items():
            path = self.root / place
            found = weights(path)
            assert found is not None, place
            step, values = found
            expected = truth.weights[of][step]
            assert all(torch.equal(values[name], expected[name]) for name in values), (place, of, step)
            history = metrics(path) if (path / "metrics.jsonl").exists() else []
            whole = {entry["step"]: entry for entry in truth.history[of]}
            assert all(entry == whole[entry["step"]] for entry in without_times(history)), place
            if place in self.finished:
                results = json.loads((path / "results.json").read_text())
                same, expected = without_times([results, truth.results[of]])
                assert same | {"commit": ""} == expected | {"commit": ""}, place
                assert RunDirectory(path).read_results() is not None


Lives.TestCase.settings = settings(
    max_examples=int(os.environ.get("LIVES", "12")),
    stateful_step_count=12,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
TestLives = Lives.TestCase
