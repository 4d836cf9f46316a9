"""A run from its config to its results: the loop that main.py, the benchmarks and the tests call."""

import math
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mixmatch.config import Config
from mixmatch.data import ImageData, load_data
from mixmatch.errors import Stopped, TimeUp, UserError
from mixmatch.evaluate import evaluate
from mixmatch.ranks import ALONE, Ranks
from mixmatch.recorder import Recorder
from mixmatch.rounds import check_round, select_labels, selection_due
from mixmatch.run import Progress, RunDirectory, code_commit, open_run
from mixmatch.sampling import Split, make_split, read_split
from mixmatch.trainer import Trainer

EVALUATIONS_AVERAGED = 20  # the reported accuracy is the median of so many, as in the paper


def train(
    config: Config, path: Path, ranks: Ranks = ALONE, quiet: bool = False, deadline: float = math.inf
) -> dict[str, Any]:
    """Train a run to its end, continuing it if ``path`` holds a part of it.

    Args:
        config: the run's.
        path: the run directory.
        ranks: the processes that train it together.
        quiet: print nothing but warnings.
        deadline: the reading of time.monotonic() at which to stop.

    Returns:
        The contents of results.json.

    Raises:
        UserError: if anything that the user gave does not work.
        Diverged: if a loss or weight is no longer finite; the last checkpoint is good.
        Stopped: on SIGINT or SIGTERM, after a checkpoint.
        TimeUp: at the deadline, after a checkpoint.
    """
    console = Console(quiet, speaks=ranks.first)
    device = choose_device(config.device, ranks)
    with open_run(path, config, ranks) as run, explain_memory(config, device):
        results = ranks.from_first(run.read_results)
        if results is not None:
            if "pseudo_label" in results:
                check_round(path, run.config, config)
            console.say(f"{path} is finished: {summarise(results)}")
            return results

        with ranks.one_before_the_others():
            data = load_data(config.data, device, console.quiet_bars)
        split = ranks.from_first(lambda: prepare_split(run, config, data))
        trainer = Trainer(config, data, split, device, ranks)
        progress = resume(run, trainer)
        if progress.start:
            check_round(path, run.config, config)
        settings = config.train
        labeled_classes = _effective_classes(trainer.labels[trainer.original_labeled].bincount().tolist())
        here, commit = environment(device, ranks), code_commit()
        clock = logged_at = time.monotonic()
        logged = progress.step
        with (
            Recorder(run, progress.events_size, ranks.first) as recorder,
            console.bar(progress.step, settings.steps),
            stop_signals() as received,
        ):
            if progress.step:
                fresh = progress.step == progress.start
                what = f"{path}: a round of pseudo-labels, from step" if fresh else f"continuing {path} at step"
                console.say(f"{what} {progress.step} of {config.train.steps}")
                if progress.environment != here:
                    console.say(
                        f"note: so far it ran with {progress.environment}, now with {here}: "
                        "from here on it is not bit for bit the uninterrupted run"
                    )
            else:
                console.say(f"{path}: {describe(trainer, data, split, here)}")

            progress.environment = here
            while trainer.step < settings.steps:
                if selection_due(config.pseudo_label, progress, trainer.step):
                    if trainer.step == progress.start:
                        progress.before = evaluate_sets(trainer, data.classes, recorder)
                    entry, lines = select_labels(trainer, data.classes, recorder)
                    progress.selections.append(entry)
                    console.report("\n".join(lines))

                trainer.train_step()
                step = trainer.step
                last = step == settings.steps
                evaluating = last or step % settings.eval_every == 0
                saving = last or step % settings.checkpoint_every == 0

                if evaluating or step % settings.log_every == 0:
                    values = measure(trainer)
                    values["steps_per_second"] = (step - logged) / (time.monotonic() - logged_at)
                    logged = step
                    recorder.scalars(values, step)
                    console.advance(
                        step, ", ".join([f"loss {values['loss']:.3f}", *_accuracies(progress.history[-1:])])
                    )

                if evaluating:
                    trainer.check_finite()
                    best = progress.best_validation()
                    accuracies = evaluate_sets(trainer, data.classes, recorder)
                    recorder.scalars(accuracies, step)
                    entry = {"step": step, **values, **accuracies}
                    progress.history.append(entry)
                    recorder.metrics(progress.history)
                    if ranks.first:
                        recorder.batch(trainer.preview(), data.classes, step)
                    console.report(_line(entry, settings.steps))
                    if not progress.warned and _collapsing(progress.history, labeled_classes):
                        progress.warned = True
                        console.warn(_collapse_warning(entry, data.classes))
                    saving = saving or progress.best_validation() != best

                # Looked at once, by all ranks together: what arrives later waits for the next step.
                stop, time_up = ranks.largest([max(received, default=0), time.monotonic() >= deadline])
                if saving or stop or time_up:
                    trainer.check_finite()
                    now = time.monotonic()
                    progress.seconds, clock = progress.seconds + now - clock, now
                    progress.step = step
                    recorder.checkpoint(trainer.state(), progress)

                if step == logged:
                    logged_at = time.monotonic()  # steps_per_second leaves evaluations and checkpoints out

                if (stop or time_up) and not last:
                    recorder.wait()
                    if stop:
                        name = signal.Signals(stop).name
                        raise Stopped(stop, f"stopped by {name} at step {step}; the same command continues")
                    raise TimeUp(f"{path}: the time is up at step {step}; the same command continues")

            recorder.wait()

        results = summarise_run(trainer, split, progress, commit)
        if ranks.first:
            run.write_results(results)
        console.say(f"done: {summarise(results)}")
        return results


