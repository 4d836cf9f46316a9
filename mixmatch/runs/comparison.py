"""Compares runs: groups those that differ only in the seed, and summarizes each group."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmatch.config import INTERVAL_KEYS, RESUMABLE_KEYS, Config, flatten
from mixmatch.data.split import load_split
from mixmatch.errors import single_line
from mixmatch.files import csv_text
from mixmatch.markdown import MISSING, markdown_table, mean, mean_std
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.plots import Curves
from mixmatch.runs.progress import HistoryEntry
from mixmatch.runs.results import RunResults

# Runs that differ only in these are in one group; of pseudo_label, the stage has what matters.
IGNORED = {"name", "seed", "data.dataset", *RESUMABLE_KEYS, *INTERVAL_KEYS}
IGNORED -= {"train.precision", "train.patience"}
KEYS_BY_RULE = {"threshold": ("threshold", "refresh_every"), "top": ("fraction", "refresh_every")}


@dataclass(frozen=True)
class ComparedRun:
    """A run, finished or not.

    Attributes:
        path: the run directory.
        seed: of the run.
        settings: the values of the keys in which runs may differ, as text.
        results: None if the run is not finished.
        history: the evaluations.
    """

    path: Path
    seed: int
    settings: dict[str, str]
    results: RunResults | None
    history: list[HistoryEntry]

    def curve(self, accuracy: str) -> dict[int, float]:
        """Return the ``test_accuracy`` or ``validation_accuracy`` by step, in percent; empty without such images."""
        values = {entry.step: getattr(entry, accuracy) for entry in self.history}
        return {step: value for step, value in values.items() if value is not None}


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed.

    Attributes:
        settings: the values of the keys in which the groups differ; MISSING where the runs do not have the key.
        runs: in order of the seed.
    """

    settings: dict[str, str]
    runs: list[ComparedRun]

    @property
    def finished(self) -> list[RunResults]:
        """The results of the finished runs."""
        return [run.results for run in self.runs if run.results is not None]

    @property
    def test_accuracies(self) -> list[float]:
        """Of the last evaluations, in percent."""
        return [r.test_accuracy for r in self.finished if r.test_accuracy is not None]

    @property
    def best_validations(self) -> list[float]:
        """The highest validation accuracies, in percent."""
        return [r.best_validation.accuracy for r in self.finished if r.best_validation is not None]

    def curves(self, accuracy: str) -> Curves:
        """Return the curves of the runs, and their mean at the steps at which all finished runs were evaluated.

        Args:
            accuracy: ``test_accuracy`` or ``validation_accuracy``.
        """
        curves = [run.curve(accuracy) for run in self.runs]
        averaged = [curve for curve, run in zip(curves, self.runs, strict=True) if run.results is not None] or curves
        steps = sorted(set.intersection(*(set(curve) for curve in averaged)))
        means = {step: statistics.mean(curve[step] for curve in averaged) for step in steps}
        return Curves(self.describe(), curves, means)

    @property
    def name(self) -> str:
        """The names of the run directories without ``-seed<seed>``."""
        return ", ".join(dict.fromkeys(run.path.resolve().name.removesuffix(f"-seed{run.seed}") for run in self.runs))

    def describe(self) -> str:
        """Return the names, the settings that differ, and the seeds."""
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items() if value != MISSING)
        what = f"{self.name}: {settings}" if settings else self.name
        unfinished = [run.seed for run in self.runs if run.results is None]
        note = f"; unfinished: {describe_seeds(unfinished)}" if unfinished else ""
        return f"{what} (seeds: {describe_seeds(run.seed for run in self.runs)}{note})"


