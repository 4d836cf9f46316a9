"""What all commands share: arguments, ``--import``, printed log records and exit codes."""

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mixmatch.errors import Diverged, Interrupted, Stopped, UserError, single_line
from mixmatch.output import print_log

if TYPE_CHECKING:
    from mixmatch.runs.results import RunResults  # imports torch

SCRIPTS = {"train": "main.py", "pseudo-label": "pseudo_label.py", "predict": "predict.py"}  # of a checkout
MAX_LABELS_FOR_STAGE = 250  # the most with which docs/results.md shows a significant gain of a SoftMatch stage
# Of the stages that docs/results.md measures; in a few hundred steps the paper's slow averages would not arrive.
SHORT_RUN = 20_000
SHORT_STAGE = " softmatch.unlabeled_ratio=1 softmatch.momentum=0.99 pseudo_label.lr_schedule=linear"


def command_line(subcommand: str) -> str:
    """Return how the user starts a subcommand: ``mixmatch predict``, or ``python3 predict.py`` in a checkout."""
    program = Path(sys.argv[0])
    if program.name in SCRIPTS.values() and subcommand in SCRIPTS:
        script = Path(SCRIPTS[subcommand])
        if program.parent.resolve() != Path.cwd():
            script = program.parent / script
        return f"python3 {shlex.quote(str(script))}"
    if program.stem == "mixmatch":
        is_on_path = shutil.which("mixmatch") == sys.argv[0]
        return f"{'mixmatch' if is_on_path else shlex.quote(str(program))} {subcommand}"
    return f"python3 -m mixmatch {subcommand}"


def next_steps(results: "RunResults", run_dir: Path, imports: Sequence[Path] = ()) -> list[str]:
    """Return the commands that go on from a finished run, one per line.

    Args:
        results: of the run.
        run_dir: its directory.
        imports: files of ``--import`` that the run needs.
    """
    directory = shlex.join([str(run_dir), *(text for path in imports for text in ("--import", str(path)))])
    lines = [f"predict: {command_line('predict')} --run-dir {directory} IMAGES"]
    best = results.best_validation
    if best is not None and best.step != results.steps:
        lines.append(f"predict with the best checkpoint by validation accuracy, step {best.step}: add --best")
    if results.pseudo_label is None and results.method == "mixmatch" and results.num_labeled <= MAX_LABELS_FOR_STAGE:
        stage = f"{command_line('pseudo-label')} --run-dir {directory} pseudo_label.method=softmatch"
        stage += SHORT_STAGE * (results.steps < SHORT_RUN)
        lines.append(f"continue with SoftMatch: {stage}")
    lines.append(f"curves: tensorboard --logdir {shlex.quote(str(run_dir.parent))}")
    return lines


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--import FILE``, and with ``key=value`` overrides if ``overrides`` describes them."""

    def __init__(self, *, overrides: str | None = None, **options: Any) -> None:  # noqa: ANN401 - ArgumentParser's
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.add_argument(
            "--import",
            dest="imports",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="Python file that registers methods, networks or data sets; can be repeated",
        )
        if overrides:
            self.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage."""
        raise UserError(f"{message}; see --help")


def directory(value: str) -> Path:
    """Return the path of a run directory on the command line."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be UTF-8; TensorBoard takes no other paths") from None
    if not Path(value).resolve().name or not value:
        raise argparse.ArgumentTypeError("must be a directory with a name")
    return Path(value)


def add_run_dir(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """Add ``--run-dir DIRECTORY`` with its help text."""
    parser.add_argument("--run-dir", type=directory, metavar="DIRECTORY", required=required, help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--best`` and ``--device``, which say how a trained network is loaded."""
    parser.add_argument("--best", action="store_true", help="use the checkpoint with the best validation accuracy")
    parser.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda or cuda:N")


def import_file(path: Path) -> None:
    """Run a Python file that registers methods, networks or data sets.

    Raises:
        UserError: if it cannot be read or fails.
    """
    try:
        spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError("the name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.path.append(str(path.resolve().parent))  # it may import what is next to it, as a script may
        sys.modules[spec.name] = module  # for annotations and pickle
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file can raise anything
        raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error


def after_dashes(arguments: Sequence[str]) -> list[str]:
    """Return arguments without ``--``; names after it that begin with a dash get ``./``."""
    before = [*arguments, "--"].index("--")
    after = [f"./{name}" if name.startswith("-") else name for name in arguments[before + 1 :]]
    return [*arguments[:before], *after]


def run_command(
    make_parser: Callable[[], Parser], arguments: Sequence[str] | None, body: Callable[[argparse.Namespace], object]
) -> int:
    """Parse the command line, call ``body`` with the options, and return the exit code.

    Args:
        make_parser: called after the files of ``--import`` have run, so that help can list their keys.
        arguments: of the command line; None for ``sys.argv``.
        body: does the work.

    Returns:
        0 done, 1 diverged, 2 an error that the user can fix (one line on stderr), 128 + N stopped by signal N, 141
        the reader of the output is gone.
    """
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115 - closed
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of any kind can be printed
    rank = os.environ.get("RANK", "0")  # set by torchrun
    try:
        with print_log():
            for path in Parser(add_help=False).parse_known_args(arguments)[0].imports:
                import_file(path)
            body(make_parser().parse_intermixed_args(after_dashes(sys.argv[1:] if arguments is None else arguments)))
    except Stopped as stop:
        if rank == "0":
            print(stop)
        return 128 + stop.signal
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("interrupted; the same command starts again, or continues from the last checkpoint", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 141
    except (UserError, OSError) as error:
        if not (isinstance(error, UserError) and error.printed_by_main):
            print(f"error: {'' if rank == '0' else f'rank {rank}: '}{single_line(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # the disk behind it is full
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 2
    return 0
