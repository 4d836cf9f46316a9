"""Settings and fixtures that every test shares."""

import os

# Two test processes share the cores: one thread each, and in the commands that they start. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from mixmatch.data import DATASETS
from mixmatch.methods import METHODS
from mixmatch.models import MODELS

# Timings depend on what else the machine does. In CI the cases are always the same ones.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


@pytest.fixture
def registries():
    """Leave the registries as they were."""
    before = [(registry, dict(registry)) for registry in (METHODS, MODELS, DATASETS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
