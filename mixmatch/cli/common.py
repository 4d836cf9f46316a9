"""What all commands share: arguments, ``--import``, signals and exit codes."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from mixmatch.errors import Diverged, Interrupted, PendingSignals, Stopped, UserError, single_line


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--import FILE``, and with ``key=value`` overrides if ``overrides`` describes them."""

    def __init__(
        self,
        usage: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        overrides: str | None = None,
        add_help: bool = True,
    ) -> None:
        super().__init__(
            usage=usage,
            description=description,
            epilog=epilog,
            add_help=add_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
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


def add_run_dir(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """Add ``--run-dir DIRECTORY`` with its help text."""

    def directory(value: str) -> Path:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError("must be UTF-8; TensorBoard takes no other paths") from None
        if not value:
            raise argparse.ArgumentTypeError("must be the path of a directory")
        return Path(value)

    parser.add_argument("--run-dir", type=directory, metavar="DIRECTORY", required=required, help=text)


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
        sys.modules[spec.name] = module  # for annotations and pickle
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file can raise anything
        raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error


@contextmanager
def catch_stop_signals() -> Iterator[PendingSignals]:
    """Collect SIGINT and SIGTERM, so that training stops after the current step; a second SIGINT stops it at once."""
    pending = PendingSignals()

    def handle(number: int, frame: object) -> None:
        if pending.at_once or (pending and number == signal.SIGINT):
            raise Interrupted(number)
        pending.append(number)

    # A shell starts background jobs with SIGINT ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of any kind can be printed
    rank = os.environ.get("RANK", "0")  # set by torchrun
    try:
        for path in Parser(add_help=False).parse_known_args(arguments)[0].imports:
            import_file(path)
        body(make_parser().parse_intermixed_args(arguments))
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
        print(f"error: {'' if rank == '0' else f'rank {rank}: '}{single_line(error)}", file=sys.stderr)
        return 2
    return 0
