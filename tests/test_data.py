"""Data sets, read from real files made by the tests."""

import gzip
import hashlib
import os
import pickle
import shutil
import tarfile

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, STL10, SVHN, FashionMNIST

from mixmatch.config import build_config
from mixmatch.data import DATASETS, Dataset, ImageData, load_data, mnist
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
    """cat: 3, dog: 2 labeled; 4 unlabeled; a test image each."""
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


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pack(monkeypatch, source, folder, root, train, test):
    """Pack a folder as the archive that torchvision looks for, with checksums that it is told to expect."""
    archive = root / source.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    for part, names in (("train_list", train), ("test_list", test)):
        monkeypatch.setattr(source, part, [[name, md5(folder / name)] for name in names])
    if hasattr(source, "meta"):
        monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(folder / source.meta["filename"])})
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:9/{source.filename}")  # nobody answers there
    return archive


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
    pack(monkeypatch, CIFAR10, folder, root, names[:5], names[5:])
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


def idx(array, magic=8):
    head = bytes([0, 0, magic, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


PARTS = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture
def idx_files():
    """The contents of small files in MNIST's format, 6 training and 4 test images."""
    draw = np.random.RandomState(0)
    arrays = [draw.randint(0, 256, (6, 28, 28)), np.arange(6), draw.randint(0, 256, (4, 28, 28)), np.arange(4)]
    return dict(zip(PARTS, arrays, strict=True))


@pytest.fixture(params=["mnist", "fashion_mnist"])
def small_mnist(request, tmp_path, monkeypatch, idx_files):
    """Archives where torchvision looks for them, with checksums that it is told to expect; nobody serves others."""
    source = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[request.param]
    raw = tmp_path / source.__name__ / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, array in idx_files.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        resources.append((f"{name}.gz", md5(raw / f"{name}.gz")))
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(source, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr("mixmatch.data.mnist.INSTALLED", tmp_path / "not there")
    return request.param, source, raw


def test_mnist_is_read_as_torchvision_does(small_mnist, tmp_path, idx_files):
    name, source, _ = small_mnist
    data = load_named(name, root=str(tmp_path))
    theirs = source(tmp_path, train=True)
    assert torch.equal(data.images[..., 0], theirs.data) and torch.equal(data.labels, theirs.targets)
    assert np.array_equal(data.images[..., 0].numpy(), idx_files[PARTS[0]])
    assert data.images.shape == (6, 28, 28, 1) and data.test_labels.tolist() == [0, 1, 2, 3]
    assert len(data.classes) == 10 and data.flip == (name == "fashion_mnist")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no archive"),
        lambda file: file.write_bytes(gzip.compress(b"\0\0\x07\x01xxxx")),
    ],
    ids=["missing", "truncated", "empty", "no archive", "another magic number"],
)
def test_mnist_damaged_and_no_network(small_mnist, tmp_path, spoil):
    name, _, raw = small_mnist
    spoil(raw / f"{PARTS[0]}.gz")
    with pytest.raises(UserError, match=r"could not be downloaded .*train-images-idx3-ubyte.gz [(]MD5") as caught:
        load_named(name, root=str(tmp_path))
    assert ("apt install" in str(caught.value)) == (name == "fashion_mnist")


def test_mnist_whose_raw_files_are_damaged_or_have_other_labels(small_mnist, tmp_path, idx_files):
    name, _, raw = small_mnist
    load_named(name, root=str(tmp_path))  # unpacks them
    (raw / PARTS[1]).write_bytes(idx(np.arange(6) + 200))
    with pytest.raises(UserError, match="labels do not fit"):
        load_named(name, root=str(tmp_path))
    (raw / PARTS[0]).write_bytes(idx(idx_files[PARTS[0]])[:-1])
    with pytest.raises(UserError, match="is damaged"):
        load_named(name, root=str(tmp_path))


def test_fashion_mnist_is_found_where_the_system_installs_it(tmp_path, monkeypatch, idx_files):
    place = tmp_path / "share"
    place.mkdir()
    for name, array in idx_files.items():
        (place / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    checksums = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in idx_files.items()}
    monkeypatch.setattr("mixmatch.data.mnist.INSTALLED", place)
    monkeypatch.setattr("mixmatch.data.mnist.CHECKSUMS", checksums)
    data = load_named("fashion_mnist", root=str(tmp_path / "data"))
    assert np.array_equal(data.images[..., 0].numpy(), idx_files[PARTS[0]]) and data.labels.tolist() == [*range(6)]
    assert "/" not in "".join(data.classes) and not (tmp_path / "data").exists()
    for damaged in (gzip.compress(idx(idx_files[PARTS[0]] // 2)), b"x", gzip.compress(idx(idx_files[PARTS[0]]))[:-20]):
        (place / f"{PARTS[0]}.gz").write_bytes(damaged)
        with pytest.raises(UserError, match="install dataset-fashion-mnist anew"):
            load_named("fashion_mnist", root=str(tmp_path / "data"))


def test_the_whole_of_fashion_mnist():
    if not mnist.INSTALLED.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data = load_named("fashion_mnist", root="/nowhere")
    assert data.images.shape == (60000, 28, 28, 1) and data.test_images.shape == (10000, 28, 28, 1)
    assert data.labels.bincount().tolist() == [6000] * 10 and data.test_labels.bincount().tolist() == [1000] * 10
    assert data.classes[0] == "T-shirt or top"


def test_cifar100_is_unpacked_from_its_archive(tmp_path, monkeypatch):
    folder = tmp_path / "made" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for number, name in enumerate(["train", "test"]):
        rows = np.full((3, 3072), number, np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": [0, 50, 99]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class{i}" for i in range(100)]}))
    archive = pack(monkeypatch, CIFAR100, folder, tmp_path, ["train"], ["test"])
    data = load_named("cifar100", root=str(tmp_path))
    assert data.images.shape == (3, 32, 32, 3) and data.labels.tolist() == [0, 50, 99] and len(data.classes) == 100
    shutil.rmtree(tmp_path / CIFAR100.base_folder)
    archive.write_bytes(b"")
    with pytest.raises(UserError, match=r"CIFAR-100 is not there and could not be downloaded .*put cifar-100-python"):
        load_named("cifar100", root=str(tmp_path))


def mat(path, images, digits):
    """A file of SVHN: images (h, w, c, n), the digit 0 stored as 10."""
    savemat(path, {"X": images, "y": np.array(digits, np.uint8)[:, None]}, do_compression=True)


@pytest.fixture
def small_svhn(tmp_path, monkeypatch):
    """Small files in SVHN's format, whose checksums torchvision is told to expect; nobody serves others."""
    draw = np.random.RandomState(0)
    root, parts = tmp_path / "data", {}
    root.mkdir()
    for part, digits in {"train": [10, 1, 9, 1], "extra": [2, 2, 5], "test": [10, 3]}.items():
        file = root / f"{part}_32x32.mat"
        mat(file, draw.randint(0, 256, (32, 32, 3, len(digits))).astype(np.uint8), digits)
        parts[part] = [f"http://127.0.0.1:9/{file.name}", file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", parts)
    return root


def test_svhn_is_read_as_torchvision_does(small_svhn):
    data, extra = (load_named(name, root=str(small_svhn)) for name in ("svhn", "svhn_extra"))
    theirs = SVHN(small_svhn, split="train")
    assert data.images.shape == (4, 32, 32, 3) and data.labels.tolist() == [0, 1, 9, 1]
    assert np.array_equal(data.images.numpy(), theirs.data.transpose(0, 2, 3, 1))
    assert np.array_equal(data.images[1].numpy(), np.asarray(theirs[1][0]))
    assert data.test_labels.tolist() == [0, 3] and data.by_share and not data.flip
    assert extra.labels.tolist() == [0, 1, 9, 1, 2, 2, 5] and torch.equal(extra.images[:4], data.images)
    assert torch.equal(extra.test_images, data.test_images) and extra.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    "spoil, state",
    [
        (lambda file: file.unlink(), "is not there"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(500)), "is damaged"),
    ],
    ids=["missing", "truncated", "empty", "another format"],
)
@pytest.mark.parametrize("expected", [False, True], ids=["checksum differs", "checksum fits"])
def test_svhn_damaged_and_no_network(small_svhn, monkeypatch, spoil, state, expected):
    file = small_svhn / "train_32x32.mat"
    spoil(file)
    if expected and file.exists():
        monkeypatch.setitem(SVHN.split_list, "train", [*SVHN.split_list["train"][:2], md5(file)])
    with pytest.raises(UserError, match=rf"{state} and could not be downloaded .*put train_32x32.mat \(MD5 [0-9a-f]+"):
        load_named("svhn", root=str(small_svhn))


