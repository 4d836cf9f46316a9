"""Data sets, read from small files in the published formats."""

import gzip
import hashlib
import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, STL10, SVHN, FashionMNIST

from mixmatch.config import build_config
from mixmatch.data import DATASETS, DatasetEntry, ImageData, load_data
from mixmatch.data.download import explain_download_errors
from mixmatch.errors import UserError
from tests.helpers import CPU, in_memory

UNREACHABLE = "http://127.0.0.1:9"


def load(dataset, root="data", **settings):
    return in_memory(load_data(build_config({"data": {"dataset": dataset, "root": str(root), **settings}}).data, CPU))


def save_image(path, color=(10, 20, 30), size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def limit_memory(monkeypatch, num_bytes):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": num_bytes}))


# Folders of photographs; labels files and reports are in test_photographs.py


@pytest.fixture
def photographs(tmp_path):
    """3 images of cat and 2 of dog are labeled, 4 are unlabeled, one of each class is for testing."""
    for i in range(3):
        save_image(tmp_path / "train" / "cat" / f"{i}.png", (200 + i, 0, 0))
    for i in range(2):
        save_image(tmp_path / "train" / "dog" / f"{i}.jpg", (0, 200 + i, 0), quality=95)
    for i in range(4):
        save_image(tmp_path / "unlabeled" / f"{i}.webp", (0, 0, 200 + i), lossless=True)
    for name in ("cat", "dog"):
        save_image(tmp_path / "test" / name / "x.bmp", (9, 9, 9))
    return tmp_path


def test_folder_has_train_unlabeled_and_test(photographs):
    data = load("folder", photographs, image_size=12)
    assert data.classes == ["cat", "dog"]
    assert data.images.shape == (9, 12, 12, 3) and data.images.dtype == torch.uint8
    assert data.labels.tolist() == [0, 0, 0, 1, 1, -1, -1, -1, -1]
    assert data.test_labels.tolist() == [0, 1]
    assert data.images[0, 5, 5].tolist() == [200, 0, 0] and data.images[8, 5, 5].tolist() == [0, 0, 203]


def test_folder_without_test_and_with_nested_hidden_and_linked_files(photographs):
    for path in (photographs / "test").rglob("*.bmp"):
        path.unlink()
    save_image(photographs / "train" / "cat" / "more" / "deep.gif")
    (photographs / "train" / "cat" / "more" / "loop").symlink_to(photographs / "train" / "cat")
    (photographs / "train" / "cat" / ".DS_Store").write_text("not an image")
    data = load("folder", photographs)
    assert data.test_images is None and data.test_labels is None
    assert data.labels.tolist()[:6] == [0, 0, 0, 0, 1, 1]


def test_folder_is_decoded_again_only_when_a_file_changes(photographs):
    def cached_at():
        (cache,) = (photographs / ".mixmatch-cache").glob("*.pixels")
        return cache.stat().st_mtime_ns

    first = load("folder", photographs)
    before = cached_at()
    assert torch.equal(load("folder", photographs).images, first.images) and cached_at() == before
    victim = photographs / "train" / "cat" / "0.png"
    status = victim.stat()
    save_image(victim, (201, 0, 0))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same modification time
    assert victim.stat().st_size == status.st_size
    assert load("folder", photographs).images[0, 0, 0].tolist() == [201, 0, 0] and cached_at() > before


def test_the_first_frame_of_an_animation_is_used(photographs):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(photographs / "train" / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    data = load("folder", photographs, image_size=8)
    assert data.images[3, 4, 4].tolist() == [255, 0, 0]
    assert data.notes == ["only the first page is used of train/cat/a.gif"]


def write_truncated_jpeg(path):
    save_image(path, size=(300, 300), quality=95)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    "name, corrupt",
    [
        ("empty.jpg", lambda path: path.write_bytes(b"")),
        ("text.png", lambda path: path.write_text("hello")),
        ("truncated.jpg", write_truncated_jpeg),
    ],
)
def test_files_that_are_not_images_are_listed(photographs, name, corrupt):
    corrupt(photographs / "unlabeled" / name)
    with pytest.raises(UserError, match=f"1 file cannot be read as pictures: .*{name}: ") as caught:
        load("folder", photographs)
    assert "\n" not in str(caught.value)


def test_file_names_that_are_not_utf8(photographs):
    odd = os.fsencode(photographs / "unlabeled") + b"/\xff\xfe.webp"
    os.rename(photographs / "unlabeled" / "0.webp", odd)
    assert len(load("folder", photographs).images) == 9
    with open(odd, "wb"):
        pass
    with pytest.raises(UserError, match=r"\\udcff\\udcfe.webp"):
        load("folder", photographs)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: (root / "train").rename(root / "training"), "train: does not exist"),
        (lambda root: save_image(root / "test" / "bird" / "x.png"), "class 'bird' appears only in test/"),
        (lambda root: (root / "train" / "Unlabeled").mkdir(), None),
        (lambda root: save_image(root / "train" / "_unlabeled" / "x.png"), "move its images to .*unlabeled/"),
        (lambda root: save_image(root / "val" / "bird" / "x.png"), "class 'bird' appears only in val/"),
        (lambda root: [save_image(root / name / "cat" / "x.png") for name in ("val", "Valid")], "both Valid/ and val/"),
        (lambda root: os.rename(root / "train" / "dog", root / "dog"), "train: needs at least two classes, has 1"),
        (lambda root: save_image(root / "unlabelled" / "x.png"), "both unlabeled/ and unlabelled/ exist"),
    ],
)
def test_contradictory_folders(photographs, change, message):
    change(photographs)
    if message is None:
        assert load("folder", photographs).notes == [f"{photographs}/train/Unlabeled: has no images and is ignored"]
        return
    with pytest.raises(UserError, match=message):
        load("folder", photographs)


