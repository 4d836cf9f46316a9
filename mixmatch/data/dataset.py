"""Images as uint8 tensors, the settings that all data sets share, and checks of images."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mixmatch.data.stored_images import Images, StoredImages, digests, to_memory
from mixmatch.errors import UserError
from mixmatch.settings import Count, CountOrZero, PathText, Settings

Fit = Literal["crop", "pad", "stretch"]


class DataSettings(Settings):
    """The ``data`` section. A data set with keys of its own subclasses it."""

    dataset: str = Field(
        "cifar10",
        description="cifar10, cifar100, svhn, svhn_extra, stl10, mnist, fashion_mnist (downloaded), digits (bundled) "
        "or folder",
    )
    root: PathText = Field(
        "data", description="directory of downloads; for folder, the one with train/<class>/, test/<class>/, unlabeled/"
    )
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Field(
        None,
        description="resize images to squares of this many pixels a side; null: the size that a network of timm was "
        "made for, else unchanged (folder: 32)",
    )
    num_labeled: Count | Literal["all"] = Field(
        250, description="labeled images, the same number of each class (svhn: by class frequency); all: every label"
    )
    num_validation: CountOrZero | Literal["auto"] = Field(
        0,
        description="validation images, stratified as num_labeled; auto: one more image for every four labeled ones, "
        "or 20% of the smallest class from each class if num_labeled is all; none if a class then has under 25 labels",
    )
    labeled_as_unlabeled: bool | Literal["auto"] = Field(
        "auto", description="use labeled images as unlabeled images too; auto: as the method's paper (not mixmatch)"
    )
    num_test: CountOrZero | Annotated[float, Field(gt=0, lt=1)] = Field(
        0,
        description="test images, sampled from the labeled ones of a data set without a test set: a number as "
        "num_labeled, or a share of each class such as 0.2; the same images for every seed",
    )
    split_file: PathText | None = Field(None, description="split.json to use instead of sampling a split from the seed")
    flip: bool | Literal["auto"] = Field(
        "auto", description="random horizontal flips; auto: for photographs, CIFAR, STL-10 and Fashion-MNIST"
    )
    rotate: bool = Field(False, description="random rotations by 0, 90, 180 or 270 degrees, for images without an up")
    strong_operations: Annotated[int, Field(ge=1, le=14)] = Field(
        2,
        description="RandAugment operations of a strong view: 2 in FixMatch, 3 in the code of FreeMatch and SoftMatch",
    )
    cutout: Literal["random", "half"] = Field(
        "random",
        description="side of Cutout's square in strong views: random, up to half the image's (FixMatch's paper), or "
        "always half of it (its code)",
    )
    degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        0, description="random rotations by up to this angle either way; 0: none"
    )
    color_jitter: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="random factors of brightness, contrast and saturation, within this of 1; 0: none"
    )
    crop_padding: CountOrZero | Literal["auto"] = Field(
        "auto", description="pixels of reflection padding for random crops; auto: an eighth of the side"
    )
    keep_on: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="where images are kept: device, host (memory), disk (photographs), or auto (the first with room); "
        "the results are the same",
    )

    def display_name(self) -> str:
        """Return the name that runs on this data set are called by; valid as a file name."""
        return self.dataset


MAX_PIXELS = 178_956_970  # the limit of Pillow
Background = Annotated[str, Field(pattern="^(white|black|gray|#[0-9a-fA-F]{6})$")]
White = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How files become images; predictions decode as training did.

    Attributes:
        fit: how pictures that are not square become square: ``crop`` takes the central square, ``pad`` adds black
            borders, ``stretch`` changes the aspect ratio; ``contain`` keeps them as they are, for people to look at.
        background: color behind transparent pictures: white, black, gray or #rrggbb.
        white: value that is white in gray pictures whose format does not say it; None: these are unreadable.
        max_pixels: pictures of more pixels are unreadable.
    """

    fit: Fit | Literal["contain"] = "crop"
    background: Background = "white"
    white: White | None = None
    max_pixels: Count = MAX_PIXELS


@dataclass(frozen=True)
class ImageSpec(Decoding):
    """The input that a network expects, and the classes of its outputs.

    Attributes:
        classes: names, in the order of the outputs.
        size: side of the square images in pixels.
        channels: 3 for RGB, 1 for gray.
        mean, std: the network's input is (pixel - mean) / std, pixels 0 to 255.
    """

    classes: Annotated[list[str], Field(min_length=1)]
    size: Annotated[int, Field(ge=1, le=2**14)]
    channels: Annotated[int, Field(ge=1, le=2**10)]
    mean: float = 127.5
    std: float = 127.5


