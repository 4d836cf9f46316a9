"""Data sets that torchvision downloads, checks and reads."""

from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def train_and_test(source: Any, root: Path) -> tuple[Any, Any]:  # noqa: ANN401 - classes of torchvision's, and theirs
    """Return the training and the test part of a data set of torchvision, downloaded to ``root`` if not there."""
    with redirect_stdout(None):
        root.mkdir(parents=True, exist_ok=True)
        train, test = (source(root, train=part, download=True) for part in (True, False))
    return train, test
