"""Store CIFAR-10 as JPEG files of quality 75, a folder of photographs: the "CIFAR-10 (JPEG)" of the tables.

python3 benchmarks/cifar10_jpeg.py data/cifar10-jpeg    # downloads CIFAR-10 to data/ if it is not there

Another version of the JPEG library may give slightly other pixels, and accuracies.
"""

import sys
from collections import Counter
from pathlib import Path

from torchvision.datasets import CIFAR10


def main(folder: Path) -> None:
    """Write ``train/<class>/0000.jpg`` and so on, and ``test``."""
    for part in ("train", "test"):
        data, counts = CIFAR10("data", train=part == "train", download=True), Counter[int]()
        for image, label in data:
            path = folder / part / data.classes[label] / f"{counts[label]:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=75)
            counts[label] += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
