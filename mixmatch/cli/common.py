"""What every command of this project does alike: read its arguments, heed signals, end with a documented exit code."""

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from mixmatch.errors import Diverged, Interrupted, PendingSignals, Stopped, UserError, single_line


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(f"{message}; see --help")


class Parser(OneLineParser):
    """The parser of a command, for ``[options] [key=value ...]`` or for options alone."""

    def __init__(self, usage: str, description: str, epilog: str | None = None, overrides: str | None = None) -> None:
        super().__init__(
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_import(self)
        if overrides:
            self.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Let a command take ``--import FILE``, see ``import_files``."""
    text = "Python file that brings methods, networks or data sets of yours; may be given several times"
    parser.add_argument("--import", type=Path, action="append", metavar="FILE", help=text)


def add_run(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """Let a command take ``--run-dir DIRECTORY``, or ``--folder``, which torchrun does not take for its own option."""

    def folder(value: str) -> Path:
        if not value or "\0" in value:
            raise argparse.ArgumentTypeError("must be the path of a folder")
        return Path(value)

    parser.add_argument("--run-dir", type=folder, metavar="DIRECTORY", required=required, help=text)


def import_files(arguments: Sequence[str] | None) -> None:
    """Run the Python files that the command line gives with ``--import``.

    They come before everything else, so that the keys of what they bring are known.

    Raises:
        UserError: if one cannot be read or fails.
    """
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    add_import(parser)
    options, _ = parser.parse_known_args(arguments)
    for path in getattr(options, "import") or []:
        try:
            spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
            if spec is None or spec.loader is None:
                raise ImportError("its name must end in .py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # annotations and pickles look there
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever its code does
            raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once and silently: while libraries load, Python's own way is pages of traceback."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by whoever started this, and stays so
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def check_working_directory() -> None:
    """See that the working directory is there: libraries say something else of it when they load.

    Raises:
        UserError: if it is not.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working directory cannot be used ({error.strerror}); change to another") from None


def repair_streams() -> None:
    """Open what was closed of standard input, output and error, and let both print any text."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the next file opened would be the output
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", closefd=False, errors="backslashreplace"))  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def stop_signals() -> Iterator[PendingSignals]:
    """Collect SIGINT and SIGTERM, so that the step under way can end; a second SIGINT stops at once."""
    received = PendingSignals()

    def note(number: int, frame: object) -> None:
        if received.at_once or (received and number == signal.SIGINT):
            raise Interrupted(number)
        received.append(number)

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_command(
    make_parser: Callable[[], Parser], arguments: Sequence[str] | None, body: Callable[[argparse.Namespace], object]
) -> int:
    """Read the command line, do ``body`` as it says, and return the exit code.

    Args:
        make_parser: called when what ``--import`` brings is known.
        arguments: of the command line; None for the process's own.
        body: called with the options.

    Returns:
        0 done, 1 diverged, 2 something that the user can mend (said in one line), 128 + N stopped by signal N.
    """
    repair_streams()
    rank = os.environ.get("RANK", "0")  # of the processes that torchrun has started
    try:
        check_working_directory()
        with loading():
            import_files(arguments)
            options = make_parser().parse_intermixed_args(arguments)
        body(options)
    except Stopped as stop:
        if rank == "0":
            print(stop)
        return 128 + stop.signal
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command starts again, from the last checkpoint if there is one", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    except BrokenPipeError:  # whoever read our output is gone: end as silently as other programs do
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 141
    except (UserError, OSError) as error:  # the system's own: such as a full disk behind a redirected output
        print(f"error: {f'rank {rank}: ' * (rank != '0')}{single_line(error)}", file=sys.stderr)
        return 2
    return 0
