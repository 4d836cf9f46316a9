"""Free memory of this machine, of its container and of a device, and the peak that this process has used."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from mixmatch.errors import UserError

Place = Literal["device", "host", "disk"]


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min([psutil.virtual_memory().available, *_find_memory_limits(Path("/"))])


def _find_memory_limits(root: Path) -> Iterator[int]:
    """Yield the free bytes of each control group of this process that limits memory (Linux containers, batch jobs).

    Args:
        root: of the file system.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, limit, used, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        # Every group above has a limit too. In a container, the path may be one of the host, which is not mounted.
        for group in (Path(path), *Path(path).parents):
            folder = root / mount / group.relative_to("/")
            try:
                free = int((folder / limit).read_text()) - int((folder / used).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or "max": no limit
                continue
            yield max(0, free) + int(statistics.get(cache, 0))  # cached files can be dropped


def choose_place(asked: str, num_bytes: int, device: torch.device, stored: bool, num_processes: int = 1) -> Place:
    """Return where images are kept: where ``data.keep_on`` asks for, or in the first place with room.

    Half of the free memory is left to training. Several processes share images in a file, so that one copy is enough.

    Args:
        asked: ``data.keep_on``.
        num_bytes: of the images.
        device: that trains.
        stored: whether they are in a file.
        num_processes: that train on this machine.

    Raises:
        UserError: if they do not fit there.
    """
    if asked == "disk":
        if not stored:
            raise UserError("data.keep_on: disk needs the cache of data.dataset=folder; use auto, device or host")
        return "disk"
    places: dict[Place, torch.device] = {"device": device, "host": torch.device("cpu")}
    for place, where in places.items():
        copies = num_processes if where.type == "cpu" else 1
        needed, free = copies * num_bytes, free_memory(where)
        if asked == "auto" and needed <= free // 2 and not (stored and copies > 1):
            return place
        if asked == place:
            if needed > 0.9 * free and (stored or where.type != "cpu"):  # else they are in memory already
                raise UserError(
                    f"data.keep_on: {place} needs {needed / 2**30:.1f} GiB, {where} has {free / 2**30:.1f} GiB of free "
                    "memory; use auto, a smaller data.image_size or fewer images"
                )
            return place
    return "disk" if stored else "host"


def describe_place(place: Place, device: torch.device) -> str:
    """Return where images are, for a message."""
    if place == "disk":
        return "on disk"
    return f"on {device}" if place == "device" and device.type != "cpu" else "in memory"


def check_memory(num_bytes: int, advice: str = "lower data.image_size or use fewer images") -> None:
    """Raise UserError if images of so many bytes do not fit into the memory of this machine."""
    free = free_memory(torch.device("cpu"))
    if num_bytes > 0.9 * free:
        raise UserError(
            f"data: images need {num_bytes / 2**30:.1f} GiB, this machine has {free / 2**30:.1f} GiB of free memory; "
            f"{advice}"
        )


def peak_memory() -> int:
    """Return the largest number of bytes that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
