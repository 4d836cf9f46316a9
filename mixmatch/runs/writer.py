"""Writes the files of a run in a background thread.

Plotting, compressing and waiting for the disk would otherwise stop training for hundreds of milliseconds at every
evaluation and checkpoint.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mixmatch.files import explain_os_errors
from mixmatch.runs.curves import DESCRIPTIONS, GROUPS
from mixmatch.runs.directory import LockedRun
from mixmatch.runs.plots import plot_confusion_matrix, plot_mixed_batch, plot_views
from mixmatch.runs.progress import HistoryEntry, Progress

# The pictures of an evaluation take 0.4 to 0.8 s of Python, in which training hardly advances. At this interval that is
# below 1%.
PICTURE_SECONDS = 120


class RunWriter:
    """Writes metrics, checkpoints, other files and TensorBoard's events of a run, in the order of the calls.

    Arguments may be changed after a call returns. If writing fails, nothing more is written and every later call
    raises the same error.
    """

    def __init__(
        self, run: LockedRun, step: int, num_steps: int, enabled: bool = True, keep_checkpoints: int | None = 2
    ) -> None:
        """Open TensorBoard's event file.

        Args:
            run: an existing run directory.
            step: completed steps: TensorBoard hides what an earlier session wrote after it.
            num_steps: of the whole run.
            enabled: if False nothing is written: in distributed runs one process writes.
            keep_checkpoints: how many of the newest are kept; None: all.

        Raises:
            UserError: if it cannot be written.
        """
        self._run, self._num_steps, self._enabled = run, num_steps, enabled
        self._keep_checkpoints = keep_checkpoints
        if not enabled:
            return
        self._is_new_run = not any(run.path.glob("events.out.tfevents.*"))
        with explain_os_errors(run.path):
            self._board = SummaryWriter(str(run.path), purge_step=step + 1 if step else 0)
        self._plotted_at, self._plotted_step = -math.inf, -1
        # Tasks get NumPy arrays and contiguous tensors: computations by torch would start threads that compete with
        # training for the cores.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last_task: Future[None] = self._thread.submit(lambda: None)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._enabled:
            self._thread.shutdown()
            with explain_os_errors(self._run.path):
                self._board.close()

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            UserError: if something could not be written.
        """
        if self._enabled:
            self._last_task.result()

    def describe_curves(self, descriptions: Mapping[str, str]) -> None:
        """Show descriptions of the method's curves, by name, in TensorBoard."""
        if self._enabled and self._is_new_run:
            rows = [f"| {name} | {text} |" for name, text in {**DESCRIPTIONS, **descriptions}.items()]
            table = "\n".join(["| curve | meaning |", "| --- | --- |", *rows])
            self._submit(lambda: self._board.add_text("curves", table, 0))

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Add a point to TensorBoard's curve of each number in ``values``."""
        values = {name: value for name, value in values.items() if isinstance(value, int | float)}

        def write() -> None:
            for name, value in values.items():
                tag = name if "/" in name else f"{GROUPS.get(name, 'train')}/{name}"
                self._board.add_scalar(tag, value, step)

        self._submit(write)

    def pictures_are_due(self, step: int) -> bool:
        """Return whether pictures are plotted at this step: every ``PICTURE_SECONDS`` and at the last step."""
        now = time.monotonic()
        if step == self._num_steps or now - self._plotted_at >= PICTURE_SECONDS:
            self._plotted_at, self._plotted_step = now, step
        return step == self._plotted_step

    def picture(self, tag: str, plot: Callable[[], Image.Image], step: int) -> None:
        """Show in TensorBoard what ``plot`` returns, which is called in the writer's thread, if pictures are due."""
        if self._enabled and self.pictures_are_due(step):
            self._submit(lambda: self._board.add_image(tag, np.asarray(plot()), step, dataformats="HWC"))

    def confusion(self, name: str, matrix: np.ndarray, classes: Sequence[str], step: int) -> None:
        """Show a confusion matrix, (C, C) counts with true classes in rows, in TensorBoard if pictures are due."""
        matrix = matrix.copy()
        self.picture(f"confusion/{name}", lambda: plot_confusion_matrix(matrix, classes), step)

    def preview(self, get_preview: Callable[[], dict[str, Tensor]], classes: Sequence[str], step: int) -> None:
        """Show views, guesses and the mixed batch of ``Trainer.preview`` in TensorBoard if pictures are due."""
        if not self._enabled or not self.pictures_are_due(step):
            return
        preview = {name: value.float().cpu().numpy().copy() for name, value in get_preview().items()}
        if "views" in preview:
            self.picture("views_and_guesses", lambda: plot_views(preview, classes), step)
        self.picture("mixed_batch", lambda: plot_mixed_batch(preview, classes), step)

    def file(self, name: str, content: bytes) -> None:
        """Write a file of the run directory, replacing it."""
        self._submit(lambda: self._run.write(name, content))

    def metrics(self, history: Sequence[HistoryEntry]) -> None:
        """Write metrics.jsonl, replacing it."""
        entries = list(history)
        self._submit(lambda: self._run.write_metrics(entries))

    def checkpoint(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint; waits until everything before it is written."""
        self.wait()
        if not self._enabled:
            return
        updates = {"history": list(progress.history), "callback_state": copy.deepcopy(progress.callback_state)}
        snapshot = progress.model_copy(update=updates)
        to_host = copy_to_host(state)

        def write() -> None:
            self._board.flush()
            self._run.save_checkpoint(to_host(), snapshot, self._keep_checkpoints)

        self._submit(write)

    def _submit(self, task: Callable[[], None]) -> None:
        if not self._enabled:
            return
        previous = self._last_task
        if previous.done():
            previous.result()

        def run() -> None:
            previous.result()  # raises if anything before has failed
            with explain_os_errors(self._run.path):
                task()

        self._last_task = self._thread.submit(run)


def copy_to_host(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Copy tensors as they are now; the function returned, for any thread, fetches the copies to the CPU.

    On a GPU the copies are made there, in stream order; neither copying nor fetching blocks training.
    """
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    device = next(iter(copies.values())).device
    if device.type != "cuda":
        return lambda: copies
    copied = torch.cuda.Event()
    copied.record()

    def fetch() -> dict[str, Tensor]:
        torch.cuda.set_device(device)  # the current device is a thread's own, initially GPU 0
        with torch.cuda.stream(torch.cuda.Stream(device)):
            torch.cuda.current_stream().wait_event(copied)
            return {name: copy.cpu() for name, copy in copies.items()}

    return fetch
