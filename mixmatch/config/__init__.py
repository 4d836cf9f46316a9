"""The configuration of a run: its schema, how files and overrides are loaded, and what may change on resume."""

from mixmatch.config.load import (
    all_keys,
    apply_overrides,
    build_config,
    config_names,
    flatten,
    load_config,
    to_yaml,
)
from mixmatch.config.resume import (
    INTERVAL_KEYS,
    RESUMABLE_KEYS,
    differing_keys,
    differing_pseudo_label_keys,
    merge_for_resume,
)
from mixmatch.config.schema import Config, PseudoLabelSettings, TrainSettings

__all__ = [
    "INTERVAL_KEYS",
    "RESUMABLE_KEYS",
    "Config",
    "PseudoLabelSettings",
    "TrainSettings",
    "all_keys",
    "apply_overrides",
    "build_config",
    "config_names",
    "differing_keys",
    "differing_pseudo_label_keys",
    "flatten",
    "load_config",
    "merge_for_resume",
    "to_yaml",
]
