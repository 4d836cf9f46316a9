"""The run directory: its config, split, metrics, checkpoints and results, and who may write to it.

config.yml       every key of what it uses, resolved
split.json       which training images are labeled, unlabeled, held out
images.json      what the network sees: class names, size and channels of images, how pixels are scaled
metrics.jsonl    a line per evaluation
checkpoints/     step-<number>.safetensors: the newest two, and the best by validation
results.json     at the end
events.out...    TensorBoard
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from torch import Tensor

from mixmatch.config import Config, continued, load_config, to_yaml
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.split import Split
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import RunInUse, UserError, describe_error
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, read_file, save_tensors, write_atomically
from mixmatch.runs.progress import Progress, Results

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS_KEPT = 2  # the newest and the one before, should the newest turn out damaged


class RunDirectory:
    """Reads and writes the files of one run. Make it with ``open_run``."""

    config: Config  # as stored; set by open_run

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.split_file = path / "split.json"
        self.images_file = path / "images.json"
        self.starts_over = False  # what is there never came to a checkpoint, and is of another config
        self._lock: tuple[int, int] | None = None  # the device and number of the lock's file, while it is held
        self._folders: dict[Path, int] = {}  # descriptors, where the system has them

    def read_results(self) -> dict[str, Any] | None:
        """Return results.json, or None if the run is not finished, or no longer because it is to become longer.

        Raises:
            UserError: if it is damaged.
        """
        file = self.path / "results.json"
        try:
            values = json.loads(read_file(file))
            Results.model_validate(values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read ({describe_error(error)}); remove it to redo the end") from None
        config = self.config if hasattr(self, "config") else self.read_config()
        return values if values["steps"] >= config.train.steps else None

    def has_begun(self) -> bool:
        """Tell whether there is anything to go on from."""
        return bool(self._steps()) or self.has_results()

    def has_results(self) -> bool:
        """Tell whether the run was finished once."""
        return (self.path / "results.json").exists()

    def hold(self) -> None:
        """Remember which folder this is: until ``release`` nothing is written to another at the same path."""
        self._lock = self._lock_there()
        if os.open in os.supports_dir_fd:
            for folder in (self.path, self.checkpoints):
                self._folders[folder] = os.open(folder, os.O_RDONLY)

    def release(self) -> None:
        """Hold on to the folder no longer."""
        for descriptor in self._folders.values():
            os.close(descriptor)
        self._lock, self._folders = None, {}

    def held(self, folder: Path) -> int | None:
        """Return the descriptor of ``path`` or ``checkpoints``, None where there is none, before something is written.

        Raises:
            UserError: if the path leads to another folder by now than the one that is held, or to none.
        """
        if self._lock is not None and self._lock_there() != self._lock:
            raise UserError(
                f"{self.path}: is no longer the folder of this run, which was moved, removed or replaced; "
                "what it has saved went with it, and continues from there"
            )
        return self._folders.get(folder)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run, see ``write_atomically``."""
        write_atomically(self.path / name, content, self.held(self.path))

    def _lock_there(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path / ".lock")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        return max(self._steps(), default=0)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json: the run is finished."""
        self.write("results.json", (json.dumps(results, indent=2) + "\n").encode())

    def write_config(self) -> None:
        """Write config.yml, if it is not there yet or has changed."""
        file = self.path / "config.yml"
        if not file.exists() or load_config(file) != self.config:
            self.write("config.yml", to_yaml(self.config).encode())

    def forget(self) -> None:
        """Remove what a run left that never came to a checkpoint, if this one starts over."""
        self.held(self.path)
        for name in ("config.yml", "split.json", "images.json", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        self.starts_over = False

    def write_split(self, split: Split) -> None:
        """Write split.json, if it is not there yet."""
        if not self.split_file.exists():
            self.write("split.json", split.to_json().encode())

    def write_images(self, spec: ImageSpec) -> None:
        """Write images.json, if it is not there yet."""
        if not self.images_file.exists():
            self.write("images.json", (json.dumps(asdict(spec)) + "\n").encode())

    def read_images(self) -> ImageSpec | None:
        """Return images.json, or None: earlier versions wrote none.

        Raises:
            UserError: if it is damaged.
        """
        try:
            return TypeAdapter(ImageSpec).validate_python(json.loads(read_file(self.images_file)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = describe_error(error)
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
        self.write("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())

    def save(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint, then remove those no longer needed: all but the newest two and the best."""
        folder = self.held(self.checkpoints)
        save_tensors(self._checkpoint(progress.step), state, progress.to_meta(), folder)
        best = progress.best_validation()
        # Higher steps than this one's are of damaged files that the run went back behind.
        earlier = [step for step in self._steps() if step <= progress.step]
        keep = earlier[-CHECKPOINTS_KEPT:] + ([best["step"]] if best else [])
        for step in self._steps():
            if step not in keep:
                path = self._checkpoint(step)
                with explain_os_errors(path), suppress(FileNotFoundError):
                    os.unlink(path if folder is None else path.name, dir_fd=folder)

    def load_newest(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Return the newest checkpoint that is whole, saying which were not; None if there are none at all.

        Raises:
            UserError: if there are checkpoints, and all are damaged.
        """
        damaged = []
        for step in reversed(self._steps()):
            path = self._checkpoint(step)
            try:
                state, progress = self._load(step)
            except (DamagedFile, OSError) as error:
                damaged.append(f"{path.name} {error}")
                continue
            if damaged:
                print(f"warning: {'; '.join(damaged)}: going on from step {step}, the newest that is whole")
            return state, progress
        if damaged:
            which = "; ".join(damaged)
            raise UserError(
                f"{self.checkpoints}: no checkpoint is whole ({which}); restore one, or use another --run-dir"
            )
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
            return self._load(int(best["step"]))
        except (DamagedFile, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); go without --best") from None

    def _load(self, step: int) -> tuple[dict[str, Tensor], Progress]:
        state, meta = load_tensors(self._checkpoint(step))
        progress = Progress.from_meta(meta)
        if progress.step != step:
            raise DamagedFile(f"is of step {progress.step}")
        return state, progress

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def _steps(self) -> list[int]:
        try:
            names = os.listdir(self._folders.get(self.checkpoints, self.checkpoints))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.checkpoints}: cannot be read ({error.strerror}); mend its permissions") from None
        found = (re.fullmatch(r"step-(\d{8}|[1-9]\d{8,15})\.safetensors", name, re.ASCII) for name in names)
        return sorted(int(match[1]) for match in found if match)


@contextmanager
def open_run(path: Path, config: Config, ranks: DistributedContext = SINGLE_PROCESS) -> Iterator[RunDirectory]:
    """Make or re-enter a run directory, and keep other processes out of it meanwhile.

    Of several ranks the first does; the others touch nothing.

    Raises:
        RunInUse: if another process is using it.
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
            try:
                who = read_file(owner).decode("utf-8", "backslashreplace")
            except OSError:
                who = "another process"
            raise RunInUse(f"{path}: is in use by {who}; wait for it, or use another run directory") from None
    try:
        with explain_os_errors(path):
            run.hold()
        for leftover in (*path.glob(".*.tmp"), *run.checkpoints.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)  # of a write that was killed
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())
        stored = path / "config.yml"
        if stored.exists():
            try:
                run.config = continued(load_config(stored), config, run.newest_step())
            except UserError as error:
                if run.has_begun():
                    raise UserError(f"{path}: {error}") from None
                run.starts_over, run.config = True, config
        else:
            run.config = config  # stored by write_config, once it is known to work
        yield run
    finally:
        run.release()
        lock.release()
