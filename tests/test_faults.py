"""Faults that happen to runs: kills, signals, corrupt checkpoints, full disks. See docs/reliability.md."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import main
import mixmatch.training.loop
from mixmatch.config import all_keys
from mixmatch.data import DATASETS, DatasetEntry
from mixmatch.runs.results import RunResults
from mixmatch.training.evaluators import Accuracy
from mixmatch.training.trainer import Trainer
from tests.helpers import FUZZ, SMALL, assert_same_curves, assert_same_run, at_step, run

pytestmark = pytest.mark.hostile


@pytest.fixture
def start_run(start):
    """Start main.py as a process of its own."""
    return lambda path, *overrides, **options: start(
        sys.executable, "main.py", "--run-dir", path, *SMALL, *overrides, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 40 steps."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert run(path, "train.steps=40") == 0
    return path


def checkpoints(path):
    return sorted((path / "checkpoints").iterdir())


def test_sigkill_while_a_checkpoint_is_written(tmp_path, start_run):
    settings = ["train.steps=100", "train.eval_every=20"]  # more than the kills let pass
    whole, path, chance = tmp_path / "whole", tmp_path / "run", random.Random(0)
    assert run(whole, *settings) == 0
    torn = 0
    for _ in range(2):
        process = start_run(path, *settings)
        process.stdout.readline()  # the run is set up
        time.sleep(chance.uniform(0, 0.1))
        while process.poll() is None:
            if any(name.endswith(".tmp") for name in os.listdir(path / "checkpoints")):
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL
        torn += bool(list(path.rglob("*.tmp")))
    assert torn, "no kill happened during a write"
    # The lock of a killed process does not block.
    assert (path / ".lock-owner").read_text().startswith(f"process {process.pid} on ")
    time.sleep(1)  # TensorBoard orders event files by the second in their names
    assert run(path, *settings) == 0
    assert_same_run(whole, path)
    assert_same_curves(whole, path)
    assert not list(path.rglob("*.tmp"))


def test_a_signal_during_an_evaluation_writes_a_checkpoint_first(tmp_path, monkeypatch, capsys):
    evaluate = Accuracy.evaluate

    def interrupted(self, step, writer):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, step, writer)

    monkeypatch.setattr(Accuracy, "evaluate", interrupted)
    assert run(tmp_path / "run", "train.checkpoint_every=100") == 143
    assert "stopped by SIGTERM at step 6" in capsys.readouterr().out
    assert checkpoints(tmp_path / "run")[-1].stem == "step-00000006"


def test_ctrl_c_before_training_and_a_second_ctrl_c_end_in_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(DATASETS, "digits", DatasetEntry(interrupted))
        assert run(tmp_path / "early") == 130
    assert capsys.readouterr().err.startswith("interrupted; the same command")
    assert not (tmp_path / "early").exists()

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("continued after a second Ctrl-C")

    at_step(monkeypatch, 5, twice)
    assert run(tmp_path / "late") == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert checkpoints(tmp_path / "late")[-1].stem == "step-00000004"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_corrupt_checkpoint_is_skipped(whole, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "results.json").unlink()
    newest = checkpoints(path)[-1]
    newest.write_bytes(newest.read_bytes()[:5000] + b"\x01\x02" + newest.read_bytes()[5002:])
    assert run(path, "train.steps=40") == 0
    error = capsys.readouterr().err
    assert error.count(f"warning: {newest.name}") == 1 and "using step 36" in error
    assert_same_run(whole, path)
    assert_same_curves(whole, path)


def test_if_all_checkpoints_are_corrupt_nothing_is_overwritten(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    for path in checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    assert run(tmp_path / "run", "train.steps=40") == 2
    assert "all checkpoints are corrupt" in capsys.readouterr().err
    assert all(path.stat().st_size == 0 for path in checkpoints(tmp_path / "run"))


@pytest.mark.parametrize("lost", [True, False])
def test_metrics_and_events_that_are_lost_or_end_in_half_a_line(whole, tmp_path, lost):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "results.json").unlink()
    checkpoints(path)[-1].unlink()  # they contain more than the newest checkpoint
    for file in (path / "metrics.jsonl", *path.glob("events.out.tfevents.*")):
        if lost:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-30])
    if lost:
        (path / "split.json").unlink()
    assert run(path, "train.steps=40") == 0
    assert_same_run(whole, path)
    if not lost:
        assert_same_curves(whole, path)


def test_a_disk_that_is_full(whole, tmp_path, capsys):
    """A limit on the size of files, which a checkpoint exceeds."""
    path = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = max(file.stat().st_size for file in checkpoints(whole)) // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        code = run(path, "train.steps=40")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert code == 2 and line.startswith("error: ")
    assert "step-" in line and "cannot be written (File too large)" in line
    assert not list(path.rglob("*.tmp"))
    assert run(path, "train.steps=40") == 0
    assert_same_run(whole, path)
    assert_same_curves(whole, path)


def test_a_full_disk_behind_the_output_and_a_closed_pipe(tmp_path, start_run):
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            process = start_run(tmp_path / "a", stdout=full)
            assert process.communicate()[1] == "error: [Errno 28] No space left on device\n"
        assert process.returncode == 2
    process = start_run(tmp_path / "b", "train.steps=4000")
    process.stdout.readline()
    process.stdout.close()
    assert "error" not in process.stderr.read() and process.wait() == 141


def test_a_weight_that_is_not_finite_stops_within_a_logging_interval(tmp_path, monkeypatch, capsys):
    step = Trainer.train_step

    def poisoned(self):
        step(self)
        if self.step == 7:
            self.model.stem.weight.data[0] = torch.nan

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", poisoned)
        assert run(tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not finite at step" in error
    assert checkpoints(tmp_path / "run")[-1].stem <= "step-00000006"
    assert run(tmp_path / "run") == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_to_lower(tmp_path, monkeypatch, capsys, error):
    def full(self):
        raise error

    monkeypatch.setattr(Trainer, "train_step", full)
    assert run(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cpu: out of memory; lower train.batch_size (8 now)" in error


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def lost(self):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Trainer, "train_step", lost)
    with pytest.raises(torch.AcceleratorError):
        run(tmp_path / "run")


def test_a_changed_environment_is_printed_once(tmp_path, capsys):
    def session(threads, steps):
        torch.set_num_threads(threads)
        try:
            assert run(tmp_path / "run", f"train.steps={steps}") == 0
        finally:
            torch.set_num_threads(1)
        return capsys.readouterr().out

    assert "note:" not in session(1, 4)
    kind = torch.backends.cpu.get_cpu_capability()
    assert session(2, 8).count(f"on the CPU ({kind}) with 1 thread to torch") == 1
    assert "note:" not in session(2, 12)


arguments = st.lists(
    st.tuples(st.sampled_from([key for key, _ in all_keys()]) | st.text(), st.text() | st.floats().map(str)).map(
        "=".join
    )
    | st.text()
    | st.sampled_from(["--config", "--run-dir", "--", "-x", "--run-dir=", "--config=config.yml", "--config=/", "\x00"]),
    max_size=5,
)


@FUZZ
@given(arguments)
def test_any_command_line_trains_or_ends_in_one_line(monkeypatch, capsys, given_arguments):
    results = RunResults.model_construct(method="mixmatch", num_labeled=20, steps=1)
    monkeypatch.setattr(mixmatch.training.loop, "train", lambda *args, **options: results)
    code = main.main([argument for argument in given_arguments if not argument.startswith(("-h", "--h"))])
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert error.count("\n") == (code == 2) and (code == 0 or error.startswith("error: "))
