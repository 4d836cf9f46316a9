"""Trains a run from its config to its results."""

import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixmatch.config import Config, PseudoLabelSettings, TrainSettings
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import Stopped, TimeUp, short_tracebacks
from mixmatch.inference import Classifier, save_model
from mixmatch.methods import METHODS
from mixmatch.output import print_log_unless_configured
from mixmatch.pseudo_labels.start import (
    StageStart,
    check_stage,
    check_stage_path,
    stage_config,
    stage_path,
    start_stage,
)
from mixmatch.runs.directory import LockedRun, RunDirectory, open_run
from mixmatch.runs.progress import HistoryEntry
from mixmatch.runs.results import RunResults
from mixmatch.runs.writer import RunWriter
from mixmatch.signals import PendingSignals, catch_stop_signals
from mixmatch.training.build import make_stage_method
from mixmatch.training.callbacks import Callback, plain_values
from mixmatch.training.console import Console
from mixmatch.training.device import choose_device, explain_out_of_memory
from mixmatch.training.duration import DurationEstimator
from mixmatch.training.execution import list_execution_modes, select_execution_mode
from mixmatch.training.results import code_commit, collect_results, describe_results, summarize
from mixmatch.training.setup import TrainingSession, check_split, find_results, moved_data, prepare, stored_config


@short_tracebacks
def train(
    config: Config,
    path: Path | str,
    distributed: DistributedContext = SINGLE_PROCESS,
    *,
    quiet: bool = False,
    deadline: float = math.inf,
    callbacks: Sequence[Callback] = (),
    start: StageStart | None = None,
) -> RunResults:
    """Train a run to its end, continuing it if ``path`` contains a part of it.

    With ``pseudo_label.enabled`` a pseudo-label stage follows, in a directory next to ``path``.

    Lines and warnings go to the logger ``mixmatch``. If the program has not configured logging, they are printed.

    In the main thread, SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM end training after the current step, with
    a checkpoint; a second SIGINT ends it at once.

    Args:
        config: from ``load_config`` or ``build_config``.
        path: the run directory.
        distributed: the processes that train together.
        quiet: show no progress bars, and print nothing if the program has not configured logging.
        deadline: value of time.monotonic() at which to stop.
        callbacks: called by the loop, after those of every run.
        start: the first checkpoint, if the run is a pseudo-label stage, see ``start_stage``.

    Returns:
        The contents of results.json, those of the stage if there is one.

    Raises:
        UserError: if config, data or run directory are invalid or cannot be used.
        Diverged: if a loss or weight is not finite; the last checkpoint is from before.
        Stopped: after a signal and a checkpoint. It is a KeyboardInterrupt, not an Exception.
        TimeUp: after the deadline and a checkpoint.
    """
    path, settings = Path(path).expanduser(), config.pseudo_label
    with print_log_unless_configured(quiet), catch_stop_signals() as pending:

        def run(config: Config, path: Path, start: StageStart | None, next_stage: Config | None = None) -> RunResults:
            results = train_run(config, path, distributed, quiet, deadline, callbacks, start, next_stage, pending)
            (stop,) = distributed.all_reduce_max([max(pending, default=0)])
            if stop:  # it came in the last step or later
                raise Stopped(stop, f"stopped by {signal.Signals(stop).name}; {path} is finished")
            pending.at_once = True
            return results

        if not settings.enabled:
            return run(config, path, start)
        stage = stage_path(path, settings)
        distributed.broadcast_from_main(lambda: check_stage_path(stage, config))  # before hours of training
        without_stage: dict[str, Any] = {"pseudo_label": PseudoLabelSettings()}
        if settings.method is not None and settings.method != config.method:
            without_stage[settings.method] = METHODS[settings.method].settings_type()  # its section is for the stage
        if RunDirectory(path).has_begun() or not RunDirectory(stage).has_begun():  # else the run was deleted
            run(config.model_copy(update=without_stage), path, None, stage_config(config, config.train.steps))
        config, start = distributed.broadcast_from_main(lambda: start_stage(path, stage, config))
        return run(config, stage, start)


