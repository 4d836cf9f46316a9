"""Print where a training step's time goes: the top kernels or operators, and the gaps between them.

python3 benchmarks/profile_step.py                      # the step as `auto` runs it on this device
python3 benchmarks/profile_step.py --variants float32   # options as for benchmarks/step.py
"""

import sys
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent))

from step import our_step, parse, random_images, synchronize

STEPS = 10


def main() -> int:
    """Run the command and return its exit code."""
    options = parse()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    variant = (options.variants or ["captured" if on_gpu else "float32"])[0]
    trainer, _, precision = our_step(variant, *random_images(options), device, options)
    step = trainer.train_step
    for _ in range(3):
        step()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        synchronize(device)
        wall = (time.perf_counter() - begun) / STEPS
    averages = profiler.key_averages()
    # On a GPU the rows of operators repeat the time of the kernels they launched.
    kernels = [a for a in averages if not on_gpu or (a.device_type == DeviceType.CUDA and not a.is_user_annotation)]
    busy = sum(a.self_device_time_total if on_gpu else a.self_cpu_time_total for a in kernels) / STEPS / 1e6
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(averages.table(sort_by=order, row_limit=20, max_name_column_width=60))
    print(
        f"{variant}, {precision}: {1e3 * wall:.2f} ms a step under the profiler, {1e3 * busy:.2f} ms in the kernels or"
    )
    print(f"operators above, {100 * max(0, 1 - busy / wall):.0f}% of it in the gaps between them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