def read_run(path: Path) -> ComparedRun:
    """Read a run.

    Raises:
        UserError: if it is not a run directory, or cannot be read.
    """
    run = RunDirectory(path)
    config, results = run.read_config(), run.read_results()
    parent_method, precision = "", str(config.train.precision)
    if results is not None:
        parent_method, precision = results.pseudo_label.parent_method if results.pseudo_label else "", results.precision
    elif checkpoint := run.load_newest():
        parent_method, precision = checkpoint[1].parent_method, checkpoint[1].precision
    split = load_split(run.split_file)
    # Images and labels tell data apart, wherever they are.
    images = " ".join(text[:8] for text in (split.fingerprint, split.test_fingerprint) if text)
    settings = run_settings(config, parent_method) | {"images": images, "train.precision": precision}
    return ComparedRun(path, config.seed, settings, results, run.read_metrics())


def run_settings(config: Config, parent_method: str) -> dict[str, str]:
    """Return the values of the keys in which a run may differ from others, as text.

    Args:
        config: of the run.
        parent_method: if the run is a pseudo-label stage, the method of its parent.
    """
    settings = {"data": config.data.display_name(), **flatten(config), "stage": None}
    settings = {k: v for k, v in settings.items() if k not in IGNORED and not k.startswith("pseudo_label.")}
    if parent_method:
        stage = config.pseudo_label
        if config.train.patience is not None:
            settings["train.steps"] = None  # the parents may have ended at other steps
        settings |= {"stage": stage.method or stage.select, "parent_method": parent_method, "stage.steps": stage.steps}
        if stage.method is None:
            settings |= {f"stage.{key}": getattr(stage, key) for key in KEYS_BY_RULE.get(stage.select, ())}
        else:  # which settings its parent had
            settings |= {f"{parent_method}.{key}": value for key, value in getattr(config, parent_method, ())}
    return {key: MISSING if value is None else single_line(value) for key, value in settings.items()}


def group_runs(runs: Sequence[ComparedRun]) -> list[RunGroup]:
    """Return the groups of runs that differ only in the seed, in the order of their first runs."""
    # A key that some runs do not have, such as another method's, does not separate them from the others.
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(value)
    differing = [key for key, found in values.items() if len(found) > 1]
    groups: dict[tuple[str, ...], RunGroup] = {}
    for run in runs:
        settings = {key: run.settings.get(key, MISSING) for key in differing}
        groups.setdefault(tuple(settings.values()), RunGroup(settings, [])).runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: run.seed)
    return list(groups.values())


def comparison_table(groups: Sequence[RunGroup]) -> str:
    """Return a table in Markdown with a row for each group of finished runs."""
    head = ["name", *groups[0].settings, "test accuracy (%)", "best validation (%)", "runs", "seeds", "seconds"]
    rows = [
        [
            single_line(group.name),
            *group.settings.values(),
            mean_std(group.test_accuracies),
            mean_std(group.best_validations),
            str(len(group.runs)),
            describe_seeds(run.seed for run in group.runs),
            mean((results.seconds for results in group.finished), ".0f"),
        ]
        for group in groups
    ]
    return markdown_table(head, rows, align=True)


def comparison_csv(groups: Sequence[RunGroup]) -> str:
    """Return the rows of ``comparison_table`` as CSV, numbers in full precision; a cell without a value is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{name}_{statistic}" for name in ("test_accuracy", "best_validation") for statistic in ("mean", "std")]
    writer.writerow(["name", *map(csv_text, groups[0].settings), *names, "num_runs", "seeds", "seconds_mean"])
    for group in groups:
        settings = ["" if value == MISSING else csv_text(value) for value in group.settings.values()]
        accuracies = [*_mean_and_std(group.test_accuracies), *_mean_and_std(group.best_validations)]
        seeds = " ".join(str(run.seed) for run in group.runs)
        seconds = statistics.mean(results.seconds for results in group.finished)
        writer.writerow([csv_text(group.name), *settings, *accuracies, len(group.runs), seeds, seconds])
    return file.getvalue()


def _mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    return statistics.mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def describe_seeds(seeds: Iterable[int]) -> str:
    """Return seeds with ranges: ``1 to 5, 8``."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    texts = [f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in ranges]
    return ", ".join(texts)
