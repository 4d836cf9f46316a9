"""Small whole runs for the tests, how to compare them, and how to start commands."""

import json
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from hypothesis import HealthCheck, settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from mixmatch.data.stored_images import to_memory
from mixmatch.files import load_tensors
from mixmatch.training.trainer import Trainer

# More with FUZZ_CASES=20000 python -m pytest -k "any_"
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_CASES", "200")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SMALL = [
    "data.dataset=digits",
    "data.num_labeled=20",
    "data.num_validation=50",
    "model.depth=10",
    "model.width=0.5",
    "mixmatch.ramp_up_steps=10",
    "train.steps=12",
    "train.batch_size=8",
    "train.eval_every=6",
    "train.checkpoint_every=4",
    "train.log_every=3",
    "device=cpu",
]


def run(path, *overrides):
    return main.main(["--run-dir", str(path), *SMALL, *overrides])


def after_each_step(monkeypatch, do):
    """Let ``do`` be called with the trainer at the end of every step of runs."""
    step = Trainer.train_step

    def stepping(self):
        step(self)
        do(self)

    monkeypatch.setattr(Trainer, "train_step", stepping)


def at_step(monkeypatch, number, do):
    after_each_step(monkeypatch, lambda trainer: do() if trainer.step == number else None)


def signal_after(monkeypatch, stop_at, number):
    """Let runs get a signal at the end of a step."""
    at_step(monkeypatch, stop_at, lambda: os.kill(os.getpid(), number))


def final(path):
    tensors, meta = load_tensors(sorted((path / "checkpoints").iterdir())[-1])
    return tensors, meta


def without_times(entries):
    """Return entries without what is measured, and without the commit, which may change while the tests run."""
    return [{k: value for k, value in entry.items() if "second" not in k and k != "commit"} for entry in entries]


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a, b):
    (tensors, meta), (others, other_meta) = final(a), final(b)
    assert meta["step"] == other_meta["step"]
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert without_times(metrics(a)) == without_times(metrics(b))
    results = [json.loads((path / "results.json").read_text()) for path in (a, b)]
    assert without_times(results[:1]) == without_times(results[1:])


def curves(path):
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def assert_same_curves(a, b):
    ours, theirs = curves(a)[0], curves(b)[0]
    assert ours.keys() == theirs.keys()
    for tag in ours:
        if tag != "train/steps_per_second":
            assert ours[tag] == theirs[tag], tag


@contextmanager
def process_starter():
    """Yield a function that starts a command. At the end, the commands and all that they started are killed."""
    processes = []

    def start(*command, **options):
        options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        process = subprocess.Popen([*map(str, command)], start_new_session=True, **options)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            with process:  # closes its pipes, and waits
                children = []
                with suppress(psutil.NoSuchProcess):  # torchrun starts its workers in process groups of their own
                    children = psutil.Process(process.pid).children(recursive=True)
                for child in children:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def in_memory(data):
    """Return a data set with its images as tensors; those of a folder are in the file of its cache."""
    images = (images if images is None else to_memory(images, CPU) for images in (data.images, data.test_images))
    return replace(data, **dict(zip(("images", "test_images"), images, strict=True)))