def test_a_cache_that_cannot_be_written_gives_a_note(photographs):
    (photographs / ".mixmatch-cache").write_text("a file where the folder should be")
    data = load("folder", photographs)
    assert len(data.images) == 9 and "decoded images are not cached" in data.notes[0]


# Checks of what loaders return, sizes and memory


def test_digits():
    data = load("digits")
    assert data.images.shape == (1397, 8, 8, 1) and data.test_images.shape == (400, 8, 8, 1)
    assert data.test_labels.bincount().tolist() == [40] * 10
    assert not data.flip and data.images.max() == 255
    # The test set must never change: published figures are measured on it.
    assert (data.fingerprint(), data.test_fingerprint()) == (
        "69b83e2eab660a8bba4a2ab94bf6e079",
        "9f0bee70a1342fa47c5ec051fcdd9303",
    )


@pytest.mark.parametrize("size", [4, 12])
def test_resizing_agrees_with_pillow(size):
    small, data = load("digits", image_size=size), load("digits")
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
        ({"test_labels": None}, "belong together"),
        ({"test_images": torch.zeros(1, 4, 4, 1, dtype=torch.uint8)}, "test images are"),
        ({"test_images": torch.zeros(0, 4, 4, 3, dtype=torch.uint8)}, "test images must be"),
        ({"classes": ["a"]}, "needs at least two classes"),
        ({"classes": ["a", "b/c"]}, "'b/c' is not a valid folder name"),
        ({"files": ["a.png"]}, "one entry per training image"),
    ],
)
def test_loaders_that_return_invalid_data(registries, change, message):
    valid = {
        "classes": ["a", "b"],
        "images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "labels": torch.tensor([0, -1]),
        "test_images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        "test_labels": torch.tensor([1]),
    }
    DATASETS["odd"] = DatasetEntry(lambda settings, device, quiet: ImageData("odd", **(valid | change), flip=True))
    with pytest.raises(UserError, match=f"data set odd: .*{message}"):
        load("odd")


