"""The recorder: in order, of the moment it was called at, silent after a failure, and no burden to training."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import ImageFont
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mixmatch.errors import UserError
from mixmatch.runs import fonts
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.fonts import find_font, load_font, show_name
from mixmatch.runs.plots import draw_confusion, draw_grid
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
from tests.helpers import ROOT, SMALL, curves, final, metrics


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return RunDirectory(tmp_path)


def entry(step):
    return {"step": step, "validation_accuracy": None, "test_accuracy": 50.0}


def test_what_is_recorded_is_what_was_there_at_the_call(run):
    weight = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    before = weight.clone()
    gate = threading.Event()
    with RunWriter(run, 0) as recorder:
        recorder._do(lambda board: gate.wait())
        progress = Progress(step=5, history=[entry(5)])
        recorder.metrics(progress.history)
        recorder._tasks.clear()  # or the checkpoint would wait for the gate
        recorder.checkpoint({"weight": weight}, progress)
        weight.zero_()
        progress.history.append(entry(9))
        progress.step = 9
        gate.set()
        recorder.wait()
    tensors, meta = final(run.path)
    assert torch.equal(tensors["weight"], before)
    assert meta["step"] == 5 and meta["history"] == metrics(run.path) == [entry(5)]


def test_a_checkpoint_knows_the_events_recorded_before_it_and_no_later_ones(run):
    with RunWriter(run, 0) as recorder:
        recorder.scalars({"loss": 1.0}, 1)
        recorder.checkpoint({"x": torch.zeros(1)}, Progress(step=1))
        recorder.scalars({"loss": 2.0}, 2)
        recorder.wait()
        size = final(run.path)[1]["events_size"]
        assert 0 < size < recorder._board.path.stat().st_size
    with RunWriter(run, size) as recorder:  # as a resumed run does
        recorder.scalars({"loss": 3.0}, 2)
        recorder.wait()
    assert curves(run.path)[0]["train/loss"] == [(1, 1.0), (2, 3.0)]


def test_after_a_failure_nothing_is_written_and_the_next_calls_say_so(run, monkeypatch):
    def full(*arguments):
        raise UserError("the disk is full")

    gate = threading.Event()
    with RunWriter(run, 0) as recorder:
        monkeypatch.setattr(run, "write_metrics", full)
        recorder._do(lambda board: gate.wait())
        recorder.metrics([entry(1)])
        recorder.file("later.txt", b"text")
        gate.set()
        with pytest.raises(UserError, match="the disk is full"):
            recorder.wait()
        recorder.file("latest.txt", b"text")
        recorder.wait()
    assert not list(run.path.glob("*.txt"))
    monkeypatch.undo()
    with RunWriter(run, 0) as recorder, pytest.raises(UserError, match="the disk is full"):
        monkeypatch.setattr(run, "write_metrics", full)
        recorder.metrics([entry(1)])
        recorder._tasks[0].exception()
        recorder.scalars({"loss": 1.0}, 1)


def test_another_rank_than_the_first_writes_nothing(run):
    with RunWriter(run, 0, writes=False) as recorder:
        recorder.scalars({"loss": 1.0}, 1)
        recorder.file("some.txt", b"")
        recorder.metrics([entry(1)])
        recorder.checkpoint({"x": torch.zeros(1)}, Progress(step=1))
        recorder.wait()
    assert [path.name for path in run.path.rglob("*")] == ["checkpoints"]


THREADS = """
import json, sys, psutil, torch
from pathlib import Path
from mixmatch.runs import fonts
from mixmatch.runs.fonts import find_font, load_font, show_name
from mixmatch.runs.plots import draw_confusion, draw_grid
from mixmatch.runs.writer import RunWriter
from mixmatch.runs.progress import Progress
from mixmatch.runs.directory import RunDirectory
large = torch.rand(64, 64, 40, 40).contiguous(memory_format=torch.channels_last)
(large + 1).sum()  # torch's own threads start
process, counts = psutil.Process(), []
path = Path(sys.argv[1])
(path / "checkpoints").mkdir(parents=True)
with RunWriter(RunDirectory(path), 0) as recorder:
    recorder.scalars({"loss": 1.0}, 1)
    recorder.wait()
    counts.append(process.num_threads())
    preview = {"images": torch.rand(192, 3, 64, 64), "targets": torch.rand(192, 300).softmax(1)}
    recorder.batch(preview, [str(i) for i in range(300)], 1)
    recorder.confusion("test", torch.randint(0, 9, (300, 300)), [str(i) for i in range(300)], 1)
    recorder.checkpoint({"large": large}, Progress(step=1))
    recorder.wait()
    counts.append(process.num_threads())
