"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 28x28, gray, 10 classes.

Fashion-MNIST is also read from where Debian and Ubuntu install it: ``apt install dataset-fashion-mnist``.
"""

import gzip
from pathlib import Path

import torch
from torch import Tensor

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_download, explain_download_errors
from mixmatch.errors import UserError, describe_error

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def load_mnist(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read MNIST from ``settings.root``; download it if needed.

    Raises:
        UserError: if it cannot be read or downloaded, or does not fit into memory.
    """
    from torchvision.datasets import MNIST, FashionMNIST

    title, source = ("MNIST", MNIST) if settings.dataset == "mnist" else ("Fashion-MNIST", FashionMNIST)
    check_download(70_000, 28, 1, settings)
    raw = Path(settings.root) / source.__name__ / "raw"
    with explain_download_errors(title, raw, source.resources):
        train, test = (source(settings.root, train=part, download=True) for part in (True, False))
    return _make(settings, train.classes, (train.data, train.targets), (test.data, test.targets))


def load_fashion_mnist(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read Fashion-MNIST as ``load_mnist`` does, or from ``INSTALLED`` if ``settings.root`` does not have it."""
    from torchvision.datasets import FashionMNIST

    if not INSTALLED.exists() or (Path(settings.root) / "FashionMNIST").exists():
        return load_mnist(settings, device, quiet)
    try:
        return _make(settings, FashionMNIST.classes, _read_installed("train"), _read_installed("t10k"))
    except (OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{INSTALLED}: {describe_error(error)}; reinstall dataset-fashion-mnist") from None


def _read_installed(part: str) -> tuple[Tensor, Tensor]:
    """Return (n, 28, 28) images and (n,) labels, both uint8, from gzipped IDX files."""
    images, labels = (
        gzip.decompress((INSTALLED / f"{part}-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")
    )
    # Headers: 4 bytes of magic number, then 4 for each dimension.
    pixels = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8)
    return pixels.view(-1, 28, 28), torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8)


def _make(
    settings: DataSettings, classes: list[str], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> ImageData:
    (images, labels), (test_images, test_labels) = (
        (pixels.unsqueeze(-1), numbers.long()) for pixels, numbers in (train, test)
    )
    names = [name.replace("/", " or ") for name in classes]  # T-shirt/top is not a valid folder name
    flip = settings.dataset == "fashion_mnist"
    return ImageData(settings.dataset, names, images, labels, test_images, test_labels, flip=flip)
