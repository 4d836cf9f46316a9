"""Kill a run, a round on it, and two commands on one table, again and again, and compare with those left alone.

    python3 benchmarks/kill.py --kills 200

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
from mixmatch.runs.directory import RunDirectory  # noqa: E402

SETTINGS = ["--config", str(ROOT / "configs" / "digits.yml"), "train.eval_every=1", "train.log_every=1"]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="half of the run, the others of round and table")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - no secret hangs on it
    settings = [*SETTINGS, f"train.steps={options.steps}", f"train.checkpoint_every={options.checkpoint_every}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, cut = folder / "whole", folder / "cut"
        run = [
            "a run",
            [str(ROOT / "main.py"), "--run-dir", str(whole), *settings],
            [str(ROOT / "main.py"), "--run-dir", str(cut), *settings],
        ]
        rounds = [
            "pseudo_label.select=balanced",
            "pseudo_label.refresh_every=50",
            f"pseudo_label.steps={options.steps}",
        ]
        on_it = [
            "a round",
            *(
                [str(ROOT / "pseudo_label.py"), "--run-dir", str(whole), "--output", str(folder / place), *rounds]
                for place in ("whole-round", "cut-round")
            ),
        ]
        good = kill_often(*run, whole, cut, options.kills // 2, options, chance)
        round_kills = options.kills // 4
        good &= kill_often(*on_it, folder / "whole-round", folder / "cut-round", round_kills, options, chance)
        good &= kill_tables(folder, options.kills - options.kills // 2 - round_kills, options, chance)
    return 0 if good else 1


def kill_often(
    what: str,
    alone: list[str],
    killed: list[str],
    whole: Path,
    cut: Path,
    kills: int,
    options: argparse.Namespace,
    chance: random.Random,
) -> bool:
    """Kill a command so many times, continue it each time, and tell whether all is as in one that was left alone."""
    started = time.monotonic()
    subprocess.run([sys.executable, *alone], check=True, stdout=subprocess.DEVNULL)
    # It must outlast the kills: on average each comes after its share of the training time, or less.
    patience = max(0.1, (time.monotonic() - started - 5) / max(1, kills))
    torn, lost = 0, []
    for number in range(kills):
        outcome = kill_once([sys.executable, *killed], cut, number % 3 == 2, chance.uniform(0, patience))
        if outcome is None:
            break  # it ended first
        resumed_at, reached, mid_write = outcome
        torn += mid_write
        newest = RunDirectory(cut).newest_step()
        lost.append(max(0, reached - newest))
        print(
            f"kill {len(lost)}: from step {resumed_at} to {reached}{', in a write' * mid_write}; newest {newest}",
            flush=True,
        )
    subprocess.run([sys.executable, *killed], check=True, stdout=subprocess.DEVNULL)
    same = compare(whole, cut)
    print(f"\n{what}: {len(lost)} kills ({torn} of them while a file was being written), as many resumes")
    print(f"lost steps: at most {max(lost, default=0)} at a kill, with a checkpoint every {options.checkpoint_every}")
    for name, equal in same.items():
        print(f"{name}: {'identical' if equal else 'DIFFERENT'}")
    if len(lost) < kills:
        print(f"it ended after {len(lost)} kills: give it more --steps")
    return all(same.values()) and len(lost) == kills and max(lost, default=0) <= options.checkpoint_every


def kill_tables(folder: Path, kills: int, options: argparse.Namespace, chance: random.Random) -> bool:
    """Let two commands train a table at once, kill one or the other again and again, and compare the runs."""
    steps = options.steps
    table = {
        "data": "digits",
        "about": "Of benchmarks/kill.py.",
        "config": "configs/digits.yml",
        "set": [
            "train.precision=float32",
            f"train.steps={steps}",
            "train.checkpoint_every=4",
            f"pseudo_label.steps={steps}",
        ],
        "seeds": [1, 2],
        "rows": [{"label": "MixMatch"}, {"label": "a round", "round": ["select=top"]}],
    }
    file = folder / "killed.yml"
    file.write_text(json.dumps(table))  # JSON is YAML
    commands = {
        place: [
            *(sys.executable, "-m", "reproduce", str(file), "--quiet"),
            *("--runs", str(folder / place), "--results", str(folder / f"{place}-results")),
        ]
        for place in ("tables-whole", "tables-cut")
    }

    def start(place: str) -> subprocess.Popen:
        return subprocess.Popen(commands[place], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    started = time.monotonic()
    start("tables-whole").communicate()
    patience = max(3.0, (time.monotonic() - started) / max(1, kills))
    working, done = [start("tables-cut"), start("tables-cut")], 0
    errors = ""
    for number in range(kills):
        time.sleep(chance.uniform(0, 2 * patience))
        victim = working[number % 2]
        done += victim.poll() is None
        victim.kill()
        errors += victim.communicate()[1]
        working[number % 2] = start("tables-cut")
    for process in working:
        errors += process.communicate()[1]
    last = start("tables-cut")
    errors += last.communicate()[1]
    runs = sorted(path.name for path in (folder / "tables-whole").iterdir())
    same = {name: all(compare(folder / "tables-whole" / name, folder / "tables-cut" / name).values()) for name in runs}
    lines = len((folder / "tables-cut-results" / "killed.jsonl").read_text().splitlines())
    print(
        f"\ntwo commands on one table: {done} kills, {sum(same.values())} of {len(same)} runs identical, {lines} kept"
    )
    if "Traceback" in errors:
        print(errors)
    return all(same.values()) and lines == len(runs) and "Traceback" not in errors


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
    match = re.search(r"(?:at|from) step (\d+)", first)
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
        "weights, EMA, optimizer, statistics": state(whole) == state(cut),
        "metrics.jsonl": entries(whole, "metrics.jsonl") == entries(cut, "metrics.jsonl"),
        "results.json": entries(whole, "results.json") == entries(cut, "results.json"),
        "TensorBoard's curves and pictures": curves(whole) == curves(cut),
    }


if __name__ == "__main__":
    sys.exit(main())