print(json.dumps(counts))
"""


def test_its_thread_starts_no_others_to_compete_with_training(tmp_path):
    """Threads of OpenMP that wait busily for the recorder's work once made training 2.6 times slower."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", THREADS, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    before, after = json.loads(done.stdout or done.stderr)
    assert after == before


def test_every_tag_is_described_and_settings_are_on_the_hparams_page(tmp_path):
    import main
    import pseudo_label

    assert main.main(["--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    rounds = ["pseudo_label.steps=4", "pseudo_label.select=top"]
    assert (
        pseudo_label.main(["--run-dir", str(tmp_path / "run"), "--output-dir", str(tmp_path / "round"), *rounds]) == 0
    )
    for path in (tmp_path / "run", tmp_path / "round"):
        described, settings, ended = {}, {}, 0
        for event in EventFileLoader(str(path / "events.out.tfevents.0")).Load():
            for value in event.summary.value:
                data = value.metadata.plugin_data
                if data.plugin_name == "hparams":
                    content = HParamsPluginData.FromString(data.content)
                    ended += content.HasField("session_end_info")
                    settings |= dict(content.session_start_info.hparams.items())
                else:
                    described.setdefault(value.tag, value.metadata.summary_description)
        assert len(described) > 12 and all(described.values()), [tag for tag, text in described.items() if not text]
        assert settings["train.lr"].number_value == 0.002 and settings["mixmatch.mixup"].string_value == "joint"
        assert settings["data.labeled_as_unlabeled"].bool_value is False and ended == 1
        assert "classes: #0 0, #1 1" in described["confusion/test"]


def test_names_are_drawn_in_a_font_that_has_their_letters_or_as_numbers(monkeypatch):
    names = ["Großkatze mit Streifen", "ö", "猫", "\U0010fffe"]
    assert show_name(names, 3) == "#3"
    monkeypatch.setattr(fonts, "_fonts", lambda: [])
    find_font.cache_clear()
    assert show_name(names, 2) == "#2" and isinstance(load_font("猫", 12), ImageFont.FreeTypeFont)
    monkeypatch.undo()
    find_font.cache_clear()
    for number, name in enumerate(names[:3]):
        font = find_font(name)
        if font:  # then it has the letters: each is drawn otherwise than a missing one
            loaded = load_font(name, 16)
            assert all(bytes(loaded.getmask(c)) != bytes(loaded.getmask("\U0010ffff")) for c in name if c != " ")
            assert show_name(names, number) == (name if len(name) <= 14 else name[:13] + "…")


def test_pictures_have_room_for_names_of_any_length_and_number():
    for count in (2, 10, 100):
        names = [f"a class with a long name {i}" for i in range(count)]
        picture = draw_confusion(np.full((count, count), 3), names)
        assert picture.width == picture.height <= 1100
    grid = draw_grid(np.zeros((5, 1, 8, 8)), ["a very long caption indeed, wider than its picture\nsecond"] * 5, 3)
    assert grid.width == 3 * 102 and np.asarray(grid)[:, -4:].min() == 255


def test_damaged_fonts_of_the_system_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "sans.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_fonts", lambda: [str(tmp_path / "sans.ttf"), str(tmp_path / "none.ttf")])
    find_font.cache_clear()
    assert find_font("猫") is None
    monkeypatch.undo()
    find_font.cache_clear()
