"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 28x28, gray, in ten classes.

Both are downloaded and checked by torchvision. Fashion-MNIST is also found where Debian and Ubuntu install it:
`apt install dataset-fashion-mnist`.
"""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import FAILURES, check_room, from_torchvision
from mixmatch.errors import UserError, describe_error

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the decompressed files: the package has compressed them anew.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def load_mnist(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read MNIST below ``settings.root``, downloading it if need be.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had; if it does not fit into memory.
    """
    from torchvision.datasets import MNIST

    return _load("mnist", "MNIST", MNIST, settings, device, flip=False)


def load_fashion_mnist(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read Fashion-MNIST below ``settings.root``, or as the system has it, or download it.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had; if it does not fit into memory.
    """
    from torchvision.datasets import FashionMNIST

    if not (Path(settings.root) / "FashionMNIST").exists() and INSTALLED.exists():
        try:
            parts = [read_idx(INSTALLED / f"{name}.gz", checksum) for name, checksum in CHECKSUMS.items()]
            return _make("fashion_mnist", FashionMNIST.classes, *parts, flip=True)
        except FAILURES as error:
            raise UserError(f"{INSTALLED}: {describe_error(error)}; install dataset-fashion-mnist anew") from None
    advice = "; on Debian and Ubuntu `apt install dataset-fashion-mnist` brings it"
    return _load("fashion_mnist", "Fashion-MNIST", FashionMNIST, settings, device, flip=True, advice=advice)


def read_idx(file: Path, checksum: str) -> Tensor:
    """Read a gzipped IDX file of bytes.

    Args:
        file: its path.
        checksum: SHA-256 of its decompressed contents.

    Returns:
        uint8, of the shape that the file says.

    Raises:
        OSError, EOFError, zlib.error: if it cannot be read or decompressed.
        ValueError: if it is not the file that it should be.
    """
    with gzip.open(file) as opened:
        content = opened.read()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{file.name} is damaged: its checksum differs")
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return torch.frombuffer(bytearray(content[4 + 4 * dimensions :]), dtype=torch.uint8).view(shape)


def _load(
    name: str,
    title: str,
    source: Any,  # noqa: ANN401 - a class of torchvision's
    settings: DataSettings,
    device: torch.device,
    *,
    flip: bool,
    advice: str = "",
) -> ImageData:
    check_room(70_000, 28, 1, settings, device)
    root = Path(settings.root)
    files = ", ".join(f"{file} (MD5 {md5})" for file, md5 in source.resources) + " there"
    with from_torchvision(title, root, root / source.__name__ / "raw", files, advice):
        train, test = (source(root, train=part, download=True) for part in (True, False))
        return _make(name, train.classes, train.data, train.targets, test.data, test.targets, flip=flip)


def _make(
    name: str,
    classes: list[str],
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    flip: bool,
) -> ImageData:
    for pixels, numbers in ((images, labels), (test_images, test_labels)):
        if len(pixels) != len(numbers) or int(numbers.max()) >= len(classes):
            raise ValueError("labels do not fit the images")
    return ImageData(
        name,
        [title.replace("/", " or ") for title in classes],  # T-shirt/top is no name for a folder
        images.unsqueeze(-1),
        labels.long(),
        test_images.unsqueeze(-1),
        test_labels.long(),
        flip=flip,
    )
