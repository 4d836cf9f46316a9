"""Make a folder of very many photographs, and measure time and memory of a command on it (on Linux).

    python3 benchmarks/many_photographs.py make data/many 120000 data/flowers17 data/signs
    python3 benchmarks/many_photographs.py measure --until steps/s python3 main.py --config folder data.root=data/many
    python3 benchmarks/many_photographs.py steps --config folder data.root=data/many    # in memory against on disk

The photographs are random crops of those in the source folders, equally many of each; their classes mean nothing. Each
depends on its number and the source folders only: a larger count adds to a folder that was made with a smaller one.
"""

import argparse
import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

CLASSES = "abcd"
TRAIN, TEST = 25, 100  # of each class
PER_FOLDER = 1000  # of the unlabeled ones
MIN_SIDE, MAX_SIDE = 128, 500
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write photographs into a folder")
    making.add_argument("folder", type=Path)
    making.add_argument("count", type=int, help="train, test and unlabeled ones together")
    making.add_argument("sources", type=Path, nargs="+", metavar="source", help="folder of photographs")
    measuring = commands.add_parser("measure", help="run a command and print its time and memory as JSON")
    measuring.add_argument("--until", default="steps/s", metavar="TEXT", help="of the first line that is waited for")
    measuring.add_argument("run", nargs=argparse.REMAINDER, metavar="COMMAND")
    comparing = commands.add_parser("steps", help="compare training from memory and from disk")
    comparing.add_argument("--config", default="folder")
    comparing.add_argument("--cold", action="store_true", help="drop cached pages of the file before each block")
    comparing.add_argument("--blocks", type=int, default=3)
    comparing.add_argument("--steps", type=int, default=20, help="of a block")
    comparing.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    plotting = commands.add_parser("plot", help="plot time and memory against the number of photographs")
    plotting.add_argument("figures", type=Path, help="JSON lines: files, pixels, start, until_s, cpu_s, peak_own_mb")
    plotting.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.command == "plot":
        return plot(options.figures, options.output)
    if options.command == "steps":
        return compare(options)
    if options.command == "measure":
        if not options.run:
            measuring.error("a command is missing")
        return measure(options.run, options.until)
    sources = [sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) for path in options.sources]
    if not all(sources):
        making.error(f"no photographs below {options.sources[sources.index([])]}")
    make(options.folder, options.count, sources)
    return 0


def make(folder: Path, count: int, sources: list[list[Path]]) -> None:
    """Write those of the first ``count`` photographs that do not exist; ``sources`` are the files of each folder."""
    missing = [number for number in range(count) if not place(folder, number).exists()]
    for parent in {place(folder, number).parent for number in missing}:
        parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(2) as pool:
        pool.starmap(write, zip(itertools.repeat(folder), missing, itertools.repeat(sources)), chunksize=1000)


def place(folder: Path, number: int) -> Path:
    """Return the path of a photograph: the first ones are for training and test, all others are unlabeled."""
    for part, size in (("train", TRAIN), ("test", TEST)):
        if number < size * len(CLASSES):
            return folder / part / CLASSES[number % len(CLASSES)] / f"{number:06}.jpg"
        number -= size * len(CLASSES)
    return folder / "unlabeled" / f"{number // PER_FOLDER:03}" / f"{number:06}.jpg"


def write(folder: Path, number: int, sources: list[list[Path]]) -> None:
    """Write one photograph: a crop of a random file, of random size and brightness, mirrored or not."""
    rng = random.Random(number)  # noqa: S311 - not a secret
    size = rng.randint(MIN_SIDE, MAX_SIDE), rng.randint(MIN_SIDE, MAX_SIDE)
    with Image.open(rng.choice(rng.choice(sources))) as image:
        image.draft("RGB", size)
        source = image.convert("RGB")
    scale = rng.uniform(0.3, 1) * min(source.width / size[0], source.height / size[1])
    width, height = scale * size[0], scale * size[1]
    left, top = rng.uniform(0, source.width - width), rng.uniform(0, source.height - height)
    picture = source.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    data = io.BytesIO()
    ImageEnhance.Brightness(picture).enhance(rng.uniform(0.6, 1.3)).save(data, "JPEG", quality=85)
    path = place(folder, number)
    path.with_suffix(".tmp").write_bytes(data.getvalue())
    path.with_suffix(".tmp").replace(path)  # whole or not at all


