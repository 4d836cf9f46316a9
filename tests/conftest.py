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
def fast_and_ordered_writes():
    """Make fsync do nothing: it takes half of the time of short runs. Commands that the tests start do call it.

    TensorBoard orders the event files of a run by name, which ends in <second>.<host>.<pid>.<number>: sessions of one
    process within a second are only in order if their numbers have equally many digits.
    """
    from tensorboard.summary.writer import event_file_writer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10_000))
        yield


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
