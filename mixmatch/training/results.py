"""The results of a finished run, and how they are printed."""

import statistics
import subprocess
from functools import cache

import torch
from scipy.stats import binomtest

from mixmatch.config import Config
from mixmatch.runs.directory import ROOT
from mixmatch.runs.results import HeldOutResults, RunResults
from mixmatch.training.callbacks import plain_values
from mixmatch.training.precision import count_flops
from mixmatch.training.setup import TrainingSession

MEDIAN_OF = 20  # the paper reports the median accuracy of the last 20 evaluations


def collect_results(config: Config, session: TrainingSession, commit: str) -> RunResults:
    """Return the contents of results.json."""
    trainer, progress, spec = session.trainer, session.progress, session.spec
    accuracies = [entry.test_accuracy for entry in progress.history if entry.test_accuracy is not None]
    forwards, processes = trainer.method.forward_equivalents(), trainer.distributed.world_size
    values = {
        "test_accuracy": accuracies[-1] if accuracies else None,
        "test_accuracy_median20": statistics.median(accuracies[-MEDIAN_OF:]) if len(accuracies) >= MEDIAN_OF else None,
        "best_validation": progress.best_validation(),
        "evaluations_since_best": progress.evaluations_since_best(),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "steps_per_second": round((progress.step - progress.start_step) / progress.seconds, 3),
        "forward_equivalents_per_step": None if forwards is None else forwards * processes,
        "flops_per_forward": count_flops(trainer.model, (spec.channels, spec.size, spec.size)),
        "dataset": config.data.dataset,
        "method": config.method,
        "num_labeled": len(session.split.labeled),
        "seed": config.seed,
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "processes": processes,
        "precision": trainer.precision,
        "torch": torch.__version__,
        "commit": commit,
    }
    for callback in session.callbacks:
        values |= plain_values(callback, callback.results(), values)
    return RunResults.model_validate(values)


def summarize(results: RunResults) -> str:
    """Return results in one line."""
    parts = []
    if results.test_accuracy is not None:
        parts.append(f"test accuracy {results.test_accuracy:.2f}%")
    if results.test_accuracy_median20 is not None:
        parts.append(f"median of the last {MEDIAN_OF} evaluations {results.test_accuracy_median20:.2f}%")
    if results.best_validation is not None:
        best = results.best_validation
        parts.append(f"best validation accuracy {best.accuracy:.2f}% at step {best.step}")
    trained = results.steps - (results.pseudo_label.start_step if results.pseudo_label else 0)
    parts.append(f"{trained} steps in {results.seconds:.0f} s ({results.steps_per_second:.2f} steps/s)")
    return ", ".join(parts)


def describe_results(results: RunResults) -> list[str]:
    """Return the last lines of a run: accuracy with its 95% interval, and the worst confusion."""
    lines = []
    for name, details in (("test", results.test), ("validation", results.validation)):
        if details is not None:
            lines += describe_accuracy(name, details)
    if not lines:
        lines.append(
            "accuracy unknown: no image was held out; set data.num_test=0.2 in another run, or put labeled images into "
            "test/<class>/"
        )
    return lines


def describe_accuracy(name: str, details: HeldOutResults) -> list[str]:
    """Return accuracy, its 95% interval (Wilson) and the worst confusion."""
    correct = round(details.accuracy * details.images / 100)
    interval = binomtest(correct, details.images).proportion_ci(method="wilson")
    text = f"{name}: {details.accuracy:.2f}% of {details.images:,} images "
    text += f"(95% interval {100 * interval.low:.1f} to {100 * interval.high:.1f})"
    if abs(details.balanced_accuracy - details.accuracy) >= 0.005:
        text += f", balanced accuracy {details.balanced_accuracy:.2f}%"
    confused = details.most_confused
    if confused is None:
        return [text]
    return [
        text,
        f"  most confused: {confused.true} predicted as {confused.predicted}, {confused.images:,} of {confused.of:,}",
    ]


@cache
def code_commit() -> str:
    """Return the commit of this code, with a + if files have changed since; ``unknown`` outside a checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=7"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
        command = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "mixmatch"]
        changed = subprocess.run(command, capture_output=True, check=False).returncode != 0  # noqa: S603
        return commit + "+" * changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