def test_svhn_with_labels_that_are_no_digits(small_svhn, monkeypatch):
    file = small_svhn / "train_32x32.mat"
    mat(file, np.zeros((32, 32, 3, 2), np.uint8), [1, 11])
    monkeypatch.setitem(SVHN.split_list, "train", [*SVHN.split_list["train"][:2], md5(file)])
    with pytest.raises(UserError, match="svhn: training labels must be -1 to 9"):
        load_named("svhn", root=str(small_svhn))


@pytest.fixture
def small_stl10(tmp_path, monkeypatch):
    """An archive laid out like STL-10's: 6 labeled images in two folds, 3 without label, 2 for the test."""
    folder = tmp_path / "made" / STL10.base_folder
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for name, count in {"train": 6, "unlabeled": 3, "test": 2}.items():
        (folder / f"{name}_X.bin").write_bytes(draw.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 3, 1, 2, 10]))
    (folder / "test_y.bin").write_bytes(bytes([1, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2 \n3 4 5 \n")
    root = tmp_path / "data"
    root.mkdir()

    def pack_stl10():
        train = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]
        pack(monkeypatch, STL10, folder, root, train, ["test_X.bin", "test_y.bin"])

    pack_stl10()
    return root, folder, pack_stl10


def test_stl10_is_read_as_torchvision_does(small_stl10):
    root, _, _ = small_stl10
    data = load_named("stl10", root=str(root))
    theirs = STL10(root, split="train+unlabeled")
    assert data.images.shape == (9, 96, 96, 3) and data.labels.tolist() == [0, 1, 2, 0, 1, 9, -1, -1, -1]
    assert np.array_equal(data.images.numpy(), theirs.data.transpose(0, 2, 3, 1))
    assert np.array_equal(data.images[2].numpy(), np.asarray(theirs[2][0]))
    assert data.folds == [[0, 1, 2], [3, 4, 5]] and data.classes[9] == "class9" and data.flip
    assert data.test_labels.tolist() == [0, 9]
    small = load_named("stl10", root=str(root), image_size=32)
    assert small.images.shape == (9, 32, 32, 3)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("train_X.bin", lambda old: old[:-1], "is damaged .*cannot reshape"),
        ("train_y.bin", lambda old: bytes([1, 2, 3, 1, 2, 11]), "training labels must be"),
        ("test_y.bin", lambda old: bytes([1, 0]), "test labels must be"),
        ("test_y.bin", lambda old: old + b"x", "test labels must be"),
        ("fold_indices.txt", lambda old: b"0 1 2\n3 4 6\n", "fold_indices.txt does not fit"),
        ("fold_indices.txt", lambda old: b"0 1 2\n3 4\n", "fold_indices.txt does not fit"),
        ("fold_indices.txt", lambda old: b"one two", "is damaged"),
    ],
)
def test_stl10_with_files_that_do_not_fit(small_stl10, file, content, message):
    root, folder, pack_stl10 = small_stl10
    (folder / file).write_bytes(content((folder / file).read_bytes()))
    pack_stl10()
    with pytest.raises(UserError, match=message):
        load_named("stl10", root=str(root))


