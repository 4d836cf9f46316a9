"""Time one training step: a textbook loop against ours, in one run, on whatever device there is.

    python3 benchmarks/step.py                     # WRN-28-2, B = 64, K = 2, 32x32 images
    python3 benchmarks/step.py --depth 10 --width 1 --size 16 --steps 50
    python3 benchmarks/step.py --variants captured --at-once 1 2 4 8    # so many processes on the device together

Every variant runs in a process of its own on the same random images. Times are the median and the middle half of
synchronised steps after a warm-up; every variant must compute finite losses.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STARTED = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - its import is part of the start-up time
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from mixmatch.augment import random_views  # noqa: E402 - after the path is set
from mixmatch.config import Config  # noqa: E402
from mixmatch.data import ImageData  # noqa: E402
from mixmatch.sampling import make_split  # noqa: E402
from mixmatch.trainer import Trainer  # noqa: E402
from models import WideResNet  # noqa: E402
from models.wide_resnet import BatchNorm  # noqa: E402

# What makes the step fast, one thing after another, each put into the textbook loop on top of those before it.
MEASURES = {
    "device data": "views cut in one gather from the data set on the device, no loader",
    "one pass": "all views guessed in one pass, the K + 1 batches trained in another",
    "channels_last": "weights and images in channels_last order",
    "multi-tensor": "EMA and decay for all tensors at once, losses left on the device, Adam fused on a GPU",
}
VARIANTS = {
    "textbook": "PIL transforms in a DataLoader, separate passes, float32, EMA tensor by tensor",
    **{f"+ {name}": text for name, text in MEASURES.items()},
    "float32": "ours, plain, float32",
    "bfloat16": "ours, plain, bfloat16",
    "compiled": "ours, compiled",
    "captured": "ours, compiled and recorded as a CUDA graph",
}
CLASSES = 10


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all that make sense on the device")
    parser.add_argument("--steps", type=int, help="timed steps (default: 200 on a GPU, 10 on a CPU)")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-views", type=int, default=2)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--at-once", type=int, nargs="+", help="time the last variant in so many processes at once")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=Path, help=argparse.SUPPRESS)  # folder in which ...
    parser.add_argument("--others", type=int, help=argparse.SUPPRESS)  # ... so many processes meet before timing
    return parser.parse_args()


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    on_gpu = options.device.startswith("cuda")
    options.steps = options.steps or (200 if on_gpu else 10)
    if options.one:
        print(json.dumps(time_variant(options.one, options)))
        return 0
    here = [name for name in VARIANTS if on_gpu or name not in ("compiled", "captured")]
    variants = options.variants or here
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    product, copy = ceilings(options.device)
    flop, moved = work(options)
    name = f"WRN-{options.depth}-{options.width:g}, B = {options.batch_size}, K = {options.num_views}"
    print(f"{name}, {options.size}x{options.size}, on {device}, torch {torch.__version__}")
    print(f"a step is {flop / 1e12:.3f} TFLOP and, by estimate, {moved / 1e9:.2f} GB in float32 (half in bfloat16)")
    print(f"measured ceilings: matrix product {product / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.0f} GB/s\n")
    print(
        "| variant | ms a step (middle half) | steps/s | images/s | ratio | TFLOP/s | share | GB/s | share | ", end=""
    )
    print("peak memory (GB) | first step after (s) |\n|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    textbook = None
    for variant in variants:
        answer = subprocess.run(command(options, variant), capture_output=True, text=True, check=False)
        if answer.returncode:
            print(f"| {variant} | failed: {answer.stderr.strip().splitlines()[-1]} |" + " |" * 9, flush=True)
            continue
        result = json.loads(answer.stdout.splitlines()[-1])
        seconds = result["median"]
        textbook = seconds if variant == "textbook" else textbook
        images = options.batch_size * (1 + options.num_views)
        bytes_moved = moved / (2 if result["precision"] == "torch.bfloat16" else 1)
        cells = [
            variant,
            f"{1e3 * seconds:.2f} ({1e3 * result['low']:.2f} to {1e3 * result['high']:.2f})",
            f"{1 / seconds:.2f}",
            f"{images / seconds:.0f}",
            f"{textbook / seconds:.2f}" if textbook else "-",
            f"{flop / seconds / 1e12:.2f}",
            f"{100 * flop / seconds / product:.0f}%",
            f"{bytes_moved / seconds / 1e9:.0f}",
            f"{100 * bytes_moved / seconds / copy:.0f}%",
            f"{result['memory'] / 1e9:.2f}",
            f"{result['first_step']:.1f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\nratio: to textbook. share: of the measured ceiling. " + "; ".join(f"{v}: {VARIANTS[v]}" for v in variants))
    if options.at_once:
        time_together(variants[-1], options)
    return 0


def command(options: argparse.Namespace, variant: str) -> list[str]:
    """Return the command that times one variant in a process of its own."""
    names = ("steps", "depth", "width", "size", "batch_size", "num_views", "images", "device")
    arguments = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return [sys.executable, __file__, *arguments, "--one", variant]


def time_together(variant: str, options: argparse.Namespace) -> None:
    """Print how fast a variant is in several processes at once, which start timing together."""
    print(f"\n| {variant}, processes at once | ms a step of each | steps/s together |\n|---|---|---|", flush=True)
    for count in options.at_once:
        with tempfile.TemporaryDirectory() as folder:
            each = [*command(options, variant), "--meet", folder, "--others", str(count)]
            processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for _ in range(count)]
            answers = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            print(f"| {count} | failed | |", flush=True)
            continue
        seconds = [json.loads(answer.splitlines()[-1])["median"] for answer in answers]
        each_takes = ", ".join(f"{1e3 * value:.2f}" for value in seconds)
        print(f"| {count} | {each_takes} | {sum(1 / value for value in seconds):.1f} |", flush=True)


def time_variant(variant: str, options: argparse.Namespace) -> dict:
    """Time one variant in this process."""
    device = torch.device(options.device)
    images, labels = random_images(options)
    if variant == "textbook" or variant.startswith("+"):
        measures = list(MEASURES)[: list(VARIANTS).index(variant)]
        step, loss, precision = textbook_step(measures, images, labels, device, options)
    else:
        step, loss, precision = our_step(variant, images, labels, device, options)

    def timed() -> float:
        begun = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - begun

    timed()
    first = time.perf_counter() - STARTED
    for _ in range(max(2, options.steps // 10)):
        timed()
    if options.meet:
        (options.meet / str(os.getpid())).touch()
        while len(list(options.meet.iterdir())) < options.others:
            time.sleep(0.001)
    times = [timed() for _ in range(options.steps)]
    if not math.isfinite(loss()):
        raise RuntimeError(f"{variant} computed a loss that is not finite")
    low, median, high = statistics.quantiles(times, n=4)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    return {
        "median": median,
        "low": low,
        "high": high,
        "memory": memory,
        "first_step": first,
        "precision": str(precision),
    }


def random_images(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images that every variant is timed on, and their labels."""
    source = torch.Generator().manual_seed(0)
    shape = (options.images, options.size, options.size, 3)
    images = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)
    return images, torch.arange(options.images) % CLASSES


