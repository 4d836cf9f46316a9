"""Compare finished runs by what differs in their configs, without a table file."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mixmatch.config import INTERVAL_KEYS, RESUMABLE_KEYS, PseudoLabelSettings, flat
from mixmatch.errors import UserError, describe_error, single_line
from mixmatch.files import read_file
from mixmatch.methods import METHODS
from mixmatch.runs.directory import RunDirectory
from reproduce.results import MISSING, RunResult, spread

# What only some rules of pseudo-labels look at.
OF_RULES = {"method": ("method",), "threshold": ("threshold",), "fraction": ("top", "balanced")}
IGNORED = {"name", "seed", "data.dataset", *RESUMABLE_KEYS, *INTERVAL_KEYS}


def is_ignored(key: str) -> bool:
    """Tell whether runs that differ in a key may still stand in one row, or another key says the same."""
    return key in IGNORED or key.startswith("pseudo_label.")


def _images(path: Path) -> str:
    """Return a few letters that tell training images apart, of runs whose names for them are the same."""
    try:
        return str(json.loads(read_file(path / "split.json"))["fingerprint"])[:6]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "unknown"


def compare_runs(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """Return a table of runs in Markdown, a row for all that differ in their seed alone; and notes on runs left out.

    Args:
        paths: run directories. What is no finished run is left out.

    Raises:
        UserError: if none is left.
    """
    notes: list[str] = []
    settings: dict[Path, dict[str, object]] = {}
    outcomes: dict[Path, RunResult] = {}
    for path in paths:
        run = RunDirectory(path)
        if path.is_file():  # such as a sheet of --check beside runs
            continue
        try:
            config, results = run.read_config(), run.read_results()
            if results is None:
                raise UserError(f"{path}: is not finished")
            outcomes[path] = RunResult.model_validate(results)
        except UserError as error:
            notes.append(f"left out: {single_line(error)}")
            continue
        except ValidationError as error:
            notes.append(f"left out: {single_line(path)}: results.json: {describe_error(error)}")
            continue
        settings[path] = {"data": config.data.title(), "images": _images(path), **flat(config)}
        rounds = results.get("pseudo_label") or {}
        select = rounds.get("select")
        for key in (*PseudoLabelSettings.model_fields, "method_before"):
            if key in rounds and select in OF_RULES.get(key, (select,)):
                settings[path][f"round.{key}"] = rounds[key]
        before = rounds.get("method_before")
        if isinstance(before, str) and before in METHODS:  # the run that a round by another method goes on from
            settings[path] |= {f"{before}.{key}": value for key, value in getattr(config, before)}
    if not settings:
        raise UserError("--compare: none of these is a finished run" + "".join(f"; {note}" for note in notes[:3]))
    keys = [key for key in dict.fromkeys(key for values in settings.values() for key in values) if not is_ignored(key)]
    # What only some can have, such as the settings of a method, does not set them apart from those that cannot.
    differing = [key for key in keys if len({str(values[key]) for values in settings.values() if key in values}) > 1]
    if "round.select" in keys and not all("round.select" in values for values in settings.values()):
        differing = [*dict.fromkeys([*differing, "round.select"])]
    rows: dict[tuple[str, ...], list[Path]] = {}
    for path, values in settings.items():
        rows.setdefault(
            tuple("null" if (value := values.get(key, MISSING)) is None else str(value) for key in differing), []
        ).append(path)
    head = [*differing, "test accuracy (%)", "best validation (%)", "seeds", "seconds"]
    lines = [head, ["---"] * len(head)]
    for shown, members in rows.items():
        tests = [value for path in members if (value := outcomes[path].test_accuracy) is not None]
        best = [value.accuracy for path in members if (value := outcomes[path].best_validation) is not None]
        seconds = f"{statistics.mean(outcomes[path].seconds for path in members):.0f}"
        seeds = sorted(int(settings[path]["seed"]) for path in members)
        lines.append([*shown, spread(tests), spread(best), ", ".join(map(str, seeds)), seconds])
    return "\n".join(
        "| " + " | ".join(single_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    ), notes
