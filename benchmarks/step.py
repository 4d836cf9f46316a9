"""Time one training step: a textbook loop and this project's execution modes, on a CPU or GPU.

    python3 benchmarks/step.py                     # WRN-28-2, B = 64, K = 2, 32x32 images
    python3 benchmarks/step.py --depth 10 --width 1 --size 16 --steps 50
    python3 benchmarks/step.py --variants compiled_cuda_graph --processes 1 2 4 8    # share the device
    python3 benchmarks/step.py --variants bfloat16 --profile    # where the time goes
    python3 benchmarks/step.py --variants compiled --set method=freematch train.optimizer=sgd    # another configuration

Every variant runs in a process of its own on the same random images, and must compute a finite loss.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STARTED = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - its import is part of the start-up time
from textbook import CLASSES, MEASURES, make_network, textbook_step  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from mixmatch.config import apply_overrides, build_config  # noqa: E402 - after the path is set
from mixmatch.data import ImageData  # noqa: E402
from mixmatch.data.split import make_split  # noqa: E402
from mixmatch.training.build import make_trainer  # noqa: E402
from mixmatch.training.execution import COMPILED, COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER  # noqa: E402
from mixmatch.training.precision import count_flops  # noqa: E402
from mixmatch.training.trainer import Trainer  # noqa: E402

VARIANTS = {
    "textbook": "PIL transforms in a DataLoader, separate forward passes, float32, EMA tensor by tensor",
    **{f"+ {name}": text for name, text in MEASURES.items()},
    "float32": "ours, eager, float32",
    "bfloat16": "ours, eager, bfloat16",
    "compiled": "ours, compiled",
    "cuda_graph": "ours, recorded as a CUDA graph",
    "compiled_cuda_graph": "ours, compiled and recorded as a CUDA graph",
    "reduce-overhead": "ours, compiled with torch.compile(mode='reduce-overhead')",
}
MODES = {"cuda_graph": CUDA_GRAPH, "compiled": COMPILED, "compiled_cuda_graph": COMPILED_CUDA_GRAPH}
BLOCK = 20  # steps launched without waiting for each, as training does
SIZES = ("steps", "depth", "width", "size", "batch_size", "num_views", "images", "device")


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    on_gpu = options.device.startswith("cuda")
    options.steps = options.steps or (200 if on_gpu else 10)
    on_cpu = [name for name in VARIANTS if name not in MODES and name != "reduce-overhead"]
    variants = options.variants or (list(VARIANTS) if on_gpu else on_cpu)
    if options.one:
        print(json.dumps(time_variant(options.one, options)))
    elif options.profile:
        profile_step(variants[0], options)
    else:
        print_table(variants, options)
        if options.processes:
            time_together(variants[-1], options)
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all that run on the device")
    parser.add_argument("--steps", type=int, help="timed steps (default: 200 on a GPU, 10 on a CPU)")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-views", type=int, default=2)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, nargs="+", help="time the last variant in several processes at once")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of our variants")
    parser.add_argument("--profile", action="store_true", help="print the slowest operators of the first variant")
    parser.add_argument("--after", type=Path, help="start and compile now, time when this file exists")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def print_table(variants: list[str], options: argparse.Namespace) -> None:
    """Time the variants one by one, and print a line for each."""
    on_gpu = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    forward = count_flops(make_network(options), (3, options.size, options.size))
    flops = forward * options.batch_size * (options.num_views + 3 * (options.num_views + 1))  # backward = 2 forward
    peak = measure_peak(options.device)
    name = f"WRN-{options.depth}-{options.width:g}, B = {options.batch_size}, K = {options.num_views}"
    print(f"{name}, {options.size}x{options.size}, on {device}, torch {torch.__version__}")
    if options.set:
        print(f"ours with {' '.join(options.set)}; TFLOP are those of the default configuration")
    print(f"a step is {flops / 1e12:.3f} TFLOP; a large matrix product reaches {peak / 1e12:.2f} TFLOP/s\n")
    head = (
        "variant,ms a step,host (ms),synchronized (ms),steps/s,speedup,TFLOP/s,of the peak,memory (GB),first step (s)"
    )
    print(f"| {head.replace(',', ' | ')} |")
    print("|---" * (head.count(",") + 1) + "|", flush=True)
    processes = {variant: start(options, variant) for variant in variants} if on_gpu else {}
    for process in processes.values():
        process.stdout.readline()  # compiled and warmed up; it waits while others are timed
    while options.after and not options.after.exists():
        time.sleep(0.2)
    textbook = None
    for variant in variants:
        process = processes.get(variant) or start(options, variant)
        output, errors = process.communicate("go\n")
        if process.returncode:
            print(f"| {variant} | failed: {(errors.strip().splitlines() or ['?'])[-1]} |", flush=True)
            print(errors[-3000:], file=sys.stderr, flush=True)
            continue
        result = json.loads(output.splitlines()[-1])
        seconds = result["streamed"]
        textbook = seconds if variant == "textbook" else textbook
        cells = [
            variant,
            f"{1e3 * seconds:.3f}",
            f"{1e3 * result['host']:.2f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*(1e3 * result[key] for key in ("median", "low", "high"))),
            f"{1 / seconds:.2f}",
            f"{textbook / seconds:.2f}" if textbook else "-",
            f"{flops / seconds / 1e12:.3g}",
            f"{100 * flops / seconds / peak:.0f}%",
            f"{result['memory'] / 1e9:.2f}",
            f"{result['first_step']:.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(
        "\nspeedup: over textbook. synchronized: median and middle half. "
        + "; ".join(f"{v}: {VARIANTS[v]}" for v in variants)
    )


def start(options: argparse.Namespace, variant: str) -> subprocess.Popen:
    """Start a process that prepares one variant, prints ``ready``, and times it after a line of input."""
    sizes = [text for name in SIZES for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    pipe = subprocess.PIPE
    settings = ["--set", *options.set] if options.set else []
    command = [sys.executable, __file__, *sizes, *settings, "--one", variant]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def time_together(variant: str, options: argparse.Namespace) -> None:
    """Print how fast a variant is in several processes that share the device."""
    print(f"\n| {variant}, processes | ms a step of each | steps/s together |\n|---|---|---|", flush=True)
    for count in options.processes:
        processes = [start(options, variant) for _ in range(count)]
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            print(f"| {count} | failed | |", flush=True)
            continue
        seconds = [json.loads(output.splitlines()[-1])["streamed"] for output in outputs]
        each = ", ".join(f"{1e3 * value:.2f}" for value in seconds)
        print(f"| {count} | {each} | {sum(1 / value for value in seconds):.1f} |", flush=True)


def time_variant(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Time one variant in this process."""
    device = torch.device(options.device)
    trainer = None
    if variant == "textbook" or variant.startswith("+"):
        measures = list(MEASURES)[: list(VARIANTS).index(variant)]
        step, loss = textbook_step(measures, *random_images(options), device, options)
    else:
        trainer, step = our_step(variant, options)
        loss = lambda: trainer.read_metrics()["loss"]  # noqa: E731
    timed(step, device)
    first_step = time.perf_counter() - STARTED
    for _ in range(max(2, options.steps // 10)):
        timed(step, device)
    print("ready", flush=True)
    sys.stdin.readline()
    low, median, high = statistics.quantiles((timed(step, device) for _ in range(options.steps)), n=4)
    blocks = []
    for _ in range(max(1, options.steps // BLOCK)):
        begun = time.perf_counter()
        for _ in range(BLOCK):
            step()
        launched = time.perf_counter() - begun
        synchronize(device)
        blocks.append(((time.perf_counter() - begun) / BLOCK, launched / BLOCK))
    if not math.isfinite(loss()):
        raise RuntimeError(f"{variant} computed a loss that is not finite")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "streamed": statistics.median(seconds for seconds, _ in blocks),
        "host": statistics.median(launched for _, launched in blocks),
        "low": low,
        "median": median,
        "high": high,
        "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else memory,
        "first_step": first_step,
    }


def our_step(variant: str, options: argparse.Namespace) -> tuple[Trainer, Callable[[], None]]:
    """Return this project's trainer in a variant, and its step."""
    device = torch.device(options.device)
    config = build_config(
        {
            "data": {"dataset": "folder"},
            "model": {"depth": options.depth, "width": options.width},
            "mixmatch": {"num_views": options.num_views},
            "train": {"batch_size": options.batch_size},
        }
    )
    config = apply_overrides(config, options.set)
    images, labels = random_images(options)
    data = ImageData("random", [str(number) for number in range(CLASSES)], images, labels, None, None, flip=True)
    if variant in ("float32", "bfloat16"):
        config = apply_overrides(config, [f"train.precision={variant}"])
    trainer = make_trainer(config, data, make_split(data, config.data, seed=1), device)
    trainer.set_execution_mode(MODES.get(variant, EAGER))
    if variant != "reduce-overhead":
        return trainer, trainer.train_step
    trainer.set_execution_mode(COMPILED)
    inputs = (trainer.dataset.images, trainer.dataset.metric_labels, *trainer.indices, *trainer.schedules.values())
    for tensor in inputs:
        torch._dynamo.mark_static_address(tensor)
    trainer._make_examples, trainer._compute_loss = (
        torch.compile(function, dynamic=False, mode="reduce-overhead")
        for function in (trainer.make_examples, trainer.compute_loss)
    )

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        trainer.train_step()

    return trainer, step


def profile_step(variant: str, options: argparse.Namespace) -> None:
    """Print the operators, or on a GPU kernels, that take most of a step's time, and the time between them."""
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    _, step = our_step(variant, options)
    for _ in range(3):
        timed(step, device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        seconds = sum(timed(step, device) for _ in range(options.steps)) / options.steps
    averages = profiler.key_averages()
    # On a GPU the rows of operators repeat the time of the kernels that they launch.
    rows = [a for a in averages if not on_gpu or (a.device_type.name == "CUDA" and not a.is_user_annotation)]
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    busy = sum(getattr(row, order) for row in rows) / options.steps / 1e6
    print(averages.table(sort_by=order, row_limit=20, max_name_column_width=60))
    print(f"{variant}: {1e3 * seconds:.2f} ms a step under the profiler, {1e3 * busy:.2f} ms of it in these")


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Do one step, and return its seconds."""
    begun = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - begun


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_images(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images that every variant trains on, and their labels."""
    shape = (options.images, options.size, options.size, 3)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.arange(options.images) % CLASSES


def measure_peak(device: str) -> float:
    """Return the FLOP/s of a large matrix product, in bfloat16 on a GPU, else in float32."""
    side, dtype = (8192, torch.bfloat16) if device.startswith("cuda") else (2048, torch.float32)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    times = [timed(lambda: a @ b, torch.device(device)) for _ in range(8)]
    return 2 * side**3 / statistics.median(times[3:])


if __name__ == "__main__":
    sys.exit(main())
