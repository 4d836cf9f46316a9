"""Images as uint8 tensors, and the checks that every data set needs: sizes, labels, memory, fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mixmatch.data.folder.decode import Fit
from mixmatch.errors import UserError
from mixmatch.settings import Count, CountOrZero, Settings


class DataSettings(Settings):
    """The ``data`` section of every data set; one that needs keys of its own adds them."""

    dataset: str = Field(
        "cifar10",
        description="cifar10, cifar100, svhn, svhn_extra, stl10, mnist, fashion_mnist (downloaded), digits (bundled) "
        "or folder",
    )
    root: str = Field(
        "data",
        description="where downloads are or go; for folder, holds train/<class>/, test/<class>/, unlabeled/",
    )
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Field(
        None, description="images become squares of so many pixels; null: as they are, of a folder 32"
    )
    num_labeled: Count | Literal["all"] = Field(
        250, description="labeled images, equally many of each class (svhn: by the classes' shares), or all there are"
    )
    num_validation: CountOrZero | Literal["auto"] = Field(
        0,
        description="images held out to watch and to pick the best checkpoint by, dealt to classes as num_labeled; "
        "auto: one for every four labeled ones of the smallest class, if that leaves 25 of it",
    )
    labeled_as_unlabeled: bool = Field(False, description="labeled images also serve, without label, as unlabeled")
    split_file: str | None = Field(
        None, description="a split.json to use instead of drawing a split from the seed and the counts above"
    )
    flip: bool | Literal["auto"] = Field(
        "auto", description="mirror half of the views; auto: as the data set allows (not digits)"
    )
    rotate: bool = Field(
        False,
        description="turn views by 0 to 3 quarters, for pictures without an up; with flip that is upside down too",
    )
    crop_padding: CountOrZero | Literal["auto"] = Field(
        "auto", description="pixels of reflection around an image before the crop; auto: an eighth of its side"
    )

    def title(self) -> str:
        """Return a name for what is trained on, fit for the name of a folder."""
        return self.dataset


@dataclass(frozen=True)
class ImageSpec:
    """What a network was trained to see, and what its outputs mean.

    Attributes:
        classes: names, in the order of the outputs.
        size: pixels of an image's side.
        channels: 3 for RGB, 1 for gray.
        mean, std: the network is given (pixel - mean) / std, pixels 0 to 255.
        fit: how pictures of other shapes are made square, see ``decode``.
    """

    classes: Annotated[list[str], Field(min_length=1)]
    size: Annotated[int, Field(ge=1, le=2**14)]
    channels: Annotated[int, Field(ge=1, le=2**10)]
    mean: float = 127.5
    std: float = 127.5
    fit: Fit = "crop"


@dataclass(frozen=True)
class ImageData:
    """Images and what is known of them. This is what the loader of a data set returns.

    Attributes:
        name: of the data set.
        classes: names; a label is an index into them.
        images: (n, h, w, c) uint8, all training images, labeled or not; h = w.
        labels: (n,) int64, -1 where the class is not known.
        test_images: (m, h, w, c) uint8, or None without a test set.
        test_labels: (m,) int64, or None.
        flip: whether mirrored images are still of their class.
        fit: how pictures of other shapes were made square, see ``decode``.
        files: of the training images, below the data set's root; None if they are of no files.
        groups: of each training image, what must not be split over training and validation, such as the animal or the
            day; empty where that is nothing. None if there are none.
        by_share: labels are dealt by the classes' shares among the training images, instead of equally.
        folds: sets of training images, equally large, that the data set's publishers fixed to be labeled.
        notes: what a person should know of the reading, a line each.
    """

    name: str
    classes: list[str]
    images: Tensor
    labels: Tensor
    test_images: Tensor | None
    test_labels: Tensor | None
    flip: bool
    fit: Fit = "crop"
    files: list[str] | None = None
    groups: list[str] | None = None
    by_share: bool = False
    folds: Sequence[list[int]] = ()
    notes: Sequence[str] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image, as networks have it."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def spec(self) -> ImageSpec:
        """Return what a network trained on these images must be given."""
        return ImageSpec(self.classes, self.images.shape[1], self.images.shape[3], fit=self.fit)

    def fingerprint(self) -> str:
        """Return a hash of the training images and labels."""
        return _fingerprint(self.images, self.labels)

    def test_fingerprint(self) -> str | None:
        """Return a hash of the test images and labels, None if there are none."""
        if self.test_images is None or self.test_labels is None:
            return None
        return _fingerprint(self.test_images, self.test_labels)


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(images.shape)}".encode())
    digest.update(images.contiguous().numpy())
    digest.update(labels.numpy())
    return digest.hexdigest()[:32]


class Report(NamedTuple):
    """What a look at a data set tells, a line each."""

    lines: list[str]  # what is there, and what is odd
    problems: list[str]  # what training would fail with


class Dataset(NamedTuple):
    """A data set: how it is read, the keys of its ``data`` section, and how it is looked at by ``--check``."""

    # Called with the section, the device where the images will live, and whether to show no progress bars.
    load: Callable[[DataSettings, torch.device, bool], ImageData]
    settings_type: type[DataSettings] = DataSettings
    # Called as ``load`` is; None where there is nothing to tell but what ``load`` raises.
    look: Callable[[DataSettings, torch.device, bool], Report] | None = None


def check_images(data: ImageData, image_size: int | None, device: torch.device) -> ImageData:
    """Check what a loader returned, see that ``device`` has room for it, and bring it to ``image_size``.

    Raises:
        UserError: if the loader returned what is no ImageData, or the images don't fit into memory.
    """
    names = [name for name in data.classes if not name or name in (".", "..") or "/" in name or "\0" in name]
    if names:
        raise UserError(f"data set {data.name}: {names[0]!r} is no name for a class; it must be fit for a folder")
    for name in ("files", "groups"):
        values = getattr(data, name)
        if values is not None and len(values) != len(data.images):
            raise UserError(f"data set {data.name}: {name} must be one for each of the {len(data.images)} images")
    sets = {"training": (data.images, data.labels, -1)}
    if (data.test_images is None) != (data.test_labels is None):
        raise UserError(f"data set {data.name}: has test images without labels, or labels without images")
    if data.test_images is not None and data.test_labels is not None:
        sets["test"] = data.test_images, data.test_labels, 0
    for name, (images, labels, least) in sets.items():
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != shape[2] or not len(images):
            raise UserError(
                f"data set {data.name}: {name} images must be (n, h, h, c) uint8, got {shape} {images.dtype}"
            )
        if shape[1:] != data.images.shape[1:]:
            raise UserError(f"data set {data.name}: test images are {shape[1:]}, others {tuple(data.images.shape[1:])}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"data set {data.name}: {name} labels must be ({len(images)},) int64")
        if not least <= int(labels.min()) <= int(labels.max()) < len(data.classes):
            raise UserError(f"data set {data.name}: {name} labels must be {least} to {len(data.classes) - 1}")
    count = sum(len(images) for images, _, _ in sets.values())
    size = image_size or data.images.shape[1]
    here = size == data.images.shape[1] and device.type == "cpu"  # in this machine's memory already
    if not here:
        check_memory(count * size * size * data.images.shape[3], device)
    if size == data.images.shape[1]:
        return data
    test = data.test_images
    return replace(data, images=resize(data.images, size), test_images=None if test is None else resize(test, size))


def resize(images: Tensor, size: int) -> Tensor:
    """Bring (n, h, w, c) uint8 images to ``size`` pixels a side, bicubic and without aliasing, as Pillow does."""
    parts = [
        F.interpolate(part.movedim(3, 1), (size, size), mode="bicubic", antialias=True).movedim(1, 3).contiguous()
        for part in images.split(1000)
    ]
    return torch.cat(parts)


def free_memory(device: torch.device) -> dict[str, int]:
    """Return the bytes that are free on this machine, and on ``device`` if that has memory of its own."""
    places = {"this machine": psutil.virtual_memory().available}
    if device.type == "cuda":
        places[str(device)] = torch.cuda.mem_get_info(device)[0]
    return places


def check_memory(
    needed: int,
    device: torch.device,
    what: str = "the images take",
    advice: str = "lower data.image_size or use fewer images",
) -> None:
    """See that this machine and ``device`` have room for so many bytes, of which ``what`` is said.

    Raises:
        UserError: if one has not.
    """
    for place, free in free_memory(device).items():
        if needed > 0.9 * free:
            raise UserError(
                f"data: {what} {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB of memory free; {advice}"
            )