@pytest.mark.parametrize(
    "name, settings, gib",
    [
        ("digits", {"image_size": 1024}, "1.8"),
        ("stl10", {}, "5.8"),
        ("svhn_extra", {}, "3.6"),
        ("cifar10", {}, "0.3"),
        ("mnist", {}, "0.1"),
    ],
)
def test_images_that_do_not_fit_into_memory_are_not_downloaded_or_resized(tmp_path, monkeypatch, name, settings, gib):
    limit_memory(monkeypatch, 2**24)
    with pytest.raises(UserError, match=f"images need {gib} GiB, this machine has 0.0 GiB of free memory; "):
        load(name, tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_photographs_that_do_not_fit_into_memory_are_not_decoded(photographs, monkeypatch):
    (photographs / "unlabeled" / "0.webp").write_bytes(b"not an image")
    limit_memory(monkeypatch, 1000)
    with pytest.raises(UserError, match=r"images need .* lower data.image_size"):
        load("folder", photographs, cache=False)
    with pytest.raises(UserError, match=r"data.keep_on: host needs .* use auto"):
        load("folder", photographs, keep_on="host")
    assert not (photographs / ".mixmatch-cache").exists()


# Data sets that torchvision downloads; nothing is served, and checksums are those of the small files


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pack(monkeypatch, source, folder, root, train, test):
    """Pack a folder as the archive that a torchvision class ``source`` unpacks."""
    root.mkdir(exist_ok=True)
    archive = root / source.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    for part, names in (("train_list", train), ("test_list", test)):
        monkeypatch.setattr(source, part, [[name, md5(folder / name)] for name in names])
    if hasattr(source, "meta"):
        monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(folder / source.meta["filename"])})
    monkeypatch.setattr(source, "url", f"{UNREACHABLE}/{source.filename}")
    return root


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """Two images in each batch."""
    folder = tmp_path / "made" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, name in enumerate(names):
        rows = np.full((2, 3072), number, np.uint8)
        rows[:, 1024:2048] = 100  # planes of red, green, blue
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [number, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    return pack(monkeypatch, CIFAR10, folder, tmp_path / "data", names[:5], names[5:])


def test_cifar10_is_unpacked_from_its_archive(small_cifar10):
    data = load("cifar10", small_cifar10)
    assert data.images.shape == (10, 32, 32, 3) and data.test_images.shape == (2, 32, 32, 3)
    assert data.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and data.classes[3] == "class3"
    assert data.images[4, 0, 0].tolist() == [2, 100, 2] and data.flip and data.authors_split


def test_downloads_into_one_folder_wait_for_each_other(tmp_path):
    inside = []

    def download(_):
        with explain_download_errors("toy", tmp_path, []):
            inside.append(1)
            time.sleep(0.05)
            assert len(inside) == 1
            inside.pop()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(download, range(3))) == [None] * 3
    (tmp_path / ".download.lock").unlink()
    (tmp_path / ".download.lock").mkdir()  # as in a folder that cannot be written
    download(0)


def test_cifar10_that_is_missing_or_corrupt(small_cifar10):
    load("cifar10", small_cifar10)
    batch = small_cifar10 / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert len(load("cifar10", small_cifar10).labels) == 10  # unpacked again
    batch.write_bytes(b"")
    (small_cifar10 / CIFAR10.filename).write_bytes(b"not the archive")
    message = r"cannot read or download CIFAR-10 \(.*cifar-10-python.tar.gz \(MD5 .*--config digits"
    with pytest.raises(UserError, match=message):
        load("cifar10", small_cifar10)
    (small_cifar10 / CIFAR10.filename).unlink()
    with pytest.raises(UserError, match=message):
        load("cifar10", small_cifar10)


def test_cifar100_is_unpacked_from_its_archive(tmp_path, monkeypatch):
    folder = tmp_path / "made" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for number, name in enumerate(["train", "test"]):
        rows = np.full((3, 3072), number, np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": [0, 50, 99]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class{i}" for i in range(100)]}))
    root = pack(monkeypatch, CIFAR100, folder, tmp_path / "data", ["train"], ["test"])
    data = load("cifar100", root)
    assert data.images.shape == (3, 32, 32, 3) and data.labels.tolist() == [0, 50, 99] and len(data.classes) == 100


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


PARTS = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture
def idx_arrays():
    """6 training and 4 test images with their labels, by the names of MNIST's files."""
    random = np.random.RandomState(0)
    arrays = [random.randint(0, 256, (6, 28, 28)), np.arange(6), random.randint(0, 256, (4, 28, 28)), np.arange(4)]
    return dict(zip(PARTS, arrays, strict=True))


@pytest.fixture(params=["mnist", "fashion_mnist"])
def small_mnist(request, tmp_path, monkeypatch, idx_arrays):
    source = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[request.param]
    raw = tmp_path / source.__name__ / "raw"
    raw.mkdir(parents=True)
    for name, array in idx_arrays.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    monkeypatch.setattr(source, "resources", [(f"{name}.gz", md5(raw / f"{name}.gz")) for name in idx_arrays])
    monkeypatch.setattr(source, "mirrors", [f"{UNREACHABLE}/"])
    return request.param, source, raw


