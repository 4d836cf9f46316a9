"""What a finished run has come to: the contents of results.json, and a line of them."""

import math
import shlex
import statistics
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mixmatch.config import Config
from mixmatch.runs.directory import ROOT
from mixmatch.training.precision import count_flop
from mixmatch.training.setup import Session

EVALUATIONS_AVERAGED = 20  # the reported accuracy is the median of so many, as in the paper


def summarize_run(config: Config, session: Session, commit: str) -> dict[str, Any]:
    """Return what results.json holds."""
    trainer, progress = session.trainer, session.progress
    tests = [entry["test_accuracy"] for entry in progress.history if entry["test_accuracy"] is not None]
    passes = trainer.method.passes()
    results = {
        "test_accuracy": statistics.median(tests[-EVALUATIONS_AVERAGED:]) if tests else None,
        "evaluations_averaged": min(len(tests), EVALUATIONS_AVERAGED),
        "test_accuracy_last": tests[-1] if tests else None,
        "best_validation": progress.best_validation(),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "steps_per_second": round((progress.step - progress.start) / progress.seconds, 3),
        "passes_per_step": passes and passes * trainer.ranks.world,
        "operations_per_pass": count_flop(trainer.model, (session.spec.channels, session.spec.size, session.spec.size)),
        "dataset": config.data.dataset,
        "method": config.method,
        "num_labeled": len(session.split.labeled),
        "seed": config.seed,
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "processes": trainer.ranks.world,
        "precision": trainer.precision_name,
        "torch": torch.__version__,
        "commit": commit,
    }
    for hook in session.hooks:
        results |= hook.results()
    return results


def describe_end(results: dict[str, Any], path: Path) -> list[str]:
    """Return the lines that follow a finished run: how sure its accuracy is, what it confuses, and what to do next."""
    lines = []
    for name in ("test", "validation"):
        count, best = results.get(f"{name}_images"), results["best_validation"]
        if not count:
            continue
        right = round(results[f"{name}_accuracy_last"] * count / 100)
        low, high = wilson_interval(right, count)
        text = f"{100 * right / count:.2f}% of {count:,} images at the end (95% interval {low:.1f} to {high:.1f})"
        balanced = results[f"{name}_accuracy_balanced"]
        if abs(balanced - 100 * right / count) >= 0.005:
            text += f", balanced {balanced:.2f}%"
        if name == "validation" and best["step"] != results["steps"]:
            text += f"; best {best['accuracy']:.2f}% at step {best['step']}, kept: --best"
        lines.append(f"{name}: {text}")
        confused = results[f"{name}_most_confused"]
        if confused:
            lines.append(
                f"  most confused: {confused['true']} taken for {confused['predicted']}, "
                f"{confused['images']:,} of {confused['of']:,} times"
            )
    if not lines:
        lines.append(
            "no image was held out, so nothing tells how good this network is: hold labeled ones out with "
            "data.num_validation=N, or put some into test/<class>/"
        )
    run = shlex.quote(str(path))
    lines.append(f"use it: python3 predict.py --run-dir {run} PICTURES")
    if not results.get("pseudo_label"):
        lines.append(f"go on: python3 pseudo_label.py --run-dir {run}")
    lines.append(f"curves: tensorboard --logdir {shlex.quote(str(path.parent))}")
    return lines


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share, in percent (Wilson, 1927).

    Args:
        right: how many were right, at most ``count``.
        count: of how many, above 0.
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    share, spread = right / count, z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return 100 * (middle - half), 100 * (middle + half)


def summarize(results: dict[str, Any]) -> str:
    """Return results in a line."""
    parts = []
    if results["test_accuracy"] is not None:
        count = results.get("evaluations_averaged", EVALUATIONS_AVERAGED)  # not said by earlier versions
        parts.append(
            f"test accuracy {results['test_accuracy']:.2f}% (median of the last {count} evaluations; "
            f"the last one {results['test_accuracy_last']:.2f}%)"
        )
    if results["best_validation"] is not None:
        best = results["best_validation"]
        parts.append(f"best validation accuracy {best['accuracy']:.2f}% at step {best['step']}")
    trained = results["steps"] - results.get("pseudo_label", {}).get("start", 0)
    parts.append(f"{trained} steps in {results['seconds']:.0f} s ({results['steps_per_second']:.2f} steps/s)")
    return ", ".join(parts)


@cache
def code_commit() -> str:
    """Return the commit of this code, with a + if files of it have changed since; unknown outside a checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=7"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
        command = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "mixmatch", "models"]
        changed = subprocess.run(command, capture_output=True, check=False).returncode != 0  # noqa: S603
        return commit + "+" * changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
