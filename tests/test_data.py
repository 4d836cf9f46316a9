"""Data sets, read from real files made by the tests."""

import hashlib
import os
import pickle
import tarfile

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from mixmatch.config import build_config
from mixmatch.data import DATASETS, Dataset, ImageData, load_data
from mixmatch.errors import UserError

CPU = torch.device("cpu")


def load_named(dataset, **settings):
    return load_data(build_config({"data": {"dataset": dataset, **settings}}).data, CPU)


def load(root, **settings):
    return load_named("folder", root=str(root), **settings)


def picture(path, color=(10, 20, 30), size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


@pytest.fixture
def photographs(tmp_path):
    """cat: 3, dog: 2 labelled; 4 unlabelled; a test image each."""
    for i in range(3):
        picture(tmp_path / "train" / "cat" / f"{i}.png", (200 + i, 0, 0))
    for i in range(2):
        picture(tmp_path / "train" / "dog" / f"{i}.jpg", (0, 200 + i, 0), quality=95)
    for i in range(4):
        picture(tmp_path / "unlabeled" / f"{i}.webp", (0, 0, 200 + i), lossless=True)
    for name in ("cat", "dog"):
        picture(tmp_path / "test" / name / "x.bmp", (9, 9, 9))
    return tmp_path


def test_folder_reads_train_unlabeled_and_test(photographs):
    data = load(photographs, image_size=12)
    assert data.classes == ["cat", "dog"]
    assert data.images.shape == (9, 12, 12, 3) and data.images.dtype == torch.uint8
    assert data.labels.tolist() == [0, 0, 0, 1, 1, -1, -1, -1, -1]
    assert data.test_labels.tolist() == [0, 1]
    assert data.images[0, 5, 5].tolist() == [200, 0, 0] and data.images[8, 5, 5].tolist() == [0, 0, 203]


def test_folder_without_test_and_with_nested_and_hidden_files(photographs):
    for path in (photographs / "test").rglob("*.bmp"):
        path.unlink()
    picture(photographs / "train" / "cat" / "more" / "deep.gif")
    (photographs / "train" / "cat" / ".DS_Store").write_text("not an image")
    data = load(photographs)
    assert data.test_images is None and data.test_labels is None
    assert data.labels.tolist()[:4] == [0, 0, 0, 0]


def test_folder_is_decoded_once_and_again_when_a_file_changes(photographs):
    first = load(photographs)
    victim = photographs / "unlabeled" / "0.webp"
    status = victim.stat()
    victim.write_bytes(b"x" * status.st_size)  # no image any more, but nothing tells so
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(load(photographs).images, first.images)
    picture(victim, (7, 7, 7), lossless=True)
    picture(photographs / "train" / "cat" / "0.png", (1, 2, 3), size=(9, 9))
    assert load(photographs).images[0, 0, 0].tolist() == [1, 2, 3]
    (cache,) = (photographs / ".mixmatch-cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-5])
    assert load(photographs).images[0, 0, 0].tolist() == [1, 2, 3]


def test_image_modes(tmp_path):
    """16-bit, palette, CMYK, alpha, animated and rotated images come out as what a person sees."""
    folder = tmp_path / "train" / "a"
    picture(tmp_path / "train" / "b" / "x.png")
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "0-16bit.png")
    Image.new("RGB", (8, 8), (250, 128, 3)).quantize().save(folder / "1-palette.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "2-cmyk.jpg", quality=100)
    Image.new("RGBA", (8, 8), (5, 6, 7, 128)).save(folder / "3-alpha.png")
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(folder / "4-animated.gif", save_all=True, append_images=frames[1:])
    rotated = Image.new("RGB", (8, 8))
    rotated.paste((255, 255, 255), (0, 0, 8, 4))  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    rotated.save(folder / "5-exif.png", exif=exif)
    images = load(tmp_path, image_size=8).images
    assert images[0, 4, 4].tolist() == [156, 156, 156]
    assert images[1, 4, 4].tolist() == [250, 128, 3]
    assert (images[2, 4, 4].int() - torch.tensor([255, 0, 0])).abs().max() < 6
    assert images[3, 4, 4].tolist() == [5, 6, 7]
    assert images[4, 4, 4].tolist() == [255, 0, 0]
    assert images[5, 0, 0].tolist() == [0, 0, 0] and images[5, 7, 7].tolist() == [255, 255, 255]


def test_other_shapes_are_cut_to_the_central_square(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 0))
    wide.paste((255, 255, 255), (20, 0, 40, 20))
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        wide.save(tmp_path / "train" / name / "x.png")
    images = load(tmp_path, image_size=10).images
    assert (
        images[:, :, 1:-1] == 255
    ).all() and images.min() > 200  # the resampling filter sees a little beyond the edge


def bomb(path):
    """A PNG that claims 50,000 x 50,000 pixels."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def truncated(path):
    picture(path, size=(300, 300), quality=95)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("zero.jpg", lambda path: path.write_bytes(b"")),
        ("text.png", lambda path: path.write_text("hello")),
        ("bomb.png", bomb),
        ("half.jpg", truncated),
    ],
)
def test_a_file_that_is_no_image_is_named(photographs, name, spoil):
    spoil(photographs / "unlabeled" / name)
    with pytest.raises(UserError, match=f"cannot be read as a picture: .*{name}: ") as caught:
        load(photographs)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_utf8(photographs):
    source = photographs / "unlabeled" / "0.webp"
    odd = os.fsencode(photographs / "unlabeled") + b"/\xff\xfe.webp"
    os.rename(os.fsencode(source), odd)
    assert len(load(photographs).images) == 9
    with open(odd, "wb"):
        pass
    with pytest.raises(UserError, match=r"\\udcff\\udcfe.webp"):
        load(photographs)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "train").rename(root / "training"), "train: is not there"),
        (lambda root: picture(root / "test" / "bird" / "x.png"), "'bird' is in test/ but not in train/"),
        (lambda root: (root / "train" / "empty").mkdir(), "empty: holds no images"),
        (lambda root: os.rename(root / "train" / "dog", root / "dog"), "at least two, has 1"),
    ],
)
def test_folders_that_contradict_themselves(photographs, spoil, message):
    spoil(photographs)
    with pytest.raises(UserError, match=message):
        load(photographs)


def test_too_large_is_said_before_decoding(photographs, monkeypatch):
    (photographs / "unlabeled" / "0.webp").write_bytes(b"no image")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(UserError, match=r"images take .* lower data.image_size"):
        load(photographs)


def test_cache_that_cannot_be_written_is_no_obstacle(photographs):
    (photographs / ".mixmatch-cache").write_text("a file where the folder should be")
    data = load(photographs)
    assert len(data.images) == 9 and "not kept" in data.notes[0]


def test_digits():
    data = load_named("digits")
    assert data.images.shape == (1397, 8, 8, 1) and data.test_images.shape == (400, 8, 8, 1)
    assert data.test_labels.bincount().tolist() == [40] * 10
    assert not data.flip and data.images.max() == 255
    assert data.fingerprint() == load_named("digits").fingerprint()


@pytest.mark.parametrize("size", [4, 12, 16])
def test_any_data_set_can_be_resized_and_as_pillow_does(size):
    small, data = load_named("digits", image_size=size), load_named("digits")
    assert small.images.shape == (1397, size, size, 1) and small.test_images.shape == (400, size, size, 1)
    assert torch.equal(small.labels, data.labels)
    for ours, image in zip(small.images[:20, ..., 0], data.images[:20, ..., 0], strict=True):
        pillow = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC)
        assert (ours.int() - torch.from_numpy(np.array(pillow)).int()).abs().max() <= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": torch.zeros(2, 4, 5, 3, dtype=torch.uint8)}, r"training images must be \(n, h, h, c\) uint8"),
        ({"images": torch.zeros(2, 4, 4, 3)}, "uint8"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"training labels must be \(2,\) int64"),
        ({"labels": torch.tensor([0, 2])}, "labels must be -1 to 1"),
        ({"test_labels": torch.tensor([-1])}, "test labels must be 0 to 1"),
        ({"test_labels": None}, "test images without labels"),
        ({"test_images": torch.zeros(1, 4, 4, 1, dtype=torch.uint8)}, "test images are"),
        (
            {"test_images": torch.zeros(0, 4, 4, 3, dtype=torch.uint8), "test_labels": torch.zeros(0).long()},
            "test images",
        ),
    ],
)
def test_a_loader_that_returns_what_is_no_data_set(monkeypatch, change, message):
    whole = {
        "images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "labels": torch.tensor([0, -1]),
        "test_images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        "test_labels": torch.tensor([1]),
    }
    data = ImageData("odd", ["a", "b"], **(whole | change), flip=True)
    monkeypatch.setitem(DATASETS, "odd", Dataset(lambda settings, device, quiet: data))
    with pytest.raises(UserError, match=f"data set odd: .*{message}"):
        load_named("odd")


def test_too_large_is_said_before_resizing(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**8}))
    with pytest.raises(UserError, match=r"images take 1.8 GiB, this machine has 0.1 GiB"):
        load_named("digits", image_size=1024)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """An archive laid out like CIFAR-10's, with two images a batch, whose checksums torchvision is told to expect."""
    folder = tmp_path / "made" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, name in enumerate(names):
        rows = np.full((2, 3072), number, np.uint8)
        rows[:, 1024:2048] = 100  # planes of red, green, blue
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [number, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    root = tmp_path / "data"
    root.mkdir()
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, CIFAR10.base_folder)

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(folder / name)] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], md5(folder / names[5])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody answers there
    return root


def load_cifar(root):
    return load_named("cifar10", root=str(root))


def test_cifar10_is_unpacked_from_its_archive(small_cifar):
    data = load_cifar(small_cifar)
    assert data.images.shape == (10, 32, 32, 3) and data.test_images.shape == (2, 32, 32, 3)
    assert data.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and data.classes[3] == "class3"
    assert data.images[4, 0, 0].tolist() == [2, 100, 2] and data.flip
    assert (small_cifar / "cifar-10-batches-py" / "data_batch_1").exists()


def test_cifar10_missing_and_no_network(small_cifar):
    (small_cifar / CIFAR10.filename).unlink()
    with pytest.raises(UserError, match=r"is not there and could not be downloaded .*put cifar-10-python.tar.gz"):
        load_cifar(small_cifar)


def test_cifar10_with_a_damaged_file_is_unpacked_anew_or_named(small_cifar):
    load_cifar(small_cifar)
    batch = small_cifar / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert load_cifar(small_cifar).labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    batch.write_bytes(b"")
    (small_cifar / CIFAR10.filename).write_bytes(b"not the archive")
    with pytest.raises(UserError, match=r"is damaged and could not be downloaded .*configs/digits.yml"):
        load_cifar(small_cifar)
