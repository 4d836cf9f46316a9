"""Faults injected for real: what README's table of promises says, row by row."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import main
import mixmatch.training.loop
from mixmatch.config import all_keys, build_config
from mixmatch.data import DATASETS, Dataset, DataSettings, load_data
from mixmatch.errors import UserError
from mixmatch.training.evaluators import Accuracy
from mixmatch.training.trainer import Trainer
from tests.helpers import (
    DEEP,
    FUZZ,
    NASTY,
    ROOT,
    SMALL,
    assert_same_curves,
    assert_same_run,
    curves,
    metrics,
    run,
    signal_after,
)


def command(path, *overrides):
    return [sys.executable, "main.py", "--run-dir", str(path), *SMALL, *overrides]


def start(path, *overrides, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command(path, *overrides), cwd=ROOT, text=True, **options)


def finish(path, *overrides, **options):
    process = start(path, *overrides, **options)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 40 steps."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert run(path, "train.steps=40") == 0
    return path


def the_error(output):
    """The one line that is no warning."""
    (line,) = [line for line in output.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    return line


def test_sigkill_at_random_and_in_the_checkpoint_write(tmp_path):
    settings = ["train.steps=200", "train.eval_every=20"]  # more than five kills can let pass
    whole = tmp_path / "whole"
    assert finish(whole, *settings)[0] == 0
    path, chance = tmp_path / "run", random.Random(0)
    torn = 0
    for aimed in (False, True, False, True, True):
        process = start(path, *settings)
        process.stdout.readline()  # the run is set up
        time.sleep(chance.uniform(0, 0.1))
        while aimed and process.poll() is None:
            if any(name.endswith(".tmp") for name in os.listdir(path / "checkpoints")):
                break
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        torn += bool(list(path.rglob("*.tmp")))
    assert torn, "no kill fell into a write"
    assert finish(path, *settings)[0] == 0
    assert_same_run(whole, path)
    assert_same_curves(whole, path)
    assert not list(path.rglob("*.tmp"))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_says_how_to_continue(tmp_path, number, code):
    process = start(tmp_path / "run", "train.steps=100000")
    process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and not err.replace("warning: ", "").count("error")
    assert f"stopped by {number.name} at step" in out and "the same command continues" in out
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].stem
    assert int(saved.removeprefix("step-")) == int(out.split("at step ")[-1].split(";")[0])


def test_ctrl_c_before_training_and_a_second_ctrl_c_end_in_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(DATASETS, "digits", Dataset(interrupted))
    assert run(tmp_path / "early") == 130
    assert (
        capsys.readouterr().err
        == "interrupted; the same command starts again, from the last checkpoint if there is one\n"
    )
    monkeypatch.undo()

    step = Trainer.train_step

    def twice(self):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on after a second Ctrl-C")
        step(self)

    monkeypatch.setattr(Trainer, "train_step", twice)
    assert run(tmp_path / "late") == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted((tmp_path / "late" / "checkpoints").iterdir())[-1].stem == "step-00000004"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:5000] + b"\x01\x02" + path.read_bytes()[5002:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(pickle.dumps(Malice(path.with_name("sprung")))),
        lambda path: torch.save({"x": Malice(path.with_name("sprung"))}, path),
    ],
    ids=["truncated", "flipped bytes", "empty", "a pickle with code", "a torch file with code"],
)
def test_a_checkpoint_that_is_not_ours_is_passed_over(whole, tmp_path, capsys, spoil):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "results.json").unlink()
    newest = sorted((path / "checkpoints").iterdir())[-1]
    spoil(newest)
    assert run(path, "train.steps=40") == 0
    out = capsys.readouterr().out
    assert out.count(f"warning: {newest.name}") == 1 and "going on from step 36" in out
    assert_same_run(whole, path)
    assert_same_curves(whole, path)
    assert not list(tmp_path.rglob("sprung"))


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_quota_on_file_size(whole, tmp_path):
    """EFBIG while a checkpoint is written, then, with room for that, while TensorBoard's events are."""
    path = tmp_path / "run"
    size = max(file.stat().st_size for file in (whole / "checkpoints").iterdir())
    for limit, victim in ((size // 2, "step-"), (size + 1000, "events.out")):

        def quota(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code, _, err = finish(path, "train.steps=40", preexec_fn=quota)
        assert code == 2 and "cannot be written (File too large)" in the_error(err) and victim in err
        assert not list(path.rglob("*.tmp"))
    assert run(path, "train.steps=40") == 0
    assert_same_run(whole, path)
    assert_same_curves(whole, path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB; skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(whole, tmp_path, small_disk):
    code, _, err = finish(small_disk / "run", "train.steps=4000")
    assert code == 2 and "cannot be written (No space left on device)" in the_error(err)
    # What is there can be continued elsewhere, and it is a part of the uninterrupted run.
    shutil.copytree(small_disk / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yml"
    config.write_text(config.read_text().replace("steps: 4000\n", "steps: 40\n"))
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        assert int(checkpoint.stem.removeprefix("step-")) <= 40, "the disk is too large for this test"
    assert run(tmp_path / "run", "train.steps=40") == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_read_only_disk(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, _, err = finish(small_disk / "run")
    assert code == 2 and "cannot be written (Read-only file system)" in the_error(err)


def test_a_full_disk_behind_the_output_and_a_closed_pipe(tmp_path):
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            code, _, err = finish(tmp_path / "a", stdout=full)
        assert code == 2 and err == "error: [Errno 28] No space left on device\n"
    with start(tmp_path / "b", "train.steps=4000") as process:
        process.stdout.readline()
        process.stdout.close()
        assert "error" not in process.stderr.read() and process.wait() == 141


def test_a_signal_during_an_evaluation_writes_a_checkpoint_first(tmp_path, monkeypatch, capsys):
    evaluate = Accuracy.evaluate

    def interrupted(self, step, recorder):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, step, recorder)

    monkeypatch.setattr(Accuracy, "evaluate", interrupted)
    assert run(tmp_path / "run", "train.checkpoint_every=100") == 143
    assert "stopped by SIGTERM at step 6" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-00000006.safetensors").exists()


def test_a_lock_left_behind_is_no_obstacle(tmp_path):
    process = start(tmp_path / "run")
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert (tmp_path / "run" / ".lock-owner").read_text().startswith(f"process {process.pid} on ")
    assert run(tmp_path / "run") == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_weight_stops_within_a_logging_interval(tmp_path, monkeypatch, capsys, value):
    step = Trainer.train_step

    def poisoned(self):
        step(self)
        if self.step == 7:
            self.model.stem.weight.data[0] = value

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    assert run(tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert (error.count("\n") == 1 and "no longer finite at step 8" in error) or "at step 9" in error
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].stem <= "step-00000006"
    monkeypatch.undo()
    assert run(tmp_path / "run") == 0


def test_out_of_gpu_memory_names_what_to_lower(tmp_path, monkeypatch, capsys):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    monkeypatch.setattr(Trainer, "train_step", full)
    assert run(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train.batch_size=8; lower that" in error


@pytest.mark.parametrize("member", ["../evil", "/tmp/mixmatch-evil", "link"])
def test_an_archive_that_reaches_out_is_never_unpacked(tmp_path, monkeypatch, member):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        entry = tarfile.TarInfo(member)
        if member == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UserError, match="could not be downloaded"):
        load_data(DataSettings(dataset="cifar10", root=str(root)), torch.device("cpu"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert {path.name for path in root.iterdir()} <= {CIFAR10.filename}
    assert not Path("/tmp/mixmatch-evil").exists()


def test_a_hundred_thousand_files_in_a_class(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "train" / name / "0.bmp")
    many = tmp_path / "train" / "a"
    for i in range(1, 100_000):
        if i % 50_000 == 1:  # a file can have some 65,000 names
            source = many / f"{i}.bmp"
            shutil.copy(many / "0.bmp", source)
        else:
            os.link(source, many / f"{i}.bmp")
    config = build_config({"data": {"dataset": "folder", "root": str(tmp_path), "image_size": 4}})
    data = load_data(config.data, torch.device("cpu"))
    assert data.labels.bincount().tolist() == [100_000, 1] and (data.images == 7).all()


def test_half_lines_after_a_crash(whole, tmp_path):
    """Metrics and events that end in half a line, and hold more than the checkpoint knows."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "results.json").unlink()
    for checkpoint in sorted((path / "checkpoints").iterdir())[-1:]:
        checkpoint.unlink()
    (path / "metrics.jsonl").write_text((path / "metrics.jsonl").read_text()[:-30])
    events = path / "events.out.tfevents.0"
    events.write_bytes(events.read_bytes()[:-30])
    assert run(path, "train.steps=40") == 0
    assert_same_run(whole, path)
    assert_same_curves(whole, path)


def test_lost_events_and_metrics_do_not_stop_a_run(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    for name in ("results.json", "metrics.jsonl", "events.out.tfevents.0", "split.json"):
        (path / name).unlink()
    sorted((path / "checkpoints").iterdir())[-1].unlink()
    assert run(path, "train.steps=40") == 0
    assert_same_run(whole, path)
    assert [step for step, _ in curves(path)[0]["train/loss"]][-1] == 40


def test_a_moved_run_and_a_clock_that_jumps(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    signal_after(monkeypatch, 7, signal.SIGTERM)
    assert run(tmp_path / "here") == 143
    monkeypatch.undo()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 2e9))
    assert run(tmp_path / "there") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "there")
    assert_same_curves(tmp_path / "whole", tmp_path / "there")


def test_another_number_of_threads_is_said_once(tmp_path, capsys):
    def session(threads, steps):
        torch.set_num_threads(threads)
        try:
            assert run(tmp_path / "run", f"train.steps={steps}") == 0
        finally:
            torch.set_num_threads(1)
        return capsys.readouterr().out

    assert "note:" not in session(1, 4)
    assert session(2, 8).count("on the CPU with 1 threads, now with torch") == 1
    assert "note:" not in session(2, 12)


def test_the_first_checkpoint_format_is_still_read(tmp_path, capsys):
    shutil.copytree(ROOT / "tests" / "fixtures" / "run-format-1", tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())
    assert main.main(["--config", str(tmp_path / "run" / "config.yml"), "--run-dir", str(tmp_path / "run")]) == 0
    assert "continuing" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == config["train"]["steps"] == 6
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == [2, 4, 6]


anything = st.text() | st.integers().map(str) | st.floats().map(str) | NASTY | st.sampled_from(["null", "[]", "{}"])
keys = st.sampled_from([key for key, _ in all_keys()]) | st.text() | DEEP
arguments = st.lists(
    st.tuples(keys, anything).map("=".join)
    | st.text()
    | st.sampled_from(["--config", "--run-dir", "--", "-x", "--run-dir=", "--config=config.yml", "--config=/", "\x00"]),
    max_size=5,
)


@FUZZ
@given(arguments)
def test_any_command_line_ends_in_a_run_or_in_one_line(monkeypatch, capsys, given_arguments):
    monkeypatch.setattr(mixmatch.training.loop, "train", lambda config, path, ranks, signals: None)
    code = main.main([argument for argument in given_arguments if not argument.startswith(("-h", "--h"))])
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert error.count("\n") == (code == 2) and (code == 0 or error.startswith("error: "))