def test_mnist_is_read_as_torchvision_does(small_mnist, tmp_path, idx_arrays):
    name, source, _ = small_mnist
    data = load(name, tmp_path)
    theirs = source(tmp_path, train=True)
    assert torch.equal(data.images[..., 0], theirs.data) and torch.equal(data.labels, theirs.targets)
    assert np.array_equal(data.images[..., 0].numpy(), idx_arrays[PARTS[0]])
    assert data.images.shape == (6, 28, 28, 1) and data.test_labels.tolist() == [0, 1, 2, 3]
    assert len(data.classes) == 10 and data.flip == (name == "fashion_mnist")


@pytest.mark.parametrize("content", [None, b"", b"not an archive"], ids=["missing", "empty", "another format"])
def test_mnist_that_cannot_be_read_or_downloaded(small_mnist, tmp_path, content):
    name, _, raw = small_mnist
    file = raw / f"{PARTS[0]}.gz"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"raw: cannot read or download .*train-images-idx3-ubyte.gz \(MD5"):
        load(name, tmp_path)


def save_mat(path, images, digits):
    """Write a file of SVHN: images (h, w, c, n), the digit 0 stored as 10."""
    savemat(path, {"X": images, "y": np.array(digits, np.uint8)[:, None]}, do_compression=True)


@pytest.fixture
def small_svhn(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    parts = {}
    for part, digits in {"train": [10, 1, 9, 1], "extra": [2, 2, 5], "test": [10, 3]}.items():
        file = tmp_path / f"{part}_32x32.mat"
        save_mat(file, random.randint(0, 256, (32, 32, 3, len(digits))).astype(np.uint8), digits)
        parts[part] = [f"{UNREACHABLE}/{file.name}", file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", parts)
    return tmp_path


def test_svhn_is_read_as_torchvision_does(small_svhn):
    data, extra = (load(name, small_svhn) for name in ("svhn", "svhn_extra"))
    theirs = SVHN(small_svhn, split="train")
    assert data.images.shape == (4, 32, 32, 3) and data.labels.tolist() == [0, 1, 9, 1]
    assert np.array_equal(data.images.numpy(), theirs.data.transpose(0, 2, 3, 1))
    assert data.test_labels.tolist() == [0, 3] and data.by_share and data.authors_split and not data.flip
    assert extra.labels.tolist() == [0, 1, 9, 1, 2, 2, 5] and torch.equal(extra.images[:4], data.images)
    assert torch.equal(extra.test_images, data.test_images) and extra.fingerprint() != data.fingerprint()


def test_svhn_that_cannot_be_read_or_downloaded(small_svhn, monkeypatch):
    file, message = small_svhn / "train_32x32.mat", r"SVHN .*train_32x32.mat \(MD5 [0-9a-f]+"
    file.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(500))
    with pytest.raises(UserError, match=message):
        load("svhn", small_svhn)
    monkeypatch.setitem(SVHN.split_list, "train", [*SVHN.split_list["train"][:2], md5(file)])  # a valid checksum
    with pytest.raises(UserError, match=message):
        load("svhn", small_svhn)


@pytest.fixture
def small_stl10(tmp_path, monkeypatch):
    """6 labeled images in two folds, 3 unlabeled, 2 for testing."""
    folder = tmp_path / "made" / STL10.base_folder
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name, count in {"train": 6, "unlabeled": 3, "test": 2}.items():
        (folder / f"{name}_X.bin").write_bytes(random.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 3, 1, 2, 10]))
    (folder / "test_y.bin").write_bytes(bytes([1, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2 \n3 4 5 \n")
    train, test = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"], ["test_X.bin", "test_y.bin"]
    return pack(monkeypatch, STL10, folder, tmp_path / "data", train, test)


def test_stl10_is_read_as_torchvision_does(small_stl10):
    data = load("stl10", small_stl10)
    theirs = STL10(small_stl10, split="train+unlabeled")
    assert data.images.shape == (9, 96, 96, 3) and data.labels.tolist() == [0, 1, 2, 0, 1, 9, -1, -1, -1]
    assert np.array_equal(data.images.numpy(), theirs.data.transpose(0, 2, 3, 1))
    assert data.folds == [[0, 1, 2], [3, 4, 5]] and data.classes[9] == "class9" and data.flip
    assert data.test_labels.tolist() == [0, 9]
    assert load("stl10", small_stl10, image_size=32).images.shape == (9, 32, 32, 3)


def test_stl10_with_corrupt_folds(small_stl10):
    load("stl10", small_stl10)
    (small_stl10 / STL10.base_folder / "fold_indices.txt").write_text("one two")  # has no checksum
    with pytest.raises(UserError, match="cannot read or download STL-10"):
        load("stl10", small_stl10)
