"""RunWriter: writes in order, as of the call, stops after a failure, and does not slow training down."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from mixmatch.errors import UserError
from mixmatch.runs.directory import LockedRun
from mixmatch.runs.plots import class_label, plot_confusion_matrix, plot_grid
from mixmatch.runs.progress import HistoryEntry, Progress
from mixmatch.runs.writer import RunWriter
from tests.helpers import ROOT, curves, final, metrics


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return LockedRun(tmp_path)


def entry(step):
    return HistoryEntry(step=step, validation_accuracy=None, test_accuracy=50.0)


def preview():
    return {
        "images": torch.rand(30, 3, 8, 8),
        "targets": torch.rand(30, 2).softmax(1),
        "views": torch.rand(2, 10, 3, 8, 8),
        "guesses": torch.rand(10, 2).softmax(1),
    }


def test_a_checkpoint_and_metrics_are_written_as_they_were_at_the_call(run):
    ready = threading.Event()

    class SlowRun(LockedRun):
        def save_checkpoint(self, *arguments):
            ready.wait()
            super().save_checkpoint(*arguments)

    weight = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    before = weight.clone()
    progress = Progress(step=5, history=[entry(5)], callback_state={"mine": {"count": 1}})
    with RunWriter(SlowRun(run.path), 0, 100) as writer:
        writer.checkpoint({"weight": weight}, progress)
        writer.metrics(progress.history)
        weight.zero_()
        progress.history.append(entry(9))
        progress.callback_state["mine"]["count"] = 2
        progress.step = 9
        ready.set()
        writer.wait()
    tensors, meta = final(run.path)
    assert torch.equal(tensors["weight"], before)
    assert meta["step"] == 5 and meta["callback_state"] == {"mine": {"count": 1}}
    assert [line["step"] for line in metrics(run.path)] == [line["step"] for line in meta["history"]] == [5]


SESSIONS = {
    "from step 1": ([(0, {1: 1.0, 2: 2.0}), (1, {2: 3.0, 3: 4.0})], [(1, 1.0), (2, 3.0), (3, 4.0)]),
    "without a checkpoint": ([(0, {1: 1.0, 2: 2.0}), (0, {1: 3.0})], [(1, 3.0)]),
}


@pytest.mark.parametrize("sessions, curve", SESSIONS.values(), ids=SESSIONS.keys())
def test_curves_of_a_resumed_run_are_those_of_an_uninterrupted_one(run, sessions, curve):
    for step, points in sessions:
        with RunWriter(run, step, 100) as writer:
            for at, value in points.items():
                writer.scalars({"loss": value, "test_accuracy": None}, at)
            writer.wait()
    assert curves(run.path)[0] == {"train/loss": curve}


def test_after_a_failure_nothing_is_written_and_every_call_raises(run):
    class FullRun(LockedRun):
        def write_metrics(self, history):
            raise UserError("metrics.jsonl: cannot be written (the disk is full)")

    with RunWriter(FullRun(run.path), 0, 100) as writer:
        writer.metrics([entry(1)])
        with pytest.raises(UserError, match="the disk is full"):
            writer.wait()
        for call in (lambda: writer.file("later.txt", b"text"), lambda: writer.scalars({"loss": 1.0}, 1), writer.wait):
            with pytest.raises(UserError, match="the disk is full"):
                call()
    assert not list(run.path.glob("*.txt")) and curves(run.path)[0] == {}


def test_a_disabled_writer_writes_nothing(run):
    with RunWriter(run, 0, 100, enabled=False) as writer:
        writer.describe_curves({})
        writer.scalars({"loss": 1.0}, 1)
        writer.preview(preview, ["a", "b"], 1)
        writer.file("some.txt", b"")
        writer.metrics([entry(1)])
        writer.checkpoint({"x": torch.zeros(1)}, Progress(step=1))
        writer.wait()
    assert [path.name for path in run.path.rglob("*")] == ["checkpoints"]


def test_tensorboard_shows_descriptions_groups_and_pictures(run, pictures):
    values = {"loss": 1.0, "mine": 2, "guesses": [0.5, 0.5], "confidence": 0.5, "test_accuracy": 90.0}
    with RunWriter(run, 0, 3) as writer:
        writer.describe_curves({"mine": "my curve"})
        for step in (1, 2, 3):
            writer.scalars(values, step)
            writer.confusion("test", np.eye(2, dtype=np.int64), ["a", "b"], step)
            writer.preview(preview, ["a", "b"], step)
        writer.wait()
    scalars, events = curves(run.path)
    assert set(scalars) == {"train/loss", "train/mine", "guesses/confidence", "accuracy/test_accuracy"}
    for tag in (
        "confusion/test",
        "views_and_guesses",
        "mixed_batch",
    ):  # at the first and the last step: within a minute
        assert [image.step for image in events.Images(tag)] == [1, 3]
    assert b"my curve" in events.Tensors("curves/text_summary")[0].tensor_proto.string_val[0]


THREADS = """
import sys, psutil, torch
from pathlib import Path
from mixmatch.runs.directory import LockedRun
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
large, process, run = torch.rand(64, 64, 40, 40), psutil.Process(), LockedRun(Path(sys.argv[1]))
run.checkpoints.mkdir()
(large + 1).sum()  # torch's own threads start
preview = {"images": torch.rand(192, 3, 64, 64), "targets": torch.rand(192, 30).softmax(1)}
with RunWriter(run, 0, 1) as writer:
    writer.wait()
    before = process.num_threads()
    writer.preview(lambda: preview, [str(i) for i in range(30)], 1)
    writer.confusion("test", torch.randint(0, 9, (30, 30)).numpy(), [str(i) for i in range(30)], 1)
    writer.checkpoint({"large": large.contiguous(memory_format=torch.channels_last)}, Progress(step=1))
    writer.wait()
    print(process.num_threads() - before)
"""


@pytest.mark.slow
def test_its_thread_starts_no_threads_that_compete_with_training(tmp_path):
    """OpenMP threads that waited busily for the writer's work made training 2.6 times slower."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", THREADS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


def test_names_of_classes_are_shortened_and_numbers_where_no_font_has_their_letters():
    names = ["Großkatze mit Streifen", "ö $x^", "\U0010fffe", "\udcff", "two\nlines"]
    labels = [class_label(names, number) for number in range(len(names))]
    assert labels == ["Großkatze mit…", "ö $x^", "#2", "#3", "#4"]


@pytest.mark.parametrize("count", [2, 10, 100])
def test_confusion_matrices_have_room_for_any_number_of_classes(count):
    names = [f"$ a class with a long name {i}" for i in range(count)]
    picture = plot_confusion_matrix(np.full((count, count), 3), names)
    assert 300 <= picture.width == picture.height <= 1000
    assert len(np.unique(np.asarray(picture))) > 2  # something is drawn


def test_images_of_other_channels_are_shown_in_gray():
    images = np.stack([np.full((8, 8), level) for level in (-1, 1, 1, 1)])[None]
    pixels = np.asarray(plot_grid(images, [""], columns=1))
    assert (pixels[50, 50, :3] == round(1.5 * 127.5)).all()


def test_captions_of_a_grid_stay_within_its_width():
    grid = plot_grid(np.zeros((5, 1, 8, 8)), ["a very long caption, wider than its image\nsecond"] * 5, columns=3)
    assert grid.size == (3 * 102, 2 * 130) and np.asarray(grid)[:, -4:].min() == 255