def measure(command: list[str], until: str) -> int:
    """Run a command, print what it took as JSON, and return its exit code.

    Memory is the largest sum over the process and all its children, in MB: their own (anonymous), and that of mapped
    files and shared memory. A page that several processes share counts for each.
    """
    started = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # else lines are late
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    found: list[float] = []

    def pass_on() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if until in line and not found:
                found.append(time.monotonic() - started)
            sys.stderr.write(line)

    reader = threading.Thread(target=pass_on)
    reader.start()
    own = mapped = total = 0.0
    while process.poll() is None:
        here = [memory(pid) for pid in family(process.pid)]
        sums = sum(anonymous for anonymous, _ in here), sum(shared for _, shared in here)
        own, mapped, total = max(own, sums[0]), max(mapped, sums[1]), max(total, sum(sums))
        time.sleep(0.05)
    wall = time.monotonic() - started
    reader.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "exit_code": process.returncode,
        "wall_s": round(wall, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "until_s": round(found[0], 2) if found else None,
        "peak_own_mb": round(own),
        "peak_mapped_mb": round(mapped),
        "peak_mb": round(total),
    }
    print(json.dumps(figures), flush=True)
    return process.returncode


def compare(options: argparse.Namespace) -> int:
    """Train in turn with images in memory and on disk, and print milliseconds a step; ``data.keep_on`` chooses one."""
    from mixmatch.config import load_config
    from mixmatch.data import load_data
    from mixmatch.data.split import make_split
    from mixmatch.data.stored_images import StoredImages
    from mixmatch.training.build import make_trainer
    from mixmatch.training.device import choose_device

    config = load_config(options.config, options.overrides)
    device = choose_device(config.device)
    data = load_data(config.data, device)
    assert isinstance(data.images, StoredImages)
    split = make_split(data, config.data, config.seed)
    places = ("host", "disk") if config.data.keep_on == "auto" else (config.data.keep_on,)
    trainers = {}
    for place in places:
        settings = config.model_copy(update={"data": config.data.model_copy(update={"keep_on": place})})
        trainers[place] = make_trainer(settings, data, split, device)
        trainers[place].train_step()
    times: dict[str, list[float]] = {place: [] for place in places}
    for _ in range(options.blocks):
        for place, trainer in trainers.items():
            if options.cold:
                with open(data.images.path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.monotonic()
            for _ in range(options.steps):
                trainer.train_step()
            trainer.read_metrics()  # waits for the device
            times[place].append(1000 * (time.monotonic() - started) / options.steps)
    figures = {f"{place}_ms": [round(value, 2) for value in values] for place, values in times.items()}
    images = len(trainers[places[-1]].batches.images)
    print(json.dumps({**figures, "images_a_step": images, "image_bytes": math.prod(data.images.shape[1:])}))
    return 0


def plot(figures: Path, output: Path) -> int:
    """Write a picture: time of the first and second start, and memory, by the number of photographs."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in figures.read_text().splitlines()]
    picture = Figure((9, 3), layout="constrained")
    for axes, (title, start, key) in zip(
        picture.subplots(1, 3),
        (
            ("first start: CPU seconds", "first", "cpu_s"),
            ("later start: seconds until training", "second", "until_s"),
            ("memory of the process (MB)", "first", "peak_own_mb"),
        ),
        strict=True,
    ):
        for pixels in sorted({row["pixels"] for row in rows}):
            points = sorted(
                (row["files"], row[key]) for row in rows if (row["pixels"], row["start"]) == (pixels, start)
            )
            axes.plot(*zip(*points, strict=True), "o-", label=f"{pixels} pixels")
        axes.set(title=title, xlabel="photographs", ylim=(0, None), xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(output, dpi=100)
    return 0


def family(pid: int) -> list[int]:
    """Return a process and all its children that run."""
    found = [pid]
    for parent in found:  # grows
        with contextlib.suppress(OSError):  # it ended
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def memory(pid: int) -> tuple[float, float]:
    """Return a process's resident memory in MB: its own, and mapped files with shared memory; 0 if it ended."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {name: int(line.split()[1]) for line in lines if (name := line.split(":")[0]).startswith("Rss")}
    return sizes.get("RssAnon", 0) / 1000, (sizes.get("RssFile", 0) + sizes.get("RssShmem", 0)) / 1000


if __name__ == "__main__":
    sys.exit(main())
