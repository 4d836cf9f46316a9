"""The run directory.

config.yml       all keys of the config
split.json       which training images are labeled, unlabeled, held out
images.json      class names, size, channels and normalization of the images
metrics.jsonl    one line per evaluation
checkpoints/     step-<number>.safetensors: the newest (train.keep_checkpoints), and the best by validation accuracy
pseudo_labels/   step-<number>.csv: the selections of a pseudo-label stage
model.safetensors, results.json    when the run is finished
events.out...    TensorBoard
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mixmatch.config import Config, TrainSettings, load_config, to_yaml
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.split import Split
from mixmatch.distributed import DistributedContext
from mixmatch.errors import RunInUse, UserError, describe_error
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, save_tensors, write_atomically
from mixmatch.output import log
from mixmatch.runs.progress import HistoryEntry, Progress
from mixmatch.runs.results import RunResults

_CHECKPOINT_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,15})\.safetensors", re.ASCII)
ROOT = Path(__file__).resolve().parents[2]


class RunDirectory:
    """Reads the files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.config_file = path / "config.yml"
        self.split_file = path / "split.json"
        self.images_file = path / "images.json"
        self.results_file = path / "results.json"
        self.model_file = path / "model.safetensors"

    def can_continue(self) -> bool:
        """Return whether it has a config, and checkpoints or results."""
        return self.has_begun() and self.config_file.exists()

    def has_begun(self) -> bool:
        """Return whether there is anything to continue: a checkpoint or results."""
        return bool(self._steps()) or self.results_file.exists()

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        return max(self._steps(), default=0)

    def read_config(self) -> Config:
        """Return the config.

        Raises:
            UserError: if there is none, or it is invalid.
        """
        if not self.config_file.exists():
            raise UserError(f"{self.path}: not a run directory (no config.yml)")
        if not self.config_file.read_bytes().strip():
            raise UserError(f"{self.config_file}: is empty; restore it, or remove the directory")
        return load_config(self.config_file)

    def read_results(self, settings: TrainSettings | None = None) -> RunResults | None:
        """Return results.json; None if it does not exist, or the run is being made longer.

        Args:
            settings: the ``train`` section, with the length of the run; that of the stored config by default.

        Raises:
            UserError: if it is damaged.
        """
        try:
            results = RunResults.model_validate(json.loads(self.results_file.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.results_file}: cannot be read ({describe_error(error)}); delete it to evaluate again"
            ) from None
        settings = settings or self.read_config().train
        stopped_early = settings.patience is not None and results.evaluations_since_best >= settings.patience
        return results if results.steps >= settings.steps or stopped_early else None

    def read_images(self) -> ImageSpec:
        """Return images.json.

        Raises:
            UserError: if it is missing or damaged.
        """
        try:
            return TypeAdapter(ImageSpec).validate_python(json.loads(self.images_file.read_bytes()))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.images_file}: cannot be read ({describe_error(error)}); delete results.json and train again"
            ) from None

    def read_metrics(self) -> list[HistoryEntry]:
        """Return the evaluations, none if there is no metrics.jsonl.

        Raises:
            UserError: if it is damaged.
        """
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):  # a kill or a full disk cut it off
                lines.pop()
            return [HistoryEntry.model_validate(json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read ({describe_error(error)}); delete results.json and train again"
            ) from None

    def load_newest(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Return the newest valid checkpoint, with a warning about corrupt ones; None if there are no checkpoints.

        Raises:
            UserError: if all checkpoints are corrupt.
        """
        damaged = []
        for step in reversed(self._steps()):
            path = self.checkpoint_file(step)
            try:
                checkpoint = self._load(step)
            except (DamagedFile, OSError) as error:
                damaged.append(f"{path.name} {error}")
                continue
            if damaged:
                log.warning(f"{'; '.join(damaged)}: using step {step}, the newest valid checkpoint")
            return checkpoint
        if damaged:
            raise UserError(
                f"{self.checkpoints}: all checkpoints are corrupt ({'; '.join(damaged)}); "
                "restore one, or use another --run-dir"
            )
        return None

    def load_best(self) -> tuple[dict[str, Tensor], Progress]:
        """Return the checkpoint with the highest validation accuracy.

        Raises:
            UserError: if there is none, or it is corrupt.
        """
        newest = self.load_newest()
        best = newest and newest[1].best_validation()
        if not best:
            raise UserError(
                f"{self.path}: has no best checkpoint; that takes an evaluation with data.num_validation above 0"
            )
        return self.load_step(best.step)

    def checkpoint_file(self, step: int) -> Path:
        """Return the path of the checkpoint at ``step``."""
        return self.checkpoints / f"step-{step:08d}.safetensors"

    @classmethod
    def of_checkpoint(cls, path: Path) -> "tuple[RunDirectory, int] | None":
        """Return the run and the step of a checkpoint file; None if it is not named like one in a run directory."""
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        return (cls(path.parent.parent), int(match[1])) if match and path.parent.name == "checkpoints" else None

    def load_step(self, step: int) -> tuple[dict[str, Tensor], Progress]:
        """Return the checkpoint at ``step``.

        Raises:
            UserError: if it does not exist or is corrupt.
        """
        try:
            return self._load(step)
        except (DamagedFile, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{self.checkpoint_file(step)}: {reason}; use another checkpoint") from None

    def _load(self, step: int) -> tuple[dict[str, Tensor], Progress]:
        state, meta = load_tensors(self.checkpoint_file(step))
        try:
            progress = Progress.model_validate(meta)
        except ValidationError as error:
            raise DamagedFile(f"has invalid metadata ({describe_error(error)})") from None
        if progress.step != step:
            raise DamagedFile(f"is of step {progress.step}")
        return state, progress

    def _steps(self) -> list[int]:
        try:
            names = os.listdir(self.checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.checkpoints}: cannot be read ({error.strerror}); check its permissions") from None
        found = (_CHECKPOINT_NAME.fullmatch(name) for name in names)
        return sorted(int(match[1]) for match in found if match)


class LockedRun(RunDirectory):
    """Writes the files of a run that no other process uses. Made by ``open_run``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = FileLock(path / ".lock")

    def create(self) -> None:
        """Make the directory if it is new, lock it, and remove incomplete files of killed processes.

        Raises:
            RunInUse: if another process uses it.
            UserError: if it cannot be written.
        """
        if self._lock.is_locked:
            return
        with explain_os_errors(self.path):
            new = not self.has_config_or_checkpoint()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            owner = self.path / ".lock-owner"
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                try:
                    name = owner.read_bytes().decode("utf-8", "backslashreplace")
                except OSError:
                    name = "another process"
                raise RunInUse(f"{self.path}: is in use by {name}; wait for it, or use another --run-dir") from None
            if new and self.has_config_or_checkpoint():
                raise RunInUse(f"{self.path}: was just made by another process; run the same command again")
            for leftover in (*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):
                leftover.unlink(missing_ok=True)
            write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def has_config_or_checkpoint(self) -> bool:
        """Return whether there is a run, or a process has begun to make one."""
        return self.config_file.exists() or bool(self._steps())

    def release(self) -> None:
        """Let other processes use the run."""
        self._lock.release()

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run, or of a folder in it, see ``write_atomically``."""
        path = self.path / name
        with explain_os_errors(path):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)

    def write_config(self, config: Config) -> None:
        """Write config.yml, unless it contains the same."""
        if not self.config_file.exists() or load_config(self.config_file) != config:
            self.write("config.yml", to_yaml(config).encode())

    def write_data(self, split: Split, spec: ImageSpec) -> None:
        """Write split.json and images.json."""
        self.write("split.json", split.to_json().encode())
        self.write("images.json", (json.dumps(asdict(spec)) + "\n").encode())

    def write_metrics(self, history: Sequence[HistoryEntry]) -> None:
        """Write metrics.jsonl."""
        self.write("metrics.jsonl", "".join(json.dumps(entry.model_dump()) + "\n" for entry in history).encode())

    def write_results(self, results: RunResults) -> None:
        """Write results.json: the run is finished."""
        self.write("results.json", (json.dumps(results.model_dump(), indent=2) + "\n").encode())

    def save_checkpoint(self, state: dict[str, Tensor], progress: Progress, keep_newest: int | None) -> None:
        """Write a checkpoint, then remove all but the best and the newest ``keep_newest``; None: all are kept."""
        save_tensors(self.checkpoint_file(progress.step), state, progress.model_dump())
        best = progress.best_validation()
        # Later steps are of corrupt files, from before the run continued from an earlier checkpoint.
        keep = [step for step in self._steps() if step <= progress.step][-keep_newest if keep_newest else 0 :]
        for step in self._steps():
            if step not in keep and (best is None or step != best.step):
                path = self.checkpoint_file(step)
                with explain_os_errors(path):
                    path.unlink(missing_ok=True)


@contextmanager
def open_run(path: Path, distributed: DistributedContext) -> Iterator[LockedRun]:
    """Open a run directory for writing, and keep other processes out of it.

    An existing run is locked at once, a new one is made by ``LockedRun.create``. Of several processes the main one
    locks and writes.

    Raises:
        RunInUse: if another process uses it.
        UserError: if it cannot be written.
    """
    run = LockedRun(path)
    try:
        if distributed.is_main and run.has_config_or_checkpoint():
            run.create()
        yield run
    finally:
        run.release()
