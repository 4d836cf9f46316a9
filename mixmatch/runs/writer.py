"""Everything that a run leaves on the disk while it trains, written in order by a thread of its own.

Drawing, compressing and waiting for the disk would otherwise hold up training for hundreds of milliseconds at every
evaluation and checkpoint.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.runs.tensorboard import TensorBoardWriter


class RunWriter:
    """Writes a run's metrics, checkpoints, files and TensorBoard curves, one after the other.

    What fails is raised, as a UserError, by a later call, at the latest by ``wait``; nothing is written after it. The
    arguments may change once a call is back.
    """

    def __init__(self, run: RunDirectory, events_size: int, writes: bool = True) -> None:
        """Open the run's TensorBoard file.

        Args:
            run: where to write.
            events_size: of TensorBoard's file, see ``TensorBoardWriter``.
            writes: False for a rank that is not the first: nothing is written then.
        """
        self._run = run
        self._board = TensorBoardWriter(run.path, events_size, run.held(run.path)) if writes else None
        # It is given NumPy's arrays and contiguous tensors: a computation of torch's would start threads that then
        # wait busily, on cores that training needs.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._tasks: list[Future[None]] = []
        self._failed = False

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()
        if self._board is not None:
            self._board.close()

    def wait(self) -> None:
        """Return when all is written, to the disk itself where checkpoints are concerned.

        Raises:
            UserError: if something could not be written.
        """
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.result()

    def settings(self, values: dict[str, Any], descriptions: dict[str, str]) -> None:
        """Let TensorBoard know a new run's settings, and what curves beside the usual ones show."""
        # The HParams page knows numbers, texts and truth values.
        plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}
        descriptions = dict(descriptions)

        def write(board: TensorBoardWriter) -> None:
            board.descriptions.update(descriptions)
            if board.is_new:
                board.settings(plain)

        self._do(write)

    def finish(self) -> None:
        """Let TensorBoard know that the run is finished."""
        self._do(lambda board: board.finish())

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Add a point to each TensorBoard curve that ``values`` has a number for."""
        values = dict(values)
        self._do(lambda board: board.scalars(values, step))

    def batch(self, preview: dict[str, Tensor], classes: Sequence[str], step: int) -> None:
        """Show views, guesses and the mixed batch of ``Trainer.preview`` in TensorBoard."""
        arrays = {name: value.float().cpu().numpy().copy() for name, value in preview.items()}
        self._do(lambda board: board.batch(arrays, classes, step))

    def confusion(self, name: str, matrix: Tensor, classes: Sequence[str], step: int) -> None:
        """Show a confusion matrix, (C, C) counts on the CPU with the true class in rows, in TensorBoard."""
        counts = matrix.numpy().copy()
        self._do(lambda board: board.confusion(name, counts, classes, step))

    def picture(self, tag: str, picture: Image.Image, step: int, description: str, classes: Sequence[str]) -> None:
        """Show a picture under ``tag`` in TensorBoard, with a description that names the classes."""
        names = list(classes)
        self._do(lambda board: board.picture(tag, picture, step, description, names))

    def file(self, name: str, content: bytes) -> None:
        """Write a file of the run directory anew."""
        self._do(lambda board: self._run.write(name, content))

    def metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew, a line per evaluation."""
        entries = list(history)
        self._do(lambda board: self._run.write_metrics(entries))

    def checkpoint(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint of the run as it is now, once the one before is written.

        ``progress.events_size`` is filled in: what TensorBoard's file holds when all recorded so far is in it.
        """
        self.wait()
        if self._board is None:
            return
        then = replace(progress, history=list(progress.history), beside=copy.deepcopy(progress.beside))
        to_host = copy_to_host(state)

        def write(board: TensorBoardWriter) -> None:
            then.events_size = board.save()
            self._run.save(to_host(), then)

        self._do(write)

    def _do(self, task: Callable[[TensorBoardWriter], None]) -> None:
        board = self._board
        if board is None:
            return

        def unless_failed() -> None:
            if not self._failed:
                self._failed = True  # until it is done: after a failure nothing is written any more
                task(board)
                self._failed = False

        for done in [task for task in self._tasks if task.done()]:
            self._tasks.remove(done)
            done.result()
        self._tasks.append(self._thread.submit(unless_failed))


def copy_to_host(tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Copy tensors as they are now, and return what fetches the copies to the CPU, in whatever thread.

    On a GPU the copies are made there, between two steps; neither making nor fetching them stops it.
    """
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    device = next(iter(copies.values())).device
    if device.type != "cuda":
        return lambda: copies
    made = torch.cuda.Event()
    made.record()

    def fetch() -> dict[str, Tensor]:
        torch.cuda.set_device(device)  # each thread has its own, at first GPU 0
        with torch.cuda.stream(torch.cuda.Stream(device)):
            torch.cuda.current_stream().wait_event(made)
            return {name: copy.cpu() for name, copy in copies.items()}

    return fetch
