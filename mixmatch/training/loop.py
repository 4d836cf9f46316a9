"""The story of a run, from its config to its results: what main.py, notebooks, benchmarks and tests call."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mixmatch.config import Config, PseudoLabelSettings, TrainSettings, flat
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import PendingSignals, Stopped, TimeUp
from mixmatch.inference import Classifier, save_model
from mixmatch.methods import METHODS
from mixmatch.pseudo_labels.start import round_path, start_round
from mixmatch.runs.directory import RunDirectory, open_run
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback
from mixmatch.training.console import Console
from mixmatch.training.device import choose_device, explain_memory
from mixmatch.training.execution import list_execution_modes, select_execution_mode
from mixmatch.training.results import code_commit, describe_end, summarize, summarize_run
from mixmatch.training.setup import Session, prepare, read_finished


@contextmanager
def no_signals() -> Iterator[PendingSignals]:
    """Leave signals to the caller: in a notebook or a thread they are not the run's business."""
    yield PendingSignals()


def train(
    config: Config, path: Path | str, ranks: DistributedContext = SINGLE_PROCESS, **options: Any
) -> dict[str, Any]:
    """Train a run, and with ``pseudo_label.enabled`` a round of pseudo-labels on it, in a folder beside it.

    Arguments, results (the last run's) and what is raised as for ``train_run``.
    """
    if not config.pseudo_label.enabled:
        return train_run(config, path, ranks, **options)
    settings, alone = config.pseudo_label, {"pseudo_label": PseudoLabelSettings()}
    if settings.select == "method" and settings.method != config.method:
        alone[settings.method] = METHODS[settings.method].settings_type()  # which is the round's
    train_run(config.model_copy(update=alone), path, ranks, **options)
    beside = round_path(Path(path), config.pseudo_label)
    return train_run(ranks.from_first(lambda: start_round(Path(path), beside, config)), beside, ranks, **options)


def train_run(
    config: Config,
    path: Path | str,
    ranks: DistributedContext = SINGLE_PROCESS,
    quiet: bool = False,
    deadline: float = math.inf,
    hooks: Sequence[Callback] = (),
    signals: Callable[[], AbstractContextManager[PendingSignals]] = no_signals,
) -> dict[str, Any]:
    """Train a run to its end, continuing it if ``path`` holds a part of it.

    Args:
        config: the run's.
        path: the run directory.
        ranks: the processes that train it together.
        quiet: print nothing but warnings.
        deadline: the reading of time.monotonic() at which to stop.
        hooks: what else is done beside the loop.
        signals: entered around the loop; gives the list of signals received, which stop the run after the step under
            way. ``command.stop_signals`` is one.

    Returns:
        The contents of results.json.

    Raises:
        UserError: if anything that the user gave does not work.
        Diverged: if a loss or weight is no longer finite; the last checkpoint is good.
        Stopped: at a signal, after a checkpoint.
        TimeUp: at the deadline, after a checkpoint.
    """
    console = Console(quiet, speaks=ranks.first)
    device = choose_device(config.device, ranks, console.say)
    with open_run(Path(path), config, ranks) as run, explain_memory(config, device):
        results = read_finished(run, config, ranks)
        if results is not None:
            if ranks.first:
                run.write_config()  # its length may have been raised, and taken back
            console.say(f"{path} is finished: {summarize(results)}")
            return results

        session = prepare(run, config, device, ranks, console, list(hooks))
        commit, trainer, steps = code_commit(), session.trainer, config.train.steps
        with signals() as received, RunWriter(run, session.progress.events_size, ranks.first) as recorder:
            for line in session.opening:
                console.say(line)
            recorder.settings(flat(config), trainer.method.descriptions)
            modes = list_execution_modes(config.train, device, steps - trainer.step)
            received.at_once = len(modes) > 1  # compiling takes minutes
            select_execution_mode(trainer, modes, console.warn, console.busy)
            received.at_once = False
            with console.bar(trainer.step, steps):
                console.note(_accuracies_in_short(*session.progress.history[-1:]))
                run_steps(session, config.train, recorder, console, run, received, deadline)
                for line in [line for hook in session.hooks for line in hook.finish(steps, recorder)]:
                    console.report(line)
            recorder.finish()
            recorder.wait()

        results = summarize_run(config, session, commit)
        if ranks.first:
            network = Classifier(trainer.ema_model, session.spec, config.model, trainer.precision_name)
            save_model(network, run.path / "model.safetensors", run.held(run.path))
            run.write_results(results)
        console.say(f"done: {summarize(results)}")
        for line in describe_end(results, run.path):
            console.say(line)
        return results


def run_steps(
    session: Session,
    settings: TrainSettings,
    recorder: RunWriter,
    console: Console,
    run: RunDirectory,
    received: PendingSignals,
    deadline: float,
) -> None:
    """Take the steps that are left: train, log, evaluate, save, and stop when asked to. Raises as ``train_run``."""
    trainer, progress, hooks = session.trainer, session.progress, session.hooks
    clock = logged_at = time.monotonic()
    logged = trainer.step
    while trainer.step < settings.steps:
        for hook in hooks:
            for line in hook.before_step(trainer.step, recorder):
                console.report(line)

        trainer.train_step()
        step = trainer.step
        last = step == settings.steps
        evaluating = last or step % settings.eval_every == 0
        saving = last or step % settings.checkpoint_every == 0

        if evaluating or step % settings.log_every == 0:
            values: dict[str, Any] = trainer.read_statistics()
            values["steps_per_second"] = (step - logged) / (time.monotonic() - logged_at)
            logged = step
            recorder.scalars(values, step)
        console.advance(step)

        if evaluating:
            trainer.check_finite()
            best = progress.best_validation()
            record_evaluation(session, values, recorder, console, settings.steps)
            saving = saving or progress.best_validation() != best

        # Looked at once, by all ranks together: what arrives later waits for the next step.
        stop, time_up = trainer.ranks.largest([max(received, default=0), time.monotonic() >= deadline])
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
            raise TimeUp(f"{run.path}: the time is up at step {step}; the same command continues")


def record_evaluation(
    session: Session, values: dict[str, Any], recorder: RunWriter, console: Console, steps: int
) -> None:
    """Ask every hook what it measures, keep it with the ``values`` logged at this step, and show it."""
    trainer, history = session.trainer, session.progress.history
    step = trainer.step
    measured = session.evaluate(step, recorder)
    recorder.scalars(measured, step)
    history.append({"step": step, **values, **measured})
    recorder.metrics(history)
    if trainer.ranks.first:
        recorder.batch(trainer.preview(), session.spec.classes, step)
    console.note(_accuracies_in_short(history[-1]))
    parts = [f"step {step} of {steps}", f"loss {values['loss']:.3f}", *_accuracies(history[-1:])]
    console.report(", ".join([*parts, f"{values['steps_per_second']:.1f} steps/s"]))
    for hook in session.hooks:
        for warning in hook.warn(history):
            console.warn(warning)


def _accuracies(entries: list[dict[str, Any]]) -> list[str]:
    """Return ``test accuracy 96.25%`` and the like, for each set that an evaluation was made on."""
    return [
        f"{name} accuracy {entry[f'{name}_accuracy']:.2f}%"
        for entry in entries
        for name in ("validation", "test")
        if entry[f"{name}_accuracy"] is not None
    ]


def _accuracies_in_short(*entries: dict[str, Any]) -> str:
    """Return the accuracies for a bar, which may be short, the one first that is looked at while training."""
    return ", ".join(_accuracies(list(entries))).replace(" accuracy", "").replace("validation", "val")
