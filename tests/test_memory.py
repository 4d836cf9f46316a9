"""Free memory of machines and containers, and what a data set needs of it."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from mixmatch.data.memory import _find_memory_limits, free_memory, peak_memory
from tests.helpers import ROOT

MIB = 2**20


def write_group(folder, limit, used, cached, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for name, value in zip(names, (limit, used), strict=False):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def write_membership(root, text):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(text)


def test_limits_of_control_groups_version_2(tmp_path):
    write_membership(tmp_path, "0::/jobs/7\n")
    groups = tmp_path / "sys" / "fs" / "cgroup"
    write_group(groups / "jobs" / "7", "max", 10, 0)
    write_group(groups / "jobs", 1000, 600, 50)
    write_group(groups, 5000, 5600, 100)
    assert [*_find_memory_limits(tmp_path)] == [450, 100]


def test_limits_of_control_groups_version_1(tmp_path):
    write_membership(tmp_path, "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n")
    write_group(tmp_path / "sys" / "fs" / "cgroup" / "memory", 3000, 1000, 10, version=1)  # the path is of the host
    assert [*_find_memory_limits(tmp_path)] == [2010]


def test_no_limits_without_control_groups(tmp_path):
    assert [*_find_memory_limits(tmp_path)] == []
    write_membership(tmp_path, "0::/\n")
    assert [*_find_memory_limits(tmp_path)] == []


def test_a_container_has_less_free_memory_than_its_machine(monkeypatch):
    monkeypatch.setattr("mixmatch.data.memory._find_memory_limits", lambda root: [7 * MIB, 5 * MIB])
    assert free_memory(torch.device("cpu")) == 5 * MIB


SCRIPT = """
import sys, torch
from mixmatch.data.folder.dataset import read_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.memory import peak_memory
from mixmatch.data.stored_images import to_memory
settings = FolderSettings(dataset="folder", root=sys.argv[1], image_size=256, skip_unreadable=True)
before = peak_memory()
data = read_folder(settings, torch.device("cpu"), True)
images = to_memory(data.images, torch.device("cpu"))
print(len(images), (peak_memory() - before) / images.numel())
"""


@pytest.mark.slow
def test_the_images_are_in_memory_once(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for i in range(500):
        (tmp_path / "train" / ("cat", "dog")[i % 2] / f"{i}.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "train" / "cat" / "bad.png").write_text("not a picture")
    for _ in range(2):  # decoded, then from the cache
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        count, copies = done.stdout.split()
        assert count == "500" and float(copies) < 1.4


def test_peak_memory_is_in_bytes():
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    assert 64 * MIB < peak_memory() < 2**40 and len(block)
