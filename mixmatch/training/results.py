"""What a finished run has come to: the contents of results.json, and a line of them."""

import statistics
from typing import Any

import torch

from mixmatch.config import Config
from mixmatch.training.prepare import Session

EVALUATIONS_AVERAGED = 20  # the reported accuracy is the median of so many, as in the paper


def summarise_run(config: Config, session: Session, commit: str) -> dict[str, Any]:
    """Return what results.json holds."""
    trainer, progress = session.trainer, session.progress
    tests = [entry["test_accuracy"] for entry in progress.history if entry["test_accuracy"] is not None]
    results = {
        "test_accuracy": statistics.median(tests[-EVALUATIONS_AVERAGED:]) if tests else None,
        "evaluations_averaged": min(len(tests), EVALUATIONS_AVERAGED),
        "test_accuracy_last": tests[-1] if tests else None,
        "best_validation": progress.best_validation(),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "steps_per_second": round((progress.step - progress.start) / progress.seconds, 3),
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


def summarise(results: dict[str, Any]) -> str:
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