def train_run(
    config: Config,
    path: Path,
    distributed: DistributedContext,
    quiet: bool,
    deadline: float,
    callbacks: Sequence[Callback],
    start: StageStart | None,
    next_stage: Config | None,
    pending: PendingSignals,
) -> RunResults:
    """Train one run; arguments as for ``train``, the config of the stage that follows, and the signals that stop it."""
    pending.at_once = True
    console = Console(quiet, distributed.is_main)
    device = choose_device(config.device, distributed)
    with open_run(path, distributed) as run, explain_out_of_memory(device, config):
        if distributed.broadcast_from_main(run.can_continue):
            start = None  # it goes on from its own checkpoint
        # Whether it is finished already.
        stored = distributed.broadcast_from_main(lambda: stored_config(run, config))
        results = distributed.broadcast_from_main(lambda: find_results(run, stored, config))
        moved = moved_data(stored, config)
        stored = stored.model_copy(update={"data": stored.data.model_copy(update=moved)})
        if results is not None:
            if moved:
                distributed.broadcast_from_main(lambda: check_split(run, config, device, console))
            if distributed.is_main:
                # If the length was raised, and is lowered again, there are no results of the stored length.
                kept = stored if run.read_results() is None else run.read_config()
                run.write_config(kept.model_copy(update={"data": stored.data}))
            console.print(f"{path} is finished: {summarize(results)}")
            return results

        # Read everything and validate it; then the first files are written.
        session = prepare(run, config, device, distributed, console, callbacks, start)
        check_stage(path, stored, config, session.progress.start_step)
        if next_stage is not None and next_stage.pseudo_label.method is not None:
            make_stage_method(next_stage, session.trainer)
        commit, trainer = code_commit(), session.trainer
        if distributed.is_main:
            write_first_files(run, stored, session, start)

        # Train.
        num_steps = config.train.steps
        keep = None if config.train.keep_checkpoints == "all" else config.train.keep_checkpoints
        modes = list_execution_modes(config.train, device, num_steps - trainer.step)
        pending.at_once = len(modes) > 1  # compiling takes minutes
        with RunWriter(run, trainer.step, num_steps, distributed.is_main, keep) as writer:
            for line in session.messages:
                console.print(line)
            writer.describe_curves(trainer.method.descriptions)
            select_execution_mode(trainer, modes, console.print, console.warn)
            pending.at_once = False
            with console.bar(trainer.step, num_steps):
                console.set_postfix(_short_accuracies(session.progress.history[-1:]))
                run_steps(session, config, writer, console, path, pending, deadline)
                for callback in session.callbacks:
                    for line in callback.finish(trainer.step, writer):
                        console.print(line)
            writer.wait()

        # Save the network and the results.
        results = collect_results(config, session, commit)
        if distributed.is_main:
            network = Classifier(trainer.ema_model, session.spec, config.model, trainer.precision)
            save_model(network, run.model_file)
            run.write_results(results)
        if results.steps < num_steps:
            count = results.evaluations_since_best
            console.print(
                f"stopped at step {results.steps} of {num_steps}: {count} evaluations without a better validation "
                "accuracy; to continue, raise train.patience or set it to null"
            )
        console.print(f"done: {summarize(results)}")
        for line in describe_results(results):
            console.print(line)
        return results


def write_first_files(run: LockedRun, stored: Config, session: TrainingSession, start: StageStart | None) -> None:
    """Make the run directory if it is new, and write what is there before the first step.

    Raises:
        UserError: if it cannot be written.
    """
    run.create()
    run.write_data(session.split, session.spec)
    if start is not None:
        # Before the config: a stage without it would start at step 0.
        run.save_checkpoint(start.state, start.progress, keep_newest=None)
    run.write_config(stored)
    run.write_metrics(session.progress.history)  # without lines from after the checkpoint