def resume(run: RunDirectory, trainer: Trainer) -> Progress:
    """Bring ``trainer`` to the newest checkpoint, if there is one, and return the progress saved with it.

    Raises:
        UserError: if there are checkpoints and none can be used.
    """
    saved = trainer.ranks.from_first(run.load_newest)
    if saved is None:
        return Progress()
    state, progress = saved
    try:
        trainer.load_state(state, progress.step)
    except ValueError as error:
        raise UserError(f"{run.path}: the checkpoint at step {progress.step} does not fit ({error})") from None
    if trainer.ranks.first:
        run.write_metrics(progress.history)  # without the lines from after the checkpoint
    return progress


def measure(trainer: Trainer) -> dict[str, Any]:
    """Return the statistics since the last call, and the schedules, as metrics.jsonl and TensorBoard name them."""
    values: dict[str, Any] = trainer.read_statistics()
    values["lr"] = trainer.lr()
    if trainer.config.method == "mixmatch":
        values["lambda_u"] = trainer.lambda_u()
        values["most_guessed_share"] = max(values["guesses"])
        values["guessed_classes"] = _effective_classes(values["guesses"])
        if math.isnan(values["guess_accuracy"]):
            values["guess_accuracy"] = None  # JSON has no NaN
    return values


def evaluate_sets(trainer: Trainer, classes: list[str], recorder: Recorder) -> dict[str, float | None]:
    """Return the EMA model's accuracy on the validation and the test set, percent, None for a set that is empty."""
    accuracies: dict[str, float | None] = {"validation_accuracy": None, "test_accuracy": None}
    for name, (images, labels) in trainer.held_out.items():
        with trainer.autocast():
            evaluation = evaluate(trainer.ema_model, images, labels, trainer.device, trainer.ranks)
        accuracies[f"{name}_accuracy"] = evaluation.accuracy
        recorder.confusion(name, evaluation.confusion, classes, trainer.step)
    return accuracies


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Turn the config's ``device`` into one that is there; each rank of a machine gets a GPU of its own.

    Raises:
        UserError: if it is not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{ranks.local if ranks.world > 1 else 0}" if name == "cuda" else name)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(f"device: {device} is not there ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and graphs are made on the current one
    return device


@contextmanager
def explain_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Turn the device's running out of memory into a UserError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{device} is out of memory with train.batch_size={config.train.batch_size}; lower that, model.width or "
            "data.image_size, or free the device of other programs"
        ) from None


def environment(device: torch.device, ranks: Ranks) -> str:
    """Return what bit-identity hangs on: the version of torch, the device, processes, and on the CPU threads."""
    several = f" in {ranks.world} processes" if ranks.world > 1 else ""
    if device.type == "cuda":
        return f"torch {torch.__version__} on {torch.cuda.get_device_name(device)}{several}"
    return f"torch {torch.__version__} on the CPU with {torch.get_num_threads()} threads{several}"


def prepare_split(run: RunDirectory, config: Config, data: ImageData) -> Split:
    """Return the run's split: the one it has, the one that the config names, or a new one; and store it.

    Raises:
        UserError: if the split cannot be had or does not fit the images.
    """
    settings, labels = config.data, data.labels.numpy()
    if run.split_file.exists():
        split = read_split(run.split_file, data.fingerprint(), labels)
    elif settings.split_file is not None:
        split = read_split(Path(settings.split_file), data.fingerprint(), labels)
    else:
        split = make_split(
            data.name,
            data.fingerprint(),
            labels,
            data.classes,
            config.seed,
            settings.num_labeled,
            settings.num_validation,
            settings.labeled_as_unlabeled,
        )
    if config.method == "mixmatch" and not split.unlabeled:
        raise UserError("data: no image is left to be unlabelled; set data.labeled_as_unlabeled=true or fewer labels")
    run.write_split(split)
    return split


def describe(trainer: Trainer, data: ImageData, split: Split, here: str) -> str:
    """Return a line on what is about to be trained."""
    config = trainer.config
    size = "x".join(str(n) for n in data.images.shape[1:3])
    return (
        f"{config.method}, {data.name} {size}, {len(data.classes)} classes: {len(split.labeled)} labelled, "
        f"{len(split.unlabeled)} unlabelled, {len(split.validation)} validation, "
        f"{0 if data.test_labels is None else len(data.test_labels)} test images; "
        f"WRN-{config.model.depth}-{config.model.width:g}, {config.train.steps} steps "
        f"in {trainer.precision_name}, {here}"
    )


