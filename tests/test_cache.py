"""The cache of decoded pictures: it grows, survives faults, and gives the same training wherever images are kept."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import main
from mixmatch.config import build_config
from mixmatch.data import load_data
from mixmatch.data.folder import dataset as folder_dataset
from mixmatch.data.folder.decode import decode
from mixmatch.data.memory import choose_place
from mixmatch.data.stored_images import StoredImages, read_ahead, to_memory
from mixmatch.errors import UserError
from tests.helpers import CPU, ROOT, SMALL, assert_same_run
from tests.test_predict import make_image

SIZE = 16


@pytest.fixture
def photos(tmp_path):
    """8 labeled pictures, 12 unlabeled ones, 4 to test."""
    root = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        for part, count in (("train", 4), ("test", 2)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                make_image(number, 10 * number + i + 100 * count).save(root / part / name / f"{i}.png")
    (root / "unlabeled").mkdir()
    for i in range(12):
        make_image(i % 2, 900 + i).save(root / "unlabeled" / f"{i:02}.png")
    return root


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded."""
    names, decode_all = [], folder_dataset.decode_all

    def recording(files, *args):
        for file, picture in decode_all(files, *args):
            names.append(file.name)
            yield file, picture

    monkeypatch.setattr(folder_dataset, "decode_all", recording)
    return names


def load(root, **settings):
    return load_data(build_config({"data": settings_of(root, **settings)}).data, CPU)


def settings_of(root, **settings):
    return {"dataset": "folder", "root": str(root), "image_size": SIZE, **settings}


def assert_right(data, root):
    """All pictures are those of their files, decoded alone."""
    files = [root / file for file in data.files] + sorted(root.glob("test/*/*"))
    images = torch.cat([to_memory(data.images, CPU), to_memory(data.test_images, CPU)])
    assert len(images) == len(files)
    for file, image in zip(files, images, strict=True):
        assert np.array_equal(decode(file, SIZE).pixels, image.numpy()), file


def pixel_file(root):
    (file,) = (root / ".mixmatch-cache").glob("*.pixels")
    return file


def test_the_cache_grows_with_the_folder(photos, decoded):
    first = load(photos)
    assert isinstance(first.images, StoredImages) and len(decoded) == 24
    decoded.clear()
    again = load(photos)
    assert not decoded and again.fingerprint() == first.fingerprint()
    make_image(0, 1).save(photos / "train" / "cat" / "new.png")
    (photos / "unlabeled" / "03.png").unlink()
    make_image(1, 77).save(photos / "unlabeled" / "05.png")
    data = load(photos)
    assert sorted(decoded) == ["05.png", "new.png"] and data.fingerprint() != first.fingerprint()
    assert_right(data, photos)
    assert torch.equal(
        to_memory(first.images, CPU), to_memory(again.images, CPU)
    )  # they still read the former pictures


def test_pixels_that_are_not_used_are_dropped(photos):
    before = load(photos)
    images = to_memory(before.images, CPU)
    for _ in range(3):
        for file in photos.glob("*/**/*.png"):
            make_image(0, int.from_bytes(os.urandom(2))).save(file)
        data = load(photos)
        assert pixel_file(photos).stat().st_size <= 2 * 24 * 3 * SIZE**2
    assert_right(data, photos)
    assert torch.equal(to_memory(before.images, CPU), images)  # a run that is under way


def test_rows_of_removed_pictures_are_not_written_again(photos):
    make_image(0, 1).save(photos / "unlabeled" / "last.png")
    data = load(photos)
    images = to_memory(data.images, CPU)
    (photos / "unlabeled" / "last.png").unlink()
    for name in ("a", "b"):
        make_image(1, 2).save(photos / "unlabeled" / f"{name}.png")
        load(photos)
    assert torch.equal(to_memory(data.images, CPU), images)


def test_a_run_fits_its_pictures_with_and_without_a_cache(photos, tmp_path):
    cached, elsewhere, uncached = (load(photos, cache=cache) for cache in (True, str(tmp_path / "cache"), False))
    assert isinstance(uncached.images, torch.Tensor) and isinstance(elsewhere.images, StoredImages)
    assert len({data.fingerprint() for data in (cached, elsewhere, uncached)}) == 1
    assert len({data.test_fingerprint() for data in (cached, elsewhere, uncached)}) == 1
    assert [file.name[:7] for file in (tmp_path / "cache").iterdir()] == ["photos-"]