def run_steps(
    session: TrainingSession,
    config: Config,
    writer: RunWriter,
    console: Console,
    path: Path,
    pending: PendingSignals,
    deadline: float,
) -> None:
    """Take the remaining steps: train, log, evaluate, save, and stop when asked to. Raises as ``train``."""
    trainer, progress, settings = session.trainer, session.progress, config.train
    on_cpu = trainer.device.type == "cpu"
    clock = logged_at = time.monotonic()
    logged_step = trainer.step

    def start_estimate() -> DurationEstimator:
        return DurationEstimator(time.monotonic(), trainer.step, settings.steps, settings.eval_every)

    duration = start_estimate()
    out_of_patience = _is_out_of_patience(session, settings)
    while trainer.step < settings.steps and not out_of_patience:
        for callback in session.callbacks:
            for line in callback.before_step(trainer.step, writer):
                console.print(line)
        if trainer.step == logged_step:
            logged_at = time.monotonic()  # steps_per_second excludes evaluations, checkpoints and selections

        trainer.train_step()
        step = trainer.step
        frozen = step < trainer.freeze_until < settings.steps  # steps will take longer later
        if step == trainer.freeze_until:
            duration = start_estimate()
        last = step == settings.steps
        evaluating = last or step % settings.eval_every == 0
        saving = last or step % settings.checkpoint_every == 0
        logging = evaluating or step % settings.log_every == 0

        if logging:
            values = trainer.read_metrics()
            values["steps_per_second"] = (step - logged_step) / (time.monotonic() - logged_at)
            writer.scalars(values, step)
            logged_step = step
        console.advance(step)
        if logging or on_cpu:  # a GPU may be steps behind until their metrics are read
            duration.add_steps(step, time.monotonic())

        if evaluating:
            trainer.check_finite()
            best = progress.best_validation()
            evaluate(session, values, writer, console, settings.steps)
            out_of_patience = _is_out_of_patience(session, settings)
            last = last or out_of_patience
            saving = saving or last or progress.best_validation() != best
            duration.add_evaluation(time.monotonic())

        # Read once, by all processes together: a signal that arrives later waits for the next step.
        stop, time_up = trainer.distributed.all_reduce_max([max(pending, default=0), time.monotonic() >= deadline])
        if saving or stop or time_up:
            trainer.check_finite()
            now = time.monotonic()
            progress.seconds, clock = progress.seconds + now - clock, now
            progress.step = step
            writer.checkpoint(trainer.state(), progress)
        for line in [] if frozen else duration.announcement(evaluating, on_cpu):
            console.print(line)

        if (stop or time_up) and not last:
            writer.wait()
            if stop:
                name = signal.Signals(stop).name
                raise Stopped(stop, f"stopped by {name} at step {step}; start it again to continue")
            raise TimeUp(f"{path}: time is up at step {step}; start it again to continue")


def _is_out_of_patience(session: TrainingSession, settings: TrainSettings) -> bool:
    """Return whether ``train.patience`` ends the run now, at an evaluation."""
    progress = session.progress
    evaluated = bool(progress.history) and progress.history[-1].step == session.trainer.step
    return evaluated and settings.patience is not None and progress.evaluations_since_best() >= settings.patience


def evaluate(
    session: TrainingSession, values: dict[str, Any], writer: RunWriter, console: Console, num_steps: int
) -> None:
    """Evaluate all callbacks; add the result to the history, with the ``values`` logged at this step, and print it."""
    trainer, history = session.trainer, session.progress.history
    step = trainer.step
    measured: dict[str, Any] = {}
    for callback in session.callbacks:
        measured |= plain_values(callback, callback.evaluate(step, writer), {"step", *values, *measured})
    writer.scalars(measured, step)
    history.append(HistoryEntry.model_validate({"step": step, **values, **measured}))
    writer.metrics(history)
    writer.preview(trainer.preview, session.spec.classes, step)
    console.set_postfix(_short_accuracies(history[-1:]))
    parts = [f"step {step} of {num_steps}", f"loss {values['loss']:.3f}", *_accuracies(history[-1])]
    best = session.progress.best_validation()
    if best is not None:
        parts.append(f"best validation {best.accuracy:.2f}% at step {best.step}")
    console.print(", ".join([*parts, f"{values['steps_per_second']:.1f} steps/s"]))
    for callback in session.callbacks:
        for warning in callback.warnings(history):
            console.warn(warning)


def _accuracies(entry: HistoryEntry) -> list[str]:
    """Return the accuracies, ``test 96.25%`` and the like, for each set of images."""
    accuracies = {"validation": entry.validation_accuracy, "test": entry.test_accuracy}
    return [f"{name} {value:.2f}%" for name, value in accuracies.items() if value is not None]


def _short_accuracies(entries: Sequence[HistoryEntry]) -> str:
    """Return the accuracies for a progress bar, ``val 95.00%, test 96.25%``."""
    texts = [text for entry in entries for text in _accuracies(entry)]
    return ", ".join(texts).replace("validation", "val")