def test_stl10_damaged_and_no_network(small_stl10):
    root, _, _ = small_stl10
    load_named("stl10", root=str(root))
    (root / STL10.filename).unlink()
    load_named("stl10", root=str(root))  # what has been unpacked suffices
    file = root / STL10.base_folder / "train_X.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged and could not be downloaded .*put stl10_binary.tar.gz \(MD5"):
        load_named("stl10", root=str(root))


@pytest.mark.parametrize("name, source", [("cifar10", CIFAR10), ("stl10", STL10)])
def test_an_archive_that_reaches_out_is_not_unpacked(tmp_path, monkeypatch, name, source):
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / source.filename, "w:gz") as file:
        member = tarfile.TarInfo("../outside")
        file.addfile(member)
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:9/{source.filename}")
    with pytest.raises(UserError, match="could not be downloaded"):
        load_named(name, root=str(root))
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "svhn", "svhn_extra", "stl10"])
@pytest.mark.parametrize("root", ["/proc/none", "/dev/null/data"])
def test_a_folder_that_cannot_be_written_to(name, root):
    with pytest.raises(UserError, match="is not there and could not be downloaded"):
        load_named(name, root=root)


@pytest.mark.parametrize(
    "name, gib", [("stl10", "5.8"), ("svhn_extra", "3.6"), ("svhn", "0.6"), ("cifar10", "0.3"), ("mnist", "0.1")]
)
def test_too_large_is_said_before_the_download(monkeypatch, tmp_path, name, gib):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**24}))
    with pytest.raises(
        UserError, match=rf"to read {name} takes {gib} GiB, this machine has 0.0 GiB .*a machine with more"
    ):
        load_named(name, root=str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
