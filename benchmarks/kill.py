"""Kill a run again and again, continue it each time, and compare it with one that was left alone.

    python3 benchmarks/kill.py --kills 50

Trains on digits. Each kill is a SIGKILL at a random moment; a third are aimed at the writing of a checkpoint. Prints
kills, resumes and lost steps, and whether weights, metrics, results and TensorBoard's curves are identical; the exit
code is 0 if they are.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mixmatch.files import load_tensors  # noqa: E402 - after the path is set
from mixmatch.records.run import RunDirectory  # noqa: E402

SETTINGS = ["--config", str(ROOT / "configs" / "digits.yml"), "train.eval_every=1", "train.log_every=1"]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        settings = [*SETTINGS, f"train.steps={options.steps}", f"train.checkpoint_every={options.checkpoint_every}"]
        started = time.monotonic()
        subprocess.run(command(whole, settings), check=True, stdout=subprocess.DEVNULL)
        # The run must outlast the kills: on average each comes after its share of the training time, or less.
        patience = max(0.1, (time.monotonic() - started - 5) / options.kills)
        torn, lost = 0, []
        chance = random.Random(options.seed)  # noqa: S311 - no secret hangs on it
        for number in range(options.kills):
            aimed = number % 3 == 2
            outcome = kill_once(command(cut, settings), cut, aimed, chance.uniform(0, patience))
            if outcome is None:
                break  # the run ended first
            resumed_at, reached, mid_write = outcome
            torn += mid_write
            newest = RunDirectory(cut).newest_step()
            lost.append(max(0, reached - newest))
            kills = len(lost)
            note = ", in a write" if mid_write else ""
            print(
                f"kill {kills}: from step {resumed_at} to {reached}{note}; newest checkpoint {newest}",
                flush=True,
            )
        subprocess.run(command(cut, settings), check=True, stdout=subprocess.DEVNULL)
        same = compare(whole, cut)
        identical = all(same.values())
        print(f"\n{len(lost)} kills ({torn} of them while a file was being written), as many resumes")
        print(
            f"lost steps: at most {max(lost, default=0)} at a kill, with a checkpoint every {options.checkpoint_every}"
        )
        for name, equal in same.items():
            print(f"{name}: {'identical' if equal else 'DIFFERENT'}")
    enough = len(lost) == options.kills
    if not enough:
        print(f"the run ended after {len(lost)} kills: give it more --steps")
    return 0 if identical and enough and max(lost) <= options.checkpoint_every else 1


def command(path: Path, settings: list[str]) -> list[str]:
    """Return the command that trains into ``path``."""
    return [sys.executable, str(ROOT / "main.py"), "--run", str(path), *settings]


def kill_once(arguments: list[str], path: Path, aimed: bool, delay: float) -> tuple[int, int, bool] | None:
    """Start the run, kill it ``delay`` seconds after it has begun training; if ``aimed``, at the next checkpoint write.

    Returns:
        The step at which it began, the last step it can have reached, and whether a write was cut; None if it ended.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    if "is finished" in first:
        process.wait()
        return None
    match = re.search(r"at step (\d+)", first)
    begun = int(match[1]) if match else 0
    deadline = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    folder = path / "checkpoints"
    while aimed and process.poll() is None:
        if any(name.endswith(".tmp") for name in os.listdir(folder)):
            break
    if process.poll() is not None:
        process.communicate()
        return None
    process.kill()
    rest = process.communicate()[0]
    evaluated = [int(step) for step in re.findall(r"^step (\d+) of", rest, re.MULTILINE)]
    return begun, max([begun, *evaluated]), any(name.endswith(".tmp") for name in os.listdir(folder))


def compare(whole: Path, cut: Path) -> dict[str, bool]:
    """Tell for each kind of output whether two runs agree, times apart."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def state(path: Path) -> tuple:
        tensors, meta = load_tensors(path / "checkpoints" / f"step-{RunDirectory(path).newest_step():08d}.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, meta["step"]

    def entries(path: Path, name: str) -> list[dict]:
        lines = (path / name).read_text()
        objects = [json.loads(lines)] if name == "results.json" else [json.loads(line) for line in lines.splitlines()]
        return [{key: value for key, value in entry.items() if "second" not in key} for entry in objects]

    def curves(path: Path) -> dict:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()
        tags = events.Tags()
        points = {
            tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"] if "second" not in tag
        }
        return points | {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}

    return {
        "weights, EMA, optimiser, statistics": state(whole) == state(cut),
        "metrics.jsonl": entries(whole, "metrics.jsonl") == entries(cut, "metrics.jsonl"),
        "results.json": entries(whole, "results.json") == entries(cut, "results.json"),
        "TensorBoard's curves and pictures": curves(whole) == curves(cut),
    }


if __name__ == "__main__":
    sys.exit(main())