@pytest.mark.parametrize("fault", ["index", "middle of the index", "cut pixels", "no pixels", "no index"])
def test_a_damaged_cache_is_mended(photos, decoded, fault):
    load(photos)
    pixels = pixel_file(photos)
    (index,) = (photos / ".mixmatch-cache").glob("*.sqlite")
    if fault == "index":
        index.write_bytes(b"not a data base" * 100)
    elif fault == "middle of the index":
        content = index.read_bytes()
        index.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    elif fault == "cut pixels":
        os.truncate(pixels, pixels.stat().st_size - 5)
    elif fault == "no pixels":
        pixels.unlink()
    else:
        index.unlink()
    decoded.clear()
    for _ in range(2):
        assert_right(load(photos), photos)
    assert len(decoded) == (1 if fault == "cut pixels" else 24)


def test_pixels_that_are_cut_while_a_run_reads_them_end_in_one_line(photos):
    images = load(photos).images
    os.truncate(pixel_file(photos), 0)
    with pytest.raises(UserError, match=r"cut short.*--refresh-cache"):
        images[torch.arange(3)]


@pytest.mark.slow
def test_a_killed_process_loses_little(photos, decoded):
    for i in range(3000):
        shutil.copy(photos / "unlabeled" / f"{i % 12:02}.png", photos / "unlabeled" / f"copy-{i}.png")
    script = "import sys, torch; from mixmatch.config import build_config; from mixmatch.data import load_data; "
    script += f"load_data(build_config({{'data': {settings_of(photos)!r}}}).data, torch.device('cpu'))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    committed = folder_dataset.PICTURES_PER_COMMIT * 3 * SIZE**2  # before more is written
    while not any(file.stat().st_size > committed for file in (photos / ".mixmatch-cache").glob("*.pixels")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_right(load(photos), photos)
    assert 0 < len(decoded) <= 3024 - folder_dataset.PICTURES_PER_COMMIT


def test_a_disk_without_room_leaves_the_images_in_memory(photos, decoded, monkeypatch):
    load(photos)
    make_image(0, 1).save(photos / "train" / "cat" / "new.png")
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    data = load(photos)
    assert_right(data, photos)
    assert "not cached (" in data.notes[0] and "0.0 GB are free" in data.notes[0]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(
        UserError, match=r"images need .* of free memory; decoded images are not cached .*; set data.cache"
    ):
        load(photos)


def test_a_disk_that_is_full_meanwhile_leaves_the_cache_whole(photos, decoded):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    load(photos)
    size = pixel_file(photos).stat().st_size
    for i in range(200):
        make_image(0, 2000 + i).save(photos / "unlabeled" / f"more-{i}.png")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, limit[1]))
    try:
        data = load(photos)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert isinstance(data.images, torch.Tensor) and "decoded images are not cached" in data.notes[0]
    assert_right(data, photos)
    assert pixel_file(photos).stat().st_size == size
    decoded.clear()
    assert_right(load(photos), photos)
    assert len(decoded) == 200


def test_a_file_that_vanishes_before_it_is_decoded_is_named(photos, monkeypatch):
    victim, index_folder = photos / "unlabeled" / "05.png", folder_dataset.index_folder

    def index_then_remove(*args):
        index = index_folder(*args)
        victim.unlink()
        return index

    monkeypatch.setattr(folder_dataset, "index_folder", index_then_remove)
    with pytest.raises(UserError, match=r"1 file cannot be read as pictures: .*05.png: does not exist"):
        load(photos)


def test_processes_that_start_at_once_decode_each_picture_once(photos, decoded):
    with ThreadPoolExecutor(4) as pool:
        for data in pool.map(lambda _: load(photos), range(4)):
            assert_right(data, photos)
    assert len(decoded) == 24


def test_pictures_can_be_added_while_another_process_reads(photos):
    def add():
        for i in range(20):
            make_image(1, 500 + i).save(photos / "unlabeled" / f"new-{i}.png")
            load(photos)

    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(add)
        data = load(photos)
        images = to_memory(data.images, CPU)
        while not adding.done():
            assert torch.equal(to_memory(data.images, CPU), images)
        adding.result()


def test_pixel_files_that_are_left_over_are_removed(photos):
    load(photos)
    left_over = pixel_file(photos).with_name(pixel_file(photos).name.replace("-0.pixels", "-7.pixels"))
    left_over.write_bytes(b"from a process that was killed")
    make_image(1, 1).save(photos / "unlabeled" / "new.png")
    load(photos)
    assert not left_over.exists()


# Where images are kept


