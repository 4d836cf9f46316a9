"""Lines printed before the first step."""

from pathlib import Path

from torch import nn

from mixmatch.config import Config
from mixmatch.data import ImageData
from mixmatch.data.split import Split
from mixmatch.models import Network, NetworkSettings
from mixmatch.runs.progress import Progress


def describe_resume(path: Path, progress: Progress, steps: int, environment: str) -> list[str]:
    """Return where a run continues, and a note if it will not be bit-identical to an uninterrupted run."""
    is_new_stage = progress.step == progress.start_step
    lines = [
        f"{path}: pseudo-label stage from step {progress.step} to {steps}"
        if is_new_stage
        else f"continuing {path} at step {progress.step} of {steps}"
    ]
    if progress.environment != environment:
        lines.append(
            f"note: environment changed ({progress.environment} to {environment}): "
            "results will no longer be bit-identical"
        )
    return lines


def describe_run(config: Config, data: ImageData, split: Split) -> str:
    """Return method, data set, split, network and length in one line."""
    size = "x".join(str(n) for n in data.images.shape[1:3])
    return (
        f"{config.method}, {data.name} {size}, {len(data.classes)} classes: {len(split.labeled)} labeled, "
        f"{len(split.unlabeled)} unlabeled, {len(split.validation)} validation, "
        f"{0 if data.test_labels is None else len(data.test_labels)} test images; "
        f"{config.model.display_name()}, {config.train.steps} steps"
    )


def describe_frozen(settings: NetworkSettings) -> list[str]:
    """Return a note if layers of a network with random weights are not trained."""
    names = ("freeze_layers", "freeze_steps", "freeze_batch_norm")
    frozen = [f"model.{name}" for name in names if getattr(settings, name)]
    if not frozen:
        return []
    return [f"note: {', '.join(frozen)}: for pretrained weights, but these weights are random; set it to 0 or false"]


def describe_rescaled(network: Network) -> list[str]:
    """Return a note if the first step of Muon gives convolutions another norm than these weights have."""
    convolutions = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    if all(0.5 < weight.norm().item() / len(weight) ** 0.5 < 1.5 for weight in convolutions):
        return []
    return ["note: train.optimizer=muon rescales convolutions, which can undo the initial weights; adam and sgd do not"]


def describe_unmeasured(config: Config, data: ImageData, split: Split) -> list[str]:
    """Return a note if neither validation nor test images will show how accurate the network is."""
    if split.validation or data.test_labels is not None:
        return []
    fewest = int(data.labels[data.labels >= 0].bincount(minlength=len(data.classes)).min())
    if fewest < 2:
        return [
            "note: there are no validation or test images: accuracy will be unknown; label more images to measure it"
        ]
    name = f"{config.name or config.data.display_name()}-measured"
    return [
        "note: there are no validation or test images: accuracy will be unknown; to measure it, start another run with "
        f"data.num_test=0.2 name={name}, which tests on a fifth of the labeled images of each class"
    ]


def describe_imbalance(data: ImageData, split: Split) -> list[str]:
    """Return a note if one class has half as many labeled images again as another."""
    counts = data.labels[split.labeled].bincount(minlength=len(data.classes)).tolist()
    fewest, most = counts.index(min(counts)), counts.index(max(counts))
    if counts[most] < 1.5 * counts[fewest]:
        return []
    measured = "; results.json will contain balanced_accuracy and accuracy_by_class"
    if not split.validation and data.test_labels is None:
        measured = ""
    return [
        f"note: classes are imbalanced: {counts[fewest]} ({data.classes[fewest]}) to {counts[most]} "
        f"({data.classes[most]}) labeled images{measured}"
    ]
