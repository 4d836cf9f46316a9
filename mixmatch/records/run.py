"""The run directory: its config, split, metrics, checkpoints and results, and who may write to it.

config.yml       every key of what it uses, resolved
split.json       which training images are labelled, unlabelled, held out
images.json      what the network sees: class names, size and channels of images, how pixels are scaled
metrics.jsonl    a line per evaluation
checkpoints/     step-<number>.safetensors: the newest two, and the best by validation
results.json     at the end
events.out...    TensorBoard
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mixmatch.config import Config, continued, load_config, to_yaml
from mixmatch.data.images import ImageSpec
from mixmatch.data.split import Split
from mixmatch.errors import InUse, UserError
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, save_tensors, write_atomically
from mixmatch.ranks import ALONE, Ranks

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS_KEPT = 2  # the newest and the one before, should the newest turn out damaged


@dataclass
class Progress:
    """What a run has to remember beside tensors. It is saved in every checkpoint.

    Attributes:
        step: completed steps.
        start: the step at which the run began: 0, or for a round of pseudo-labels its parent's last.
        seconds: spent training and evaluating, over all sessions.
        history: one entry per evaluation, the lines of metrics.jsonl.
        events_size: bytes of the TensorBoard file that belong to the run so far.
        environment: torch, device and threads that computed it.
        precision: that it began with; empty in checkpoints of earlier versions.
        beside: what things beside the loop have to remember, by names of their own.
    """

    step: int = 0
    start: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    events_size: int = 0
    environment: str = ""
    precision: str = ""
    beside: dict[str, Any] = field(default_factory=dict)

    def to_meta(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: one level of names, ``beside``'s among them."""
        values = dict(vars(self))
        return values | values.pop("beside")

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "Progress":
        """Return what ``to_meta`` made a checkpoint's entry of."""
        own = {entry.name for entry in fields(cls)} - {"beside"}
        return cls(
            **{name: value for name, value in meta.items() if name in own},
            beside={name: value for name, value in meta.items() if name not in own},
        )

    def best_validation(self) -> dict[str, float] | None:
        """Return accuracy and step of the (first) best evaluation on the validation set, None without one."""
        entries = [entry for entry in self.history if entry["validation_accuracy"] is not None]
        best = max(entries, key=lambda entry: entry["validation_accuracy"], default=None)
        return best and {"accuracy": best["validation_accuracy"], "step": best["step"]}