def train(root, path, *overrides):
    data = ["data.dataset=folder", f"data.root={root}", f"data.image_size={SIZE}", "data.num_labeled=all"]
    return main.main(["--run-dir", str(path), *SMALL[3:], *data, "data.num_validation=0", *overrides])


@pytest.mark.parametrize("method", ["supervised", "softmatch"])
def test_training_is_the_same_wherever_images_are_kept(photos, tmp_path, method, capsys):
    for place in ("device", "host", "disk"):
        assert train(photos, tmp_path / place, f"method={method}", f"data.keep_on={place}") == 0
    assert_same_run(tmp_path / "device", tmp_path / "disk")
    assert_same_run(tmp_path / "device", tmp_path / "host")
    printed = capsys.readouterr().out
    assert "images in memory" in printed and "images on disk" in printed


def test_a_stage_with_new_labels_is_the_same_from_disk(photos, tmp_path):
    stage = ["pseudo_label.enabled=true", "pseudo_label.steps=9", "pseudo_label.refresh_every=3"]
    stage += ["pseudo_label.select=top", "pseudo_label.fraction=0.5", "train.balanced_sampling=true"]
    for place in ("device", "disk"):
        assert train(photos, tmp_path / place, *stage, f"data.keep_on={place}") == 0
    assert_same_run(tmp_path / "device-top-0.5", tmp_path / "disk-top-0.5")


def test_a_run_continues_with_its_images_elsewhere(photos, tmp_path):
    assert train(photos, tmp_path / "whole") == 0
    assert train(photos, tmp_path / "parts", "train.steps=5", "data.keep_on=disk") == 0
    cache = [f"data.cache={tmp_path / 'cache'}", "data.keep_on=device"]
    assert train(photos, tmp_path / "parts", "train.steps=9", *cache) == 0
    assert train(photos, tmp_path / "parts", "data.cache=false", "data.keep_on=auto") == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_on_one_machine_share_the_images_on_disk(photos, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py"]
    data = ["data.dataset=folder", f"data.root={photos}", f"data.image_size={SIZE}", "data.num_labeled=all"]
    for place in ("auto", "device"):
        settings = [*SMALL[3:], *data, "data.num_validation=0", f"data.keep_on={place}"]
        done = subprocess.run(
            [*command, "--run-dir", str(tmp_path / place), *settings],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ("images on disk" in done.stdout) == (place == "auto")
    assert_same_run(tmp_path / "auto", tmp_path / "device")


def test_pictures_from_the_cache_and_new_ones_are_checked_together(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run", "--check") == 0
    make_image(0, 5).save(photos / "unlabeled" / "new.png")  # of the same size
    assert train(photos, tmp_path / "run", "--check") == 0
    assert capsys.readouterr().out.count("check passed") == 2


def test_check_needs_no_memory_for_images_on_disk(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run", "--check", "data.keep_on=disk") == 0
    assert "check passed" in capsys.readouterr().out
    assert train(photos, tmp_path / "run", "data.keep_on=disk", "data.cache=false") == 2
    assert "data.keep_on: disk needs the cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "gib", "stored", "processes", "place"),
    [
        ("auto", 1, True, 1, "device"),
        ("auto", 3, True, 1, "disk"),
        ("auto", 1, True, 2, "disk"),  # one copy for both
        ("auto", 3, False, 1, "host"),
        ("host", 3, True, 1, "host"),
        ("device", 1, True, 2, "device"),
        ("disk", 1, True, 1, "disk"),
        ("host", 3, True, 2, "data.keep_on: host needs 6.0 GiB, cpu has 4.0 GiB of free memory; use auto"),
        ("device", 5, True, 1, "data.keep_on: device needs 5.0 GiB"),
        ("disk", 1, False, 1, "data.keep_on: disk needs the cache"),
    ],
)
def test_images_are_kept_in_the_first_place_with_room(monkeypatch, asked, gib, stored, processes, place):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4 * 2**30}))
    if place in ("device", "host", "disk"):
        assert choose_place(asked, gib * 2**30, CPU, stored, processes) == place
    else:
        with pytest.raises(UserError, match=place):
            choose_place(asked, gib * 2**30, CPU, stored, processes)


@given(st.lists(st.integers(), max_size=20))
def test_reading_ahead_keeps_the_order(items):
    assert list(read_ahead(lambda item: item + 1, items)) == [item + 1 for item in items]


def test_an_error_while_reading_ahead_is_raised_at_its_place():
    results = read_ahead(lambda item: 1 // item, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
