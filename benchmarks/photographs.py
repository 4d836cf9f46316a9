"""Make a folder as somebody with photographs has it, of CIFAR-10 (JPEG): few labeled, many not.

    python3 benchmarks/photographs.py data/cifar10-jpeg data/four-classes

Of each of four classes: 50 labeled (half of them for validation), 750 unlabeled, and the test photographs.
"""

import shutil
import sys
from pathlib import Path

CLASSES = ("airplane", "cat", "horse", "ship")
LABELED, UNLABELED = 50, 750


def main(source: Path, target: Path) -> None:
    """Copy the photographs of ``source`` that a person would have into ``target``, in the order of their names."""
    for name in CLASSES:
        files = sorted((source / "train" / name).iterdir())
        copy(files[:LABELED], target / "train" / name)
        copy(files[LABELED : LABELED + UNLABELED], target / "unlabeled", f"{name}-")
        copy(sorted((source / "test" / name).iterdir()), target / "test" / name)


def copy(files: list[Path], folder: Path, prefix: str = "") -> None:
    """Copy files into a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / f"{prefix}{file.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