class RunDirectory:
    """Reads and writes the files of one run. Make it with ``open_run``."""

    config: Config  # as stored; set by open_run

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.split_file = path / "split.json"
        self.images_file = path / "images.json"

    def read_results(self) -> dict[str, Any] | None:
        """Return results.json, or None if the run is not finished."""
        try:
            return json.loads((self.path / "results.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / 'results.json'}: cannot be read ({error}); remove it to redo the end"
            ) from None

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        return max(self._steps(), default=0)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json: the run is finished."""
        write_atomically(self.path / "results.json", (json.dumps(results, indent=2) + "\n").encode())

    def write_config(self) -> None:
        """Write config.yml, if it is not there yet or has changed; results of a shorter run are no longer its."""
        file = self.path / "config.yml"
        if not file.exists():
            write_atomically(file, to_yaml(self.config).encode())
        elif load_config(file) != self.config:
            with explain_os_errors(self.path / "results.json"):
                (self.path / "results.json").unlink(missing_ok=True)
            write_atomically(file, to_yaml(self.config).encode())

    def write_split(self, split: Split) -> None:
        """Write split.json, if it is not there yet."""
        if not self.split_file.exists():
            write_atomically(self.split_file, split.to_json().encode())

    def write_images(self, spec: ImageSpec) -> None:
        """Write images.json, if it is not there yet."""
        if not self.images_file.exists():
            write_atomically(self.images_file, (json.dumps(asdict(spec)) + "\n").encode())

    def read_images(self) -> ImageSpec | None:
        """Return images.json, or None: earlier versions wrote none.

        Raises:
            UserError: if it is damaged.
        """
        try:
            return TypeAdapter(ImageSpec).validate_json(self.images_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.images_file}: cannot be read ({reason}); remove it to ask the data again") from None

    def read_config(self) -> Config:
        """Return the run's config.

        Raises:
            UserError: if there is none.
        """
        if not (self.path / "config.yml").exists():
            raise UserError(f"{self.path}: is no run directory; the folder of a run is needed")
        return load_config(self.path / "config.yml")

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew, a line per evaluation."""
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())

    def save(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint, then remove those no longer needed: all but the newest two and the best."""
        save_tensors(self._checkpoint(progress.step), state, progress.to_meta())
        best = progress.best_validation()
        # Higher steps than this one's are of damaged files that the run went back behind.
        earlier = [step for step in self._steps() if step <= progress.step]
        keep = earlier[-CHECKPOINTS_KEPT:] + ([best["step"]] if best else [])
        for step in self._steps():
            if step not in keep:
                with explain_os_errors(self._checkpoint(step)):
                    self._checkpoint(step).unlink(missing_ok=True)

    def load_newest(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Return the newest checkpoint that is whole, saying which were not; None if there are none at all.

        Raises:
            UserError: if there are checkpoints, and all are damaged.
        """
        damaged = []
        for step in reversed(self._steps()):
            path = self._checkpoint(step)
            try:
                state, meta = load_tensors(path)
                progress = Progress.from_meta(meta)
            except (DamagedFile, OSError, TypeError) as error:
                damaged.append(f"{path.name} {error}")
                continue
            if damaged:
                print(f"warning: {'; '.join(damaged)}: going on from step {step}, the newest that is whole")
            return state, progress
        if damaged:
            which = "; ".join(damaged)
            raise UserError(f"{self.checkpoints}: no checkpoint is whole ({which}); restore one, or use another --run")
        return None

    def load_best(self) -> tuple[dict[str, Tensor], Progress]:
        """Return the checkpoint that was best on the validation images.

        Raises:
            UserError: if there were none, or it is damaged.
        """
        newest = self.load_newest()
        best = newest and newest[1].best_validation()
        if not best:
            raise UserError(f"{self.path}: has no best checkpoint; train it with data.num_validation above 0")
        path = self._checkpoint(int(best["step"]))
        try:
            state, meta = load_tensors(path)
        except (DamagedFile, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); go without --best") from None
        return state, Progress.from_meta(meta)

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def _steps(self) -> list[int]:
        names = (path.stem.removeprefix("step-") for path in self.checkpoints.glob("step-*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())


@contextmanager
def open_run(path: Path, config: Config, ranks: Ranks = ALONE) -> Iterator[RunDirectory]:
    """Make or re-enter a run directory, and keep other processes out of it meanwhile.

    Of several ranks the first does; the others touch nothing.

    Raises:
        InUse: if another process is using it.
        UserError: if it cannot be written, or holds a run of another config.
    """
    run = RunDirectory(path)
    if not ranks.first:
        run.config = config
        yield run
        return
    with explain_os_errors(path):
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        owner = path / ".lock-owner"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            raise InUse(f"{path}: is in use by {who}; wait for it, or use another run directory") from None
    try:
        for leftover in (*path.glob(".*.tmp"), *run.checkpoints.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)  # of a write that was killed
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())
        stored = path / "config.yml"
        if stored.exists():
            try:
                run.config = continued(load_config(stored), config)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        else:
            run.config = config  # stored by write_config, once it is known to work
        yield run
    finally:
        lock.release()


@cache
def code_commit() -> str:
    """Return the commit of this code, with a + if files of it have changed since; unknown outside a checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=7"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
        command = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "mixmatch", "models"]
        changed = subprocess.run(command, capture_output=True, check=False).returncode != 0  # noqa: S603
        return commit + "+" * changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
