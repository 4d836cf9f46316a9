"""Settings that every test shares."""

import os

from hypothesis import settings

# Timings depend on what else the machine does. In CI the cases are always the same ones.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")
