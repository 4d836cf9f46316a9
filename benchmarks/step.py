"""Time one training step: a textbook loop against ours, in one run, on whatever device there is.

    python3 benchmarks/step.py                     # WRN-28-2, B = 64, K = 2, 32x32 images
    python3 benchmarks/step.py --depth 10 --width 1 --size 16 --steps 50
    python3 benchmarks/step.py --variants captured --at-once 1 2 4 8    # so many processes on the device together

Every variant runs in a process of its own on the same random images. Times are the median and the middle half of
synchronized steps after a warm-up; every variant must compute finite losses.
"""

import argparse
import ctypes
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
from torch import nn  # noqa: E402

from mixmatch.config import build_config  # noqa: E402 - after the path is set
from mixmatch.data import ImageData  # noqa: E402
from mixmatch.data.split import make_split  # noqa: E402
from mixmatch.methods.base import Examples, Networks  # noqa: E402
from mixmatch.models import BatchNorm  # noqa: E402
from mixmatch.training.cuda_graph import COMPILED, COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER  # noqa: E402
from mixmatch.training.setup import make_trainer  # noqa: E402
from mixmatch.training.trainer import Trainer  # noqa: E402

VARIANTS = {
    "textbook": "PIL transforms in a DataLoader, separate passes, float32, EMA tensor by tensor",
    **{f"+ {name}": text for name, text in MEASURES.items()},
    "float32": "ours, plain, float32",
    "bfloat16": "ours, plain, bfloat16",
    "recorded": "ours, recorded as a CUDA graph",
    "compiled": "ours, compiled",
    "captured": "ours, compiled and recorded as a CUDA graph",
    "reduce-overhead": "ours, views and loss by torch.compile(mode='reduce-overhead'), the rest one by one",
    "reduce-overhead-all": "the same, and the update through torch.compile too",
    "reduce-overhead-ddp": "as reduce-overhead, the network in DistributedDataParallel with one process",
    "captured-autocast": "as captured, weights cast to bfloat16 at each use by autocast",
    "captured-separate": "as captured, BatchNorm batch by batch",
    "captured-no-combo": "as captured, without combo_kernels",
}
MODES = {"recorded": CUDA_GRAPH, "compiled": COMPILED, "captured": COMPILED_CUDA_GRAPH}
MODES |= dict.fromkeys([name for name in VARIANTS if name.startswith("captured-")], COMPILED_CUDA_GRAPH)
ON_GPU_ALONE = {*MODES, *(name for name in VARIANTS if name.startswith("reduce-overhead"))}
BLOCK = 20  # steps between two readings of the clock, as training launches them: without waiting for each


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
    parser.add_argument("--after", type=Path, help="time when this file is there; start and compile before")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    on_gpu = options.device.startswith("cuda")
    options.steps = options.steps or (200 if on_gpu else 10)
    if options.one:
        print(json.dumps(time_variant(options.one, options)))
        return 0
    here = [name for name in VARIANTS if on_gpu or name not in ON_GPU_ALONE]
    variants = options.variants or here
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    product, copy = ceilings(options.device)
    flop, moved = work(options)
    name = f"WRN-{options.depth}-{options.width:g}, B = {options.batch_size}, K = {options.num_views}"
    print(f"{name}, {options.size}x{options.size}, on {device}, torch {torch.__version__}")
    print(f"a step is {flop / 1e12:.3f} TFLOP and, by estimate, {moved / 1e9:.2f} GB in float32 (half in bfloat16)")
    print(f"measured ceilings: matrix product {product / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.0f} GB/s\n")
    print(
        "| variant | ms a step | host, ms | synchronized (middle half) | steps/s | images/s | ratio | TFLOP/s | share | GB/s | share | ",
        end="",
    )
    print(
        "peak memory (GB) | first step after (s) | nodes |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    textbook = None
    processes = {variant: start(options, variant) for variant in variants} if on_gpu else {}
    for process in processes.values():
        process.stdout.readline()  # compiled, warmed up and waiting: nothing else runs while one is timed
    while options.after and not options.after.exists():
        time.sleep(0.2)
    for variant in variants:
        process = processes.get(variant) or start(options, variant)
        output, errors = process.communicate("go\n")
        if process.returncode:
            print(f"| {variant} | failed: {(errors.strip().splitlines() or ['?'])[-1]} |" + " |" * 11, flush=True)
            print(errors[-3000:], file=sys.stderr, flush=True)
            continue
        result = json.loads(output.splitlines()[-1])
        seconds = result["streamed"]
        textbook = seconds if variant == "textbook" else textbook
        images = options.batch_size * (1 + options.num_views)
        bytes_moved = moved / (2 if result["precision"] == "torch.bfloat16" else 1)
        cells = [
            variant,
            f"{1e3 * seconds:.3f}",
            f"{1e3 * result['host']:.2f}",
            f"{1e3 * result['median']:.2f} ({1e3 * result['low']:.2f} to {1e3 * result['high']:.2f})",
            f"{1 / seconds:.2f}",
            f"{images / seconds:.0f}",
            f"{textbook / seconds:.2f}" if textbook else "-",
            f"{flop / seconds / 1e12:.2f}",
            f"{100 * flop / seconds / product:.0f}%",
            f"{bytes_moved / seconds / 1e9:.0f}",
            f"{100 * bytes_moved / seconds / copy:.0f}%",
            f"{result['memory'] / 1e9:.2f}",
            f"{result['first_step']:.1f}",
            str(result["nodes"] or "-"),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\nratio: to textbook. share: of the measured ceiling. " + "; ".join(f"{v}: {VARIANTS[v]}" for v in variants))
    if options.at_once:
        time_together(variants[-1], options)
    return 0


def start(options: argparse.Namespace, variant: str) -> subprocess.Popen:
    """Start the process that times one variant: it says ``ready``, and times when it is told to go."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command(options, variant), stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def command(options: argparse.Namespace, variant: str) -> list[str]:
    """Return the command that times one variant in a process of its own."""
    names = ("steps", "depth", "width", "size", "batch_size", "num_views", "images", "device")
    arguments = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return [sys.executable, __file__, *arguments, "--one", variant]


def time_together(variant: str, options: argparse.Namespace) -> None:
    """Print how fast a variant is in several processes at once, which start timing together."""
    print(f"\n| {variant}, processes at once | ms a step of each | steps/s together |\n|---|---|---|", flush=True)
    for count in options.at_once:
        processes = [start(options, variant) for _ in range(count)]
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            print(f"| {count} | failed | |", flush=True)
            continue
        seconds = [json.loads(answer.splitlines()[-1])["streamed"] for answer in answers]
        each_takes = ", ".join(f"{1e3 * value:.2f}" for value in seconds)
        print(f"| {count} | {each_takes} | {sum(1 / value for value in seconds):.1f} |", flush=True)


def time_variant(variant: str, options: argparse.Namespace) -> dict:
    """Time one variant in this process."""
    device = torch.device(options.device)
    images, labels = random_images(options)
    if variant == "textbook" or variant.startswith("+"):
        trainer = None
        measures = list(MEASURES)[: list(VARIANTS).index(variant)]
        step, loss, precision = textbook_step(measures, images, labels, device, options)
    else:
        trainer, loss, precision = our_step(variant, images, labels, device, options)
        step = trainer.train_step
        if variant.startswith("reduce-overhead"):
            step = reduce_overhead(trainer, variant.removeprefix("reduce-overhead").strip("-"))
        elif variant.startswith("captured-"):
            simplify(trainer, variant.removeprefix("captured-"))

    def timed() -> float:
        begun = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - begun

    timed()
    first = time.perf_counter() - STARTED
    nodes = count_nodes(trainer.graph) if trainer is not None and trainer.graph is not None else None
    for _ in range(max(2, options.steps // 10)):
        timed()
    print("ready", flush=True)
    sys.stdin.readline()
    times = [timed() for _ in range(options.steps)]
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
    low, median, high = statistics.quantiles(times, n=4)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    return {
        "median": median,
        "low": low,
        "streamed": statistics.median(block for block, _ in blocks),
        "host": statistics.median(launched for _, launched in blocks),
        "high": high,
        "memory": memory,
        "first_step": first,
        "precision": str(precision),
        "nodes": nodes,
    }


def count_nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """Return how many kernels, copies and fills a recorded step is made of: a measure that needs no clock.

    Asked of the CUDA runtime, None where that is not found: torch does not tell.
    """
    runtime = ctypes.CDLL(None)  # where a stand-in for the runtime is, if there is one
    if not hasattr(runtime, "cudaGraphGetNodes"):
        try:
            runtime = ctypes.CDLL(f"libcudart.so.{(torch.version.cuda or '').split('.')[0]}")
        except OSError:
            return None
    count = ctypes.c_size_t()
    code = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if code:
        raise RuntimeError(f"cudaGraphGetNodes failed with code {code}")
    return count.value


def random_images(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images that every variant is timed on, and their labels."""
    source = torch.Generator().manual_seed(0)
    shape = (options.images, options.size, options.size, 3)
    images = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)
    return images, torch.arange(options.images) % CLASSES


def our_step(
    variant: str, images: torch.Tensor, labels: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> tuple[Trainer, Callable[[], float], torch.dtype]:
    """Return this project's trainer, its mean loss so far, and its precision."""
    config = build_config(
        {
            "data": {"dataset": "folder"},
            "model": {"depth": options.depth, "width": options.width},
            "mixmatch": {"num_views": options.num_views},
            "train": {
                "batch_size": options.batch_size,
                "precision": variant if variant in ("float32", "bfloat16") else "auto",
            },
        }
    )
    names = [str(number) for number in range(CLASSES)]
    data = ImageData("random", names, images, labels, None, None, flip=True)
    split = make_split(data, config.data, seed=1)
    trainer = make_trainer(config, data, split, device)
    trainer.keep_graph = True
    trainer.use(MODES.get(variant, EAGER))
    return trainer, lambda: float(trainer.read_statistics()["loss"]), trainer.precision


def reduce_overhead(trainer: Trainer, how: str) -> Callable[[], None]:
    """Return the step with what torch offers for all of it: compile in the mode reduce-overhead, DDP."""
    torch.compiler.reset()
    for module in (*trainer.working.modules(), *trainer.ema_model.modules()):
        if isinstance(module, BatchNorm):
            module.joint = True
    pool = trainer.pool
    for tensor in (pool.images, pool.truth, *trainer.places, *trainer.schedules.values(), trainer.method.interleave):
        torch._dynamo.mark_static_address(tensor)
    network = trainer.working
    if how == "ddp":
        store = torch.distributed.HashStore()
        backend = "nccl" if trainer.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        network = torch.nn.parallel.DistributedDataParallel(trainer.working, broadcast_buffers=False)

    def loss_of(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        with trainer.autocast():
            loss = trainer.method.loss(network, examples, trainer.schedules)
        truth = trainer.pool.truth[trainer.places.u_index]
        return loss.total, trainer.totals.of_step(loss, examples.guesses, truth)

    trainer._examples = torch.compile(trainer._make_examples, dynamic=False, mode="reduce-overhead")
    trainer._loss = torch.compile(loss_of, dynamic=False, mode="reduce-overhead")
    if how == "all":
        trainer.update = torch.compile(trainer.update, dynamic=False)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        trainer.train_step()

    return step


def simplify(trainer: Trainer, what: str) -> None:
    """Take one of the measures inside the compiled step back, to see what it is worth."""
    if what == "separate":
        for module in (*trainer.working.modules(), *trainer.ema_model.modules()):
            if isinstance(module, BatchNorm):
                module.joint = False
    elif what == "autocast":
        trainer.working, trainer.casts = trainer.model, []
        trainer.networks = Networks(trainer.model, trainer.ema_model)
    elif what == "no-combo":
        trainer._examples, trainer._loss = (
            torch.compile(function, dynamic=False) for function in (trainer._make_examples, trainer._compute_loss)
        )


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

    model = make_network(options).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | BatchNorm):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, options.size, options.size))
    passes = options.batch_size * (options.num_views + 3 * (options.num_views + 1))
    return flop * passes, moved * passes


if __name__ == "__main__":
    sys.exit(main())