def summarise_run(trainer: Trainer, split: Split, progress: Progress, commit: str) -> dict[str, Any]:
    """Return what results.json holds."""
    config, device = trainer.config, trainer.device
    tests = [entry["test_accuracy"] for entry in progress.history if entry["test_accuracy"] is not None]
    results = {
        "test_accuracy": statistics.median(tests[-EVALUATIONS_AVERAGED:]) if tests else None,
        "evaluations_averaged": min(len(tests), EVALUATIONS_AVERAGED),
        "test_accuracy_last": tests[-1] if tests else None,
        "best_validation": progress.best_validation(),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "steps_per_second": round((progress.step - progress.start) / progress.seconds, 3),
        "dataset": config.data.dataset,
        "method": config.method,
        "num_labeled": len(split.labeled),
        "seed": config.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": trainer.ranks.world,
        "precision": trainer.precision_name,
        "torch": torch.__version__,
        "commit": commit,
    }
    if progress.start:
        results["pseudo_label"] = {
            **config.pseudo_label.model_dump(),
            "start": progress.start,
            "before": progress.before,
            "selections": progress.selections,
        }
    return results


def summarise(results: dict[str, Any]) -> str:
    """Return results in a line."""
    parts = []
    if results["test_accuracy"] is not None:
        count = results.get("evaluations_averaged", EVALUATIONS_AVERAGED)  # not said by earlier versions
        parts.append(
            f"test accuracy {results['test_accuracy']:.2f}% (median of the last {count} evaluations; "
            f"the last one {results['test_accuracy_last']:.2f}%)"
        )
    if results["best_validation"] is not None:
        best = results["best_validation"]
        parts.append(f"best validation accuracy {best['accuracy']:.2f}% at step {best['step']}")
    trained = results["steps"] - results.get("pseudo_label", {}).get("start", 0)
    parts.append(f"{trained} steps in {results['seconds']:.0f} s ({results['steps_per_second']:.2f} steps/s)")
    return ", ".join(parts)


def _effective_classes(counts: list[float]) -> float:
    """Return exp(entropy) of a histogram: how many classes equally used would spread as widely."""
    total = sum(counts)
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))


def _collapsing(history: list[dict[str, Any]], reference: float) -> bool:
    """Tell whether, at two evaluations in a row, guesses went to far fewer classes than labelled images have."""
    recent = [entry.get("guessed_classes", reference) for entry in history[-2:]]
    return len(recent) == 2 and max(recent) < 1 + (reference - 1) / 3


def _collapse_warning(entry: dict[str, Any], classes: list[str]) -> str:
    share = entry["most_guessed_share"]
    return (
        f"at step {entry['step']} the guessed labels go to few classes ({100 * share:.0f}% to "
        f"{classes[entry['guesses'].index(share)]!r}); start again with a longer mixmatch.ramp_up_steps "
        "or a lower mixmatch.lambda_u"
    )


def _accuracies(entries: list[dict[str, Any]]) -> list[str]:
    """Return ``test accuracy 96.25%`` and the like, for each set that an evaluation was made on."""
    names = ("validation", "test")
    return [
        f"{name} accuracy {entry[f'{name}_accuracy']:.2f}%"
        for entry in entries
        for name in names
        if entry[f"{name}_accuracy"] is not None
    ]


def _line(entry: dict[str, Any], steps: int) -> str:
    parts = [f"step {entry['step']} of {steps}", f"loss {entry['loss']:.3f}", *_accuracies([entry])]
    return ", ".join([*parts, f"{entry['steps_per_second']:.1f} steps/s"])


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step under way can end; a second SIGINT stops at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Console:
    """What a person sees: a progress bar on a terminal, else a line at each evaluation; or nothing but warnings.

    A rank that does not speak prints nothing at all.
    """

    def __init__(self, quiet: bool, speaks: bool = True) -> None:
        self.speaks = speaks
        self.quiet = quiet or not speaks
        self.quiet_bars = self.quiet or not sys.stderr.isatty()
        self._bar: tqdm | None = None

    @contextmanager
    def bar(self, step: int, steps: int) -> Iterator[None]:
        """Show a progress bar, if there is a terminal to show it on."""
        with tqdm(total=steps, initial=step, unit="step", disable=self.quiet_bars, dynamic_ncols=True) as self._bar:
            yield

    def advance(self, step: int, note: str) -> None:
        """Move the bar to ``step``."""
        if self._bar is not None and not self.quiet_bars:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step - self._bar.n)

    def report(self, line: str) -> None:
        """Print the line of an evaluation."""
        if not self.quiet:
            tqdm.write(line)
            sys.stdout.flush()

    def say(self, line: str) -> None:
        """Print a line about the run as a whole."""
        if not self.quiet:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """Print a warning, also where all else is quiet."""
        if self.speaks:
            tqdm.write(f"warning: {line}", file=sys.stderr)
