"""The configuration of a run: its schema, how files and overrides become one, and what may change on resume."""

from mixmatch.config.schema import *  # noqa: F403
