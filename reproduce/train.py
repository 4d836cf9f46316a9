"""Trains the runs of a table, one after the other or several at a time."""

import logging
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

import torch

from mixmatch.errors import Diverged, RunInUse, Stopped, TimeUp, UserError
from mixmatch.output import log
from mixmatch.pseudo_labels.start import start_stage
from mixmatch.runs.directory import RunDirectory
from mixmatch.signals import catch_stop_signals
from mixmatch.training.loop import train
from mixmatch.training.results import summarize
from reproduce.results import read_records, save_record
from reproduce.tables import RunSpec

POLL_SECONDS = 0.2


def train_runs(runs: Sequence[RunSpec], options: Namespace, deadline: float) -> bool:
    """Train runs that are not finished, and save their records.

    Args:
        runs: each after the run that it continues.
        options: of the command line.
        deadline: the value of time.monotonic() at which to stop.

    Returns:
        Whether all runs are finished.

    Raises:
        Diverged: after all other runs are trained, if some diverged.
    """
    diverged, complete = list[str](), True
    for run in runs:
        if time.monotonic() >= deadline:
            return False
        try:
            train_and_save(run, options, deadline)
        except RunInUse as error:
            complete = False
            print(f"{run.name}: skipped ({error})", flush=True)
        except TimeUp as stop:
            print(stop)
            return False
        except Diverged as error:
            diverged.append(run.name)
            print(f"{run.name}: {error}", file=sys.stderr)
    if diverged:
        raise Diverged(f"{len(diverged)} of {len(runs)} runs diverged: {', '.join(diverged)}")
    return complete


def train_in_parallel(runs: Sequence[RunSpec], options: Namespace, deadline: float) -> bool:
    """Train runs as ``train_runs`` does, ``options.jobs`` at a time, each by a command of its own.

    A job has its share of the CPU cores, unless OMP_NUM_THREADS is set, and one of the visible GPUs. Stages wait for
    the runs that they continue.

    Raises:
        Stopped: at SIGINT or SIGTERM, when all jobs have written their checkpoints.
        Diverged: after all other runs are trained, if some diverged.
        UserError: if a job failed, after those that were running.
    """
    finished = [run for run in runs if is_finished(run, options) and is_ready(run, options)]
    train_runs(finished, options, math.inf)  # saves their records
    waiting = [run for run in runs if run not in finished]
    jobs: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    codes: dict[str, int] = {}
    with catch_stop_signals() as signals:
        try:
            while True:
                for slot, (name, process) in [*jobs.items()]:
                    if process.poll() is not None:
                        codes[name] = process.returncode
                        del jobs[slot]
                if signals:
                    raise Stopped(signals[0], "stopped; the same command continues")
                if time.monotonic() >= deadline or {*codes.values()} - {0, 1}:
                    waiting.clear()
                free = [slot for slot in range(options.jobs) if slot not in jobs]
                ready = (run for run in [*waiting] if is_ready(run, options))
                for slot, run in zip(free, ready, strict=False):  # reads no results while no slot is free
                    waiting.remove(run)
                    jobs[slot] = run.name, start_job(run, slot, options, deadline)
                if not jobs:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for _, process in jobs.values():
                process.terminate()  # it writes a checkpoint
            for _, process in jobs.values():
                process.wait()
    failed = [name for name, code in codes.items() if code not in (0, 1)]
    if failed:
        raise UserError(f"{', '.join(failed)}: ended with exit code {codes[failed[0]]}; see above")
    diverged = [name for name, code in codes.items() if code == 1]
    if diverged:
        raise Diverged(f"{len(diverged)} of {len(runs)} runs diverged or failed: {', '.join(diverged)}; see above")
    return all(is_finished(run, options) for run in runs)


def start_job(run: RunSpec, slot: int, options: Namespace, deadline: float) -> subprocess.Popen[bytes]:
    """Start the command that trains one run, on the share of the machine with the number ``slot``."""
    command = [sys.executable, "-m", "reproduce", options.table, "--run", run.name, "--quiet"]
    command += ["--runs", str(options.runs), "--tables", str(options.tables), "--results", str(options.results)]
    for path in options.imports:
        command += ["--import", str(path)]
    if deadline < math.inf:
        minutes = max(1e-6, (deadline - time.monotonic()) / 60)  # the time may have ended since it was looked at
        command += ["--minutes", str(minutes)]
    environment = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // options.jobs))} | os.environ
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = [device for device in devices if device] or [*map(str, range(torch.cuda.device_count()))]
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return subprocess.Popen(command, env=environment)  # noqa: S603 - this program


def is_ready(run: RunSpec, options: Namespace) -> bool:
    """Return whether a run continues no other, or one that is finished."""
    return run.parent is None or is_finished(run.parent, options)


def is_finished(run: RunSpec, options: Namespace) -> bool:
    """Return whether the directory of a run has results, of as many steps as the table asks for."""
    settings = run.config.train if run.parent is None else None  # a stage has steps of its own
    return RunDirectory(options.runs / run.name).read_results(settings) is not None


def train_and_save(run: RunSpec, options: Namespace, deadline: float) -> None:
    """Train a run to its end, unless it is finished, and save its record.

    Raises:
        RunInUse: if another process trains the run, or it continues a run that is not finished.
    """
    path, config, start = options.runs / run.name, run.config, None
    finished = is_finished(run, options)
    if run.parent is not None:
        parent = options.runs / run.parent.name
        if not is_finished(run.parent, options):
            raise RunInUse(f"{parent} is not finished; train it first")
        config, start = start_stage(parent, path, config)
    quiet = options.quiet or finished
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    results = train(config, path, quiet=quiet, deadline=deadline, start=start)
    record = read_records(options.results).get(run.name)
    if record is None or record.results != results:
        save_record(path, results, options.results)
    if options.quiet and not finished:
        print(f"{run.name}: {summarize(results)}", flush=True)
