"""Settings and fixtures of all tests."""

import os
import signal

# Test processes share the cores: one thread each, also in the commands that they start. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# No deadline: timings depend on the load of the machine. CI always runs the same cases.
settings.register_profile("default", max_examples=50, deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")

# Ignored where pytest runs in the background, and commands that the tests start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The fixtures import what they need: pytest-xdist loads this file once more, in a process that runs no tests.


@pytest.fixture(scope="session", autouse=True)
def quick_runs():
    """Leave out what takes most of the time of short runs: fsync, pictures, and measuring the time of a step.

    Commands that the tests start do all of it, and so do tests with the fixture ``pictures``.

    TensorBoard orders the event files of a run by name, which ends in <second>.<host>.<pid>.<number>: sessions of one
    process within a second are only in order if their numbers have equally many digits.
    """
    from tensorboard.summary.writer import event_file_writer

    from mixmatch.cli import check
    from mixmatch.runs.writer import RunWriter

    original = RunWriter.pictures_are_due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10_000))
        patch.setattr(check, "SECONDS", 0.0)
        patch.setattr(RunWriter, "pictures_are_due", lambda self, step: False)
        yield original


@pytest.fixture
def pictures(quick_runs, monkeypatch):
    """Let runs plot pictures."""
    from mixmatch.runs.writer import RunWriter

    monkeypatch.setattr(RunWriter, "pictures_are_due", quick_runs)


@pytest.fixture
def start():
    """Start commands, which are killed after the test."""
    from tests.helpers import process_starter

    with process_starter() as start:
        yield start


@pytest.fixture
def registries():
    """Restore the registries after the test."""
    from mixmatch.data import DATASETS
    from mixmatch.methods import METHODS
    from mixmatch.models import MODELS

    before = [(registry, dict(registry)) for registry in (METHODS, MODELS, DATASETS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
