"""What a run prints: log records, whoever handles them, and how long it will take."""

import math
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from mixmatch.training.duration import (
    SHORT_ON_CPU,
    DurationEstimator,
    describe_seconds,
    describe_step,
)
from tests.helpers import ROOT, SMALL

# In processes of their own: pytest configures logging.
PRINT = """
import logging, sys
from mixmatch.output import log, print_log_unless_configured
def run(name, quiet):
    with print_log_unless_configured(quiet):
        log.info(f"{name}: step 1")
        log.warning(f"{name}: 100% \\udcff\\nis odd")
"""
TRAIN = f"""
import mixmatch
from mixmatch.training.callbacks import Callback
class Careful(Callback):
    def warnings(self, history):
        return ["careful"]
def run(name, quiet):
    mixmatch.train(mixmatch.load_config(None, {SMALL}), name, quiet=quiet, callbacks=[Careful()])
"""


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar_below_the_lines(tmp_path, start):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    process = start(sys.executable, "main.py", "--run-dir", tmp_path / "run", *SMALL, stdout=end, stderr=end)
    os.close(end)
    printed = b""
    with suppress(OSError):  # at its end
        while part := os.read(terminal, 4096):
            printed += part
    os.close(terminal)
    assert process.wait() == 0
    lines = [line.rpartition("\r")[2] for line in printed.decode().split("\r\n")]
    assert len([line for line in lines if re.match(r"step (6|12) of 12, loss ", line)]) == 2
    assert re.search(r"\r *12/12 00:\d\d<00:00, val \d+\.\d\d%, test \d+\.\d\d% █+", printed.decode())


def printed_by(script, folder):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_without_logging_configured_records_are_printed(tmp_path):
    out, error = printed_by(f"{PRINT}run('a', False)\nprint(logging.getLogger('mixmatch').level)", tmp_path)
    assert out == "a: step 1\n0\n" and error == "warning: a: 100% \\udcff is odd\n"


def test_quiet_prints_nothing(tmp_path):
    assert printed_by(f"{PRINT}run('a', True)", tmp_path) == ("", "")
    command = (
        "from mixmatch.output import print_log\nwith print_log():\n    log.setLevel('WARNING')\n    run('a', True)\n"
    )
    out, error = printed_by(PRINT + command, tmp_path)  # as a command with --quiet
    assert out == "" and error.startswith("warning: ")


def test_records_go_to_the_handlers_of_the_program_alone(tmp_path):
    configure = "logging.basicConfig(level='INFO', filename='log.txt', format='%(levelname)s %(message)s')\n"
    assert printed_by(f"{PRINT}{configure}run('a', False)", tmp_path) == ("", "")
    assert (tmp_path / "log.txt").read_text().splitlines()[0] == "INFO a: step 1"


@pytest.mark.slow
def test_train_prints_lines_and_warnings_unless_quiet(tmp_path):
    assert printed_by(f"{TRAIN}run('quiet', True)", tmp_path) == ("", "")
    out, error = printed_by(f"{TRAIN}run('loud', False)", tmp_path)
    assert out.startswith("loud: mixmatch, digits") and "\ndone: test accuracy" in out
    assert error.count("warning: careful\n") == 2


def measured(num_steps, seconds, steps=10, start=0):
    """An estimator after some steps of so many seconds each."""
    estimator = DurationEstimator(0, start, num_steps, eval_every=100)
    for step in range(steps):
        estimator.add_steps(start + step + 1, 60 if step < 2 else 60 + (step - 1) * seconds)  # two steps warm up
    return estimator


def test_the_estimate_adds_what_was_measured_to_the_steps():
    assert math.isnan(measured(1000, 1.0, steps=2).remaining())
    estimator = measured(1000, 1.0)
    assert estimator.remaining() == 990
    estimator.add_evaluation(68 + 30)
    assert estimator.remaining() == 990 + 10 * 30
    estimator = measured(995, 1.0)
    estimator.add_evaluation(68 + 30)
    assert estimator.remaining() == 985 + 10 * 30  # the last one after step 995


def test_the_estimate_of_a_resumed_run_counts_its_own_steps_only():
    estimator = measured(10_000, 1.0, start=9_500)
    assert estimator.remaining() == 490
    (line,) = estimator.announcement(evaluated=False, on_cpu=False)
    assert line == "about 8 min for the remaining 490 steps (1.0 s a step), evaluations not included"


def test_it_is_announced_once_and_again_after_evaluations_that_change_it_much():
    assert measured(1000, 1.0, steps=4).announcement(False, True) == []  # two steps are too few
    assert measured(1000, 0.1).announcement(False, True) == []  # a second is too short
    estimator = measured(1000, 1.0)
    assert len(estimator.announcement(False, True)) == 1
    for step in range(11, 101):
        estimator.add_steps(step, 68 + (step - 10))
        assert estimator.announcement(False, True) == []
    estimator.add_evaluation(158 + 5)
    assert estimator.announcement(True, True) == []  # 50 s of 1,050 s are little
    estimator.add_steps(200, 163 + 100)
    estimator.add_evaluation(263 + 125)
    assert estimator.announcement(False, True) == []
    (line,) = estimator.announcement(True, True)
    assert line == "about 22 min for the remaining 800 steps (1.0 s a step), evaluations included"
    assert estimator.announcement(True, True) == []


def test_runs_that_end_soon_announce_nothing():
    estimator = DurationEstimator(0, 0, 20, 20)
    for step in range(1, 20):
        estimator.add_steps(step, step)
        assert estimator.announcement(True, True) == []


@pytest.mark.parametrize(
    "on_cpu, num_steps, hint", [(True, 10_000, True), (False, 10_000, False), (True, 5_000, False)]
)
def test_long_runs_on_a_cpu_name_configs_that_end_in_minutes(on_cpu, num_steps, hint):
    lines = measured(num_steps, 1.0).announcement(False, on_cpu)
    assert len(lines) == 1 + hint and (lines[-1] == SHORT_ON_CPU) == hint


def test_durations_are_easy_to_read():
    texts = [describe_seconds(seconds) for seconds in (0.2, 50, 754, 3_599, 12_000, 190_000, 1_262_000)]
    assert texts == ["1 s", "50 s", "13 min", "1 h 0 min", "3 h 20 min", "2 days 5 h", "14 days 15 h"]
    texts = [describe_step(seconds) for seconds in (0.0032, 0.0351, 0.996, 1.23, 12.3)]
    assert texts == ["3.2 ms", "35 ms", "1.0 s", "1.2 s", "12.3 s"]