@dataclass(frozen=True)
class ImageData:
    """A data set, as loaders return it.

    Attributes:
        name: of the data set.
        classes: names; a label is an index into them.
        images: (n, h, h, c) uint8, all training images, labeled or not, in memory or in a file.
        labels: (n,) int64, -1 if the class is unknown.
        test_images: (m, h, h, c) uint8; None if there is no test set.
        test_labels: (m,) int64, or None.
        flip: whether a mirrored image still belongs to its class.
        decoding: how files became these images.
        files: path of each training image below the data set's root; None if images are not files.
        test_files: likewise of the test images, if ``data.num_test`` sampled them.
        groups: group of each training image (the same animal, the same day); empty string: none. Groups are never
            split over training and validation. None if there are no groups.
        validation: indices of the training images that are for validation; None: sampled, see ``make_split``.
        by_share: labels are allocated by class frequency instead of equally.
        authors_split: the classes are shuffled as by the authors, so that a seed's labeled images are theirs.
        folds: published sets of labeled images, all of the same size.
        notes: lines to print about the data.
    """

    name: str
    classes: list[str]
    images: Images
    labels: Tensor
    test_images: Images | None
    test_labels: Tensor | None
    flip: bool
    decoding: Decoding = Decoding()
    files: list[str] | None = None
    test_files: list[str] | None = None
    groups: list[str] | None = None
    validation: list[int] | None = None
    by_share: bool = False
    authors_split: bool = False
    folds: Sequence[list[int]] = ()
    notes: Sequence[str] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image, the order that networks use."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def spec(self) -> ImageSpec:
        """Return the input that a network trained on these images expects."""
        return ImageSpec(self.classes, self.images.shape[1], self.images.shape[3], **asdict(self.decoding))

    def fingerprint(self) -> str:
        """Return a hash of the training images and labels."""
        return self._hash(self.images, self.labels)

    def test_fingerprint(self) -> str | None:
        """Return a hash of the test images and labels; None without a test set."""
        if self.test_images is None or self.test_labels is None:
            return None
        return self._hash(self.test_images, self.test_labels)

    def _hash(self, images: Images, labels: Tensor) -> str:
        digest = hashlib.sha256(f"{tuple(images.shape)}".encode())
        if isinstance(images, StoredImages) or self.files is not None:
            digest.update(digests(images))  # of pictures their hashes, so that those in a cache need not be read
        else:
            digest.update(images.contiguous().numpy().data)
        digest.update(labels.contiguous().numpy().data)
        return digest.hexdigest()[:32]


class Report(NamedTuple):
    """Findings about a data set, for ``--check``."""

    lines: list[str]  # contents
    warnings: list[str]  # oddities that make training or its accuracy worse
    problems: list[str]  # reasons why training would fail


class DatasetEntry(NamedTuple):
    """An entry of ``DATASETS``.

    Attributes:
        load: called with the ``data`` section (a ``settings_type``), the device that will hold the images, and whether
            to hide progress bars.
        settings_type: type of the ``data`` section.
        report: called like ``load``, for ``--check``; None if errors of ``load`` suffice.
    """

    load: Callable[[Any, torch.device, bool], ImageData]
    settings_type: type[DataSettings] = DataSettings
    report: Callable[[Any, torch.device, bool], Report] | None = None


def is_folder_name(name: str) -> bool:
    """Return whether a class name can also name a folder, on every system."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def check_images(data: ImageData) -> None:
    """Raise UserError if a loader returned an invalid ``ImageData``."""

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise UserError(f"data set {data.name}: {problem}")

    require(len(data.classes) > 1, "needs at least two classes")
    for name in data.classes:
        require(is_folder_name(name), f"class name {name!r} is not a valid folder name")
    for field in (data.files, data.groups):
        require(field is None or len(field) == len(data.images), "files and groups need one entry per training image")
    require((data.test_images is None) == (data.test_labels is None), "test_images and test_labels belong together")
    sets = [("training", data.images, data.labels, -1)]
    if data.test_images is not None and data.test_labels is not None:
        sets.append(("test", data.test_images, data.test_labels, 0))
    for part, images, labels, least in sets:
        shape = tuple(images.shape)
        valid = images.dtype == torch.uint8 and len(shape) == 4 and shape[1] == shape[2] and shape[0] > 0
        require(valid, f"{part} images must be (n, h, h, c) uint8, got {shape} {images.dtype}")
        require(shape[1:] == data.images.shape[1:], f"test images are {shape[1:]}, training images are not")
        require(labels.dtype == torch.int64 and labels.shape == shape[:1], f"{part} labels must be ({shape[0]},) int64")
        in_range = least <= int(labels.min()) <= int(labels.max()) < len(data.classes)
        require(in_range, f"{part} labels must be {least} to {len(data.classes) - 1}")


def resize(data: ImageData, size: int) -> ImageData:
    """Return the data set with images of ``size`` pixels a side, bicubic with antialiasing, as in Pillow."""

    def resized(images: Images) -> Tensor:
        chunks = [
            F.interpolate(chunk.movedim(3, 1), (size, size), mode="bicubic", antialias=True).movedim(1, 3).contiguous()
            for chunk in torch.split(to_memory(images, torch.device("cpu")), 1000)
        ]
        return torch.cat(chunks)

    test_images = None if data.test_images is None else resized(data.test_images)
    return replace(data, images=resized(data.images), test_images=test_images)
