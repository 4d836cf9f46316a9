"""Kill a run, a pseudo-label stage and two commands on one table at random moments, and compare with runs left alone.

    python3 benchmarks/kill.py --kills 200

Trains on digits. Each kill is a SIGKILL; a third of them wait for a checkpoint to be written. Prints kills, lost steps,
and whether weights, metrics, results and TensorBoard's curves are identical; exit code 0 if they are.
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mixmatch.files import load_tensors  # noqa: E402 - after the path is set
from mixmatch.runs.directory import RunDirectory  # noqa: E402


class Kill(NamedTuple):
    """What a killed command had done."""

    first_step: int  # where it continued
    last_step: int  # the last step that it can have reached
    during_write: bool


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="half of the run, a quarter each of stage and table")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 - not a secret
    config = ["--config", "digits", "train.eval_every=1", "train.log_every=1"]
    config += [f"train.steps={options.steps}", f"train.checkpoint_every={options.checkpoint_every}"]
    labels = ["select=top", "fraction=0.5", "refresh_every=50", f"steps={options.steps}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = [sys.executable, str(ROOT / "main.py"), *config, "--run-dir"]
        stage = [sys.executable, str(ROOT / "pseudo_label.py"), "--run-dir", str(folder / "run")]
        stage += [*(f"pseudo_label.{setting}" for setting in labels), "--output-dir"]
        quarter = options.kills // 4
        passed = kill_often(run, folder / "run", folder / "run-killed", options.kills - 2 * quarter, options, rng)
        passed &= kill_often(stage, folder / "stage", folder / "stage-killed", quarter, options, rng)
        passed &= kill_tables(folder, quarter, options, rng)
    return 0 if passed else 1


def kill_often(
    command: list[str], alone: Path, killed: Path, kills: int, options: argparse.Namespace, rng: random.Random
) -> bool:
    """Kill a command and continue it ``kills`` times, and return whether it ends as one that was left alone.

    Args:
        command: without the run directory, its last argument.
        alone: run directory of the command that is left alone.
        killed: run directory of the other.
        kills: number of kills.
        options: of the command line.
        rng: of the moments.
    """
    started = time.monotonic()
    subprocess.run([*command, alone], check=True, stdout=subprocess.DEVNULL)
    # The run must outlast the kills: on average each comes after its share of the training time.
    longest = max(0.1, (time.monotonic() - started - 5) / max(1, kills))
    done: list[Kill] = []
    lost = [0]
    while len(done) < kills:
        kill = kill_once([*command, str(killed)], killed, len(done) % 3 == 2, rng.uniform(0, longest))
        if kill is None:
            break  # the run ended
        done.append(kill)
        newest = RunDirectory(killed).newest_step()
        lost.append(max(0, kill.last_step - newest))
        where = ", during a write" if kill.during_write else ""
        print(f"kill {len(done)}: from step {kill.first_step} to {kill.last_step}{where}; newest {newest}", flush=True)
    subprocess.run([*command, killed], check=True, stdout=subprocess.DEVNULL)
    same = compare(alone, killed)
    print(f"\n{alone.name}: {len(done)} kills, {sum(kill.during_write for kill in done)} of them during a write")
    print(f"lost steps: at most {max(lost)} per kill, with a checkpoint every {options.checkpoint_every}")
    for name, equal in same.items():
        print(f"{name}: {'identical' if equal else 'DIFFERENT'}")
    if len(done) < kills:
        print(f"the run ended after {len(done)} kills: use more --steps")
    return all(same.values()) and len(done) == kills and max(lost) <= options.checkpoint_every


def kill_once(command: list[str], path: Path, during_write: bool, delay: float) -> Kill | None:
    """Start a command and kill it ``delay`` seconds after training begins, or at the next checkpoint write after that.

    Returns:
        None if it ended before.
    """
    first_step = RunDirectory(path).newest_step()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    while during_write and process.poll() is None and not is_writing(path):
        pass
    if process.poll() is not None:
        process.communicate()
        return None
    process.kill()
    output = process.communicate()[0]
    evaluated = [int(step) for step in re.findall(r"^step (\d+) of", output, re.MULTILINE)]
    return Kill(first_step, max([first_step, *evaluated]), is_writing(path))


def is_writing(path: Path) -> bool:
    """Return whether a checkpoint is being written, or was when the run was killed."""
    folder = path / "checkpoints"
    return folder.exists() and any(name.endswith(".tmp") for name in os.listdir(folder))


def kill_tables(folder: Path, kills: int, options: argparse.Namespace, rng: random.Random) -> bool:
    """Let two commands train one table, kill one or the other ``kills`` times, and compare the runs."""
    settings = [f"train.steps={options.steps}", f"pseudo_label.steps={options.steps}"]
    table = {
        "data": "digits",
        "about": "benchmarks/kill.py",
        "config": "digits",
        "set": ["train.precision=float32", "train.checkpoint_every=4", *settings],
        "seeds": [1, 2],
        "rows": [{"label": "MixMatch"}, {"label": "stage", "stage": ["select=top"]}],
    }
    file = folder / "table.yml"
    file.write_text(json.dumps(table))  # JSON is YAML

    def start(name: str) -> subprocess.Popen:
        records = folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "reproduce", file, "--quiet", "--runs", folder / name, "--results", records]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    started = time.monotonic()
    start("table").communicate()
    longest = max(3.0, (time.monotonic() - started) / max(1, kills))
    workers, done, errors = [start("table-killed"), start("table-killed")], 0, ""
    for number in range(kills):
        time.sleep(rng.uniform(0, 2 * longest))
        victim = workers[number % 2]
        done += victim.poll() is None
        victim.kill()
        errors += victim.communicate()[1]
        workers[number % 2] = start("table-killed")
    for process in workers:
        errors += process.communicate()[1]
    errors += start("table-killed").communicate()[1]
    runs = sorted(path.name for path in (folder / "table").iterdir())
    same = [all(compare(folder / "table" / name, folder / "table-killed" / name).values()) for name in runs]
    count = len((folder / "table-killed.jsonl").read_text().splitlines())
    print(f"\ntwo commands on a table: {done} kills, {sum(same)} of {len(same)} runs identical, {count} records")
    if "Traceback" in errors:
        print(errors)
    return all(same) and count == len(runs) and "Traceback" not in errors


def compare(a: Path, b: Path) -> dict[str, bool]:
    """Return for each kind of output whether it is the same in two runs, apart from times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def state(path: Path) -> tuple:
        tensors, meta = load_tensors(path / "checkpoints" / f"step-{RunDirectory(path).newest_step():08d}.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, meta["step"]

    def entries(path: Path, name: str) -> list[dict]:
        text = (path / name).read_text()
        objects = [json.loads(text)] if name == "results.json" else [json.loads(line) for line in text.splitlines()]
        return [{key: value for key, value in entry.items() if "second" not in key} for entry in objects]

    def curves(path: Path) -> dict:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    return {
        "weights, EMA, optimizer, method": state(a) == state(b),
        "metrics.jsonl": entries(a, "metrics.jsonl") == entries(b, "metrics.jsonl"),
        "results.json": entries(a, "results.json") == entries(b, "results.json"),
        "TensorBoard's curves": curves(a) == curves(b),
    }


if __name__ == "__main__":
    sys.exit(main())
