"""What a person is told before the first step: what is about to be trained, on what, and where it goes on."""

from mixmatch.config import Config
from mixmatch.data import ImageData
from mixmatch.data.split import Split
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress


def say_where(run: RunDirectory, progress: Progress, steps: int, here: str) -> list[str]:
    """Return lines that say where a run goes on, and whether that is still the uninterrupted run."""
    fresh = progress.step == progress.start
    what = f"{run.path}: a round of pseudo-labels, from step" if fresh else f"continuing {run.path} at step"
    lines = [f"{what} {progress.step} of {steps}"]
    if progress.environment != here:
        lines.append(
            f"note: so far it ran with {progress.environment}, now with {here}: "
            "from here on it is not bit for bit the uninterrupted run"
        )
    return lines


def describe_classes(data: ImageData, split: Split) -> list[str]:
    """Return a line if the classes have labeled images in unequal numbers."""
    counts = data.labels[split.labeled].bincount(minlength=len(data.classes)).tolist()
    fewest, most = counts.index(min(counts)), counts.index(max(counts))
    if counts[fewest] == counts[most]:
        return []
    return [
        f"note: classes are of unequal size: from {counts[fewest]} labeled ({data.classes[fewest]}) to {counts[most]} "
        f"({data.classes[most]}); results.json will have the accuracy of each and the balanced one"
    ]


def describe(config: Config, data: ImageData, split: Split) -> str:
    """Return in a line what is about to be trained, on what."""
    size = "x".join(str(n) for n in data.images.shape[1:3])
    return (
        f"{config.method}, {data.name} {size}, {len(data.classes)} classes: {len(split.labeled)} labeled, "
        f"{len(split.unlabeled)} unlabeled, {len(split.validation)} validation, "
        f"{0 if data.test_labels is None else len(data.test_labels)} test images; "
        f"{config.model.title()}, {config.train.steps} steps"
    )
