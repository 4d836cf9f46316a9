"""Make a folder of photographs as a user has it, a few labeled and many unlabeled, from CIFAR-10 (JPEG).

    python3 benchmarks/photographs.py data/cifar10-jpeg data/four-classes

Of each of four classes: 50 labeled photographs, 750 unlabeled ones, and the test photographs.
"""

import shutil
import sys
from pathlib import Path

CLASSES = ("airplane", "cat", "horse", "ship")
LABELED, UNLABELED = 50, 750


def main(source: Path, target: Path) -> None:
    """Copy photographs of ``source`` to ``target``, in the order of their names."""
    for name in CLASSES:
        files = sorted((source / "train" / name).iterdir())
        copy(files[:LABELED], target / "train" / name)
        copy(files[LABELED : LABELED + UNLABELED], target / "unlabeled", f"{name}-")
        copy(sorted((source / "test" / name).iterdir()), target / "test" / name)


def copy(files: list[Path], folder: Path, prefix: str = "") -> None:
    """Copy files to a folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / f"{prefix}{file.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
