"""Compare finished runs, grouped by the settings that differ, without a table file."""

from collections.abc import Sequence
from pathlib import Path

from mixmatch.config import INTERVAL_KEYS, RESUMABLE_KEYS, flatten
from mixmatch.errors import UserError, single_line
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.results import RunResults
from reproduce.render import MISSING, markdown_table, mean, mean_std

# Runs that differ only in these are in one row; of pseudo_label, the stage has what matters.
IGNORED = {"name", "seed", "data.dataset", *RESUMABLE_KEYS, *INTERVAL_KEYS} - {"data.root"}
KEYS_BY_RULE = {"threshold": ("threshold", "refresh_every"), "top": ("fraction", "refresh_every")}


def compare_runs(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """Return a table in Markdown, with a row for all runs that differ only in the seed, and notes on runs left out.

    Args:
        paths: run directories; files are ignored, so that ``runs/*`` works.

    Raises:
        UserError: if none is a finished run.
    """
    runs, notes = [], []
    for path in paths:
        try:
            if not path.is_file():
                runs.append(read_run(path))
        except UserError as error:
            notes.append(f"left out: {error}")
    if not runs:
        raise UserError("--compare: none of these is a finished run" + "".join(f"; {note}" for note in notes[:3]))

    # A key that some runs do not have, such as another method's, does not separate them from the others.
    values: dict[str, set[str]] = {}
    for settings, _, _ in runs:
        for key, value in settings.items():
            values.setdefault(key, set()).add(value)
    differing = [key for key, found in values.items() if len(found) > 1]
    groups: dict[tuple[str, ...], list[tuple[int, RunResults]]] = {}
    for settings, seed, results in runs:
        group = tuple(settings.get(key, MISSING) for key in differing)
        groups.setdefault(group, []).append((seed, results))
    rows = []
    for group, members in groups.items():
        tests = mean_std(r.test_accuracy for _, r in members)
        best = mean_std(r.best_validation.accuracy if r.best_validation else None for _, r in members)
        seeds = ", ".join(str(seed) for seed in sorted(seed for seed, _ in members))
        rows.append([*group, tests, best, seeds, mean((r.seconds for _, r in members), ".0f")])
    return markdown_table([*differing, "test accuracy (%)", "best validation (%)", "seeds", "seconds"], rows), notes


def read_run(path: Path) -> tuple[dict[str, str], int, RunResults]:
    """Return the settings that may differ, the seed and the results of a finished run.

    Raises:
        UserError: if it is not a finished run.
    """
    run = RunDirectory(path)
    config, results = run.read_config(), run.read_results()
    if results is None:
        raise UserError(f"{path}: not finished; the command that started it continues it")
    settings = {"data": config.data.display_name(), **flatten(config), "stage": None}
    settings = {k: v for k, v in settings.items() if k not in IGNORED and not k.startswith("pseudo_label.")}
    stage = results.pseudo_label
    if stage is not None:
        settings |= {"stage": stage.method or stage.select, "parent_method": stage.parent_method}
        settings |= {
            f"stage.{key}": getattr(config.pseudo_label, key) for key in KEYS_BY_RULE.get(stage.select or "", ())
        }
        if stage.method is not None:  # which settings its parent had
            settings |= {
                f"{stage.parent_method}.{key}": value for key, value in getattr(config, stage.parent_method, ())
            }
    return {key: MISSING if v is None else single_line(v) for key, v in settings.items()}, config.seed, results