def our_step(
    variant: str, images: torch.Tensor, labels: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[], None], Callable[[], float], torch.dtype]:
    """Return this project's step, its mean loss so far, and its precision."""
    config = Config.model_validate(
        {
            "data": {"dataset": "folder"},
            "model": {"depth": options.depth, "width": options.width},
            "mixmatch": {"num_views": options.num_views},
            "train": {
                "batch_size": options.batch_size,
                "precision": variant if variant in ("float32", "bfloat16") else "auto",
                "compile": variant in ("compiled", "captured"),
            },
        }
    )
    names = [str(number) for number in range(CLASSES)]
    data = ImageData("random", names, images, labels, None, None, flip=True)
    split = make_split("random", "", labels.numpy(), names, 1, 250, 0, True)
    trainer = Trainer(config, data, split, device)
    trainer.capturing = variant == "captured"
    return trainer.train_step, lambda: float(trainer.read_statistics()["loss"]), trainer.precision


class TwoTransforms:
    """Apply a transform several times, as public implementations do."""

    def __init__(self, transform: Callable, times: int) -> None:
        self.transform, self.times = transform, times

    def __call__(self, image: object) -> list:
        """Return as many views."""
        return [self.transform(image) for _ in range(self.times)]


class PilImages(torch.utils.data.Dataset):
    """Images one by one, as PIL images through a transform."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable) -> None:
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def textbook_step(
    measures: list[str], images: torch.Tensor, labels: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[], None], Callable[[], float], torch.dtype]:
    """Return a step in the manner of the public implementations, its last loss, and its precision.

    Image-by-image transforms in DataLoaders with workers, a pass for each view and each interleaved batch, float32
    (TF32 where there is), a synchronisation for each logged loss, EMA and weight decay tensor by tensor; but for the
    ``measures`` taken against it.
    """
    batch_size, views, on_gpu = options.batch_size, options.num_views, device.type == "cuda"
    resident, joined, last, multi = (measure in measures for measure in MEASURES)
    order_in_memory = torch.channels_last if last else torch.contiguous_format
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if resident:
        batches_of_images = views_on_device(images.to(device), labels.to(device), options)
    else:
        batches_of_images = views_from_loaders(images, labels, options)
    model = WideResNet(options.depth, options.width, CLASSES).to(device, memory_format=order_in_memory)
    averaged = WideResNet(options.depth, options.width, CLASSES).to(device)
    averaged.load_state_dict(model.state_dict())
    kernels = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002, fused=multi and on_gpu)
    logged = {"loss": math.nan, "steps": 0}

    def step() -> None:
        x, y, u = next(batches_of_images)
        x = x.to(device, memory_format=order_in_memory)
        u = [view.to(device, memory_format=order_in_memory) for view in u]
        y = F.one_hot(y.to(device), CLASSES).float()
        with torch.no_grad():
            if joined:
                logits = model(torch.cat(u), num_batches=views, update_statistics=False)
                p = logits.softmax(dim=1).unflatten(0, (views, batch_size)).mean(dim=0)
            else:
                p = sum(torch.softmax(model(view, update_statistics=False), dim=1) for view in u) / views
            q = p**2 / (p**2).sum(dim=1, keepdim=True)
        inputs, targets = torch.cat([x, *u]), torch.cat([y] + [q] * views)
        share = torch.distributions.Beta(0.75, 0.75).sample((len(inputs),)).to(device)
        share = torch.max(share, 1 - share)
        order = torch.randperm(len(inputs), device=device)
        inputs = share.view(-1, 1, 1, 1) * inputs + (1 - share.view(-1, 1, 1, 1)) * inputs[order]
        targets = share.view(-1, 1) * targets + (1 - share.view(-1, 1)) * targets[order]
        if joined:
            logits = model(inputs, num_batches=views + 1, update_statistics=True)
        else:
            batches = inputs.split(batch_size)
            logits = torch.cat([model(batch, update_statistics=i == 0) for i, batch in enumerate(batches)])
        loss_x = -(targets[:batch_size] * F.log_softmax(logits[:batch_size], dim=1)).sum(dim=1).mean()
        loss_u = ((torch.softmax(logits[batch_size:], dim=1) - targets[batch_size:]) ** 2).mean()
        loss = loss_x + 75 * min(1, logged["steps"] / 16000) * loss_u
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if multi:
                torch._foreach_mul_(kernels, 1 - 0.02 * 0.002)
                torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 0.001)
            else:
                for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                    slow.mul_(0.999)
                    slow.add_(fast * 0.001)
                    fast.mul_(1 - 0.02 * 0.002)
        logged["loss"] = loss.detach()
        if not multi:
            loss.item(), loss_x.item(), loss_u.item()
        logged["steps"] += 1

    return step, lambda: float(logged["loss"]), torch.float32


def views_from_loaders(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> Iterator[tuple]:
    """Yield labelled images, their labels, and K views of unlabelled ones, from DataLoaders with workers."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(options.size, padding=options.size // 8, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def loader(part: slice, change: Callable) -> Iterator:
        dataset = PilImages(images[part], labels[part], change)
        # Workers that stay between passes: 250 labels are a pass every 3 steps, starting workers anew would be unfair.
        batches = torch.utils.data.DataLoader(
            dataset, options.batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
        )
        return itertools.chain.from_iterable(itertools.repeat(batches))

    labeled = loader(slice(0, max(250, options.batch_size)), transform)
    unlabeled = loader(slice(0, None), TwoTransforms(transform, options.num_views))
    for (x, y), (u, _) in zip(labeled, unlabeled, strict=True):
        yield x, y, u


def views_on_device(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> Iterator[tuple]:
    """Yield the same, cut from the data set on its device."""
    generator = torch.Generator(images.device).manual_seed(1)
    batch_size, labeled = options.batch_size, max(250, options.batch_size)
    while True:
        index = torch.randint(labeled, (batch_size,), generator=generator, device=images.device)
        x = random_views(images, index, True, options.size // 8, generator)
        others = torch.randint(len(images), (batch_size,), generator=generator, device=images.device)
        views = random_views(images, others.repeat(options.num_views), True, options.size // 8, generator)
        yield x, labels[index], views.split(batch_size)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str) -> tuple[float, float]:
    """Measure a matrix product (FLOP/s; bfloat16 on a GPU, else float32) and a copy (bytes/s, read and written)."""
    on_gpu = device.startswith("cuda")
    side, dtype = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    source = torch.randn(2**28 if on_gpu else 2**25, device=device)
    target = torch.empty_like(source)
    rates = []
    for action, amount in ((lambda: a @ b, 2 * side**3), (lambda: target.copy_(source), 8 * source.numel())):
        times = []
        for _ in range(8):
            begun = time.perf_counter()
            action()
            synchronize(torch.device(device))
            times.append(time.perf_counter() - begun)
        rates.append(amount / statistics.median(times[3:]))
    return rates[0], rates[1]


def work(options: argparse.Namespace) -> tuple[float, float]:
    """Count a step's floating-point operations, and estimate the bytes it moves in float32.

    Bytes: each convolution and each BatchNorm with its LeakyReLU reads its input and writes its output once, forwards;
    backwards costs twice that, as it does for the operations.
    """
    flop = moved = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal flop, moved
        moved += 4 * (inputs[0].numel() + output.numel())
        if isinstance(module, nn.Conv2d | nn.Linear):
            flop += 2 * module.weight[0].numel() * output.numel()

    model = WideResNet(options.depth, options.width, CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | BatchNorm):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, options.size, options.size))
    passes = options.batch_size * (options.num_views + 3 * (options.num_views + 1))
    return flop * passes, moved * passes


if __name__ == "__main__":
    sys.exit(main())
