"""Use a trained network: what is on these pictures? `python3 predict.py --help` says how."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from mixmatch.cli.common import Parser, loading, run_command
from mixmatch.errors import UserError


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        usage="python3 predict.py (--run-dir DIRECTORY | --model FILE) [options] PICTURES ...",
        description="Predict the class of pictures with a trained network: a row for each file. Where a file stands "
        "below a folder that is named like a class, accuracy is said in the end.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run-dir", type=Path, metavar="DIRECTORY", help="of the run whose averaged network is used")
    source.add_argument("--model", type=Path, metavar="FILE", help="a model.safetensors that a run left")
    parser.add_argument("pictures", nargs="*", type=Path, help="files and folders")
    parser.add_argument("--best", action="store_true", help="of a run, use the best checkpoint by validation")
    parser.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, metavar="FILE", default=Path("predictions.csv"), help="the rows (CSV)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="an HTML page of the least certain pictures")
    parser.add_argument("--html-size", type=int, metavar="N", default=500, help="how many (default: 500)")
    parser.add_argument("--copy-by-class", type=Path, metavar="FOLDER", help="a copy of each file under its class")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the network as ONNX")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        if options.html_size < 1:
            raise UserError(f"--html-size: must be 1 or more, got {options.html_size}")
        if options.best and options.run_dir is None:
            raise UserError("--best: is of a run; a model file holds one network")
        if not options.pictures and options.export is None:
            raise UserError("no pictures are given, and no --export; see --help")
        check_places(options)
        with loading():
            from mixmatch.config import build_config
            from mixmatch.inference import export_onnx, load_model
            from mixmatch.training.device import choose_device
        device = choose_device(build_config({"device": options.device}, "--device").device)
        model = load_model(options.run_dir or options.model, str(device), options.best)
        if options.export is not None:
            export_onnx(model, options.export)
            print(f"{options.export}: written")
        if options.pictures:
            predict(model, options)

    return run_command(make_parser, arguments, body)


@contextmanager
def open_table(path: Path) -> Iterator[TextIO]:
    """Open a table to write; what was there under its name stays until the new one is whole."""
    from mixmatch.files import open_atomically

    device = path.exists() and not path.is_file()  # such as /dev/stdout
    with open(path, "wb") if device else open_atomically(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushes, and leaves closing to whoever opened


def check_places(options: Namespace) -> None:
    """See that pictures are there, and that what is written does not go over or among them.

    Raises:
        UserError: if not.
    """
    from PIL import Image

    from mixmatch.data.folder.decode import check_there

    check_there(options.pictures)
    resolved = [path.resolve() for path in options.pictures]
    if options.output.resolve() in resolved or options.output.suffix.lower() in Image.registered_extensions():
        raise UserError(f"--output: {options.output} is a picture; give another name for the table")
    if options.copy_by_class is not None:
        target = options.copy_by_class.resolve()
        for path in resolved:
            if target == path or path in target.parents:
                raise UserError(
                    f"--copy-by-class: {options.copy_by_class} is inside {path}, whose pictures it would multiply"
                )


def predict(model: "Classifier", options: Namespace) -> None:  # noqa: F821 - torch takes seconds to load
    """Predict all pictures as the command line says.

    Raises:
        UserError: if none could be read, or something cannot be written.
    """
    from tqdm import tqdm

    from mixmatch.cli.predictions import Score, Sheet, Table, list_files, predict_files, sort_into
    from mixmatch.files import explain_os_errors, write_atomically

    began, read, unreadable, several = time.monotonic(), 0, 0, 0
    score, sheet = Score(len(model.classes)), Sheet(model.classes, options.html_size)
    with ExitStack() as stack:
        stack.enter_context(explain_os_errors(options.output))
        rows = stack.enter_context(open_table(options.output))
        table = Table(rows, model.classes)
        files = list_files(options.pictures, model.classes)
        for prediction in tqdm(predict_files(model, files), unit="file", disable=not sys.stderr.isatty(), leave=False):
            table.write(prediction)
            if prediction.problem:
                unreadable += 1
                continue
            read += 1
            several += prediction.pages > 1
            score.add(prediction)
            if options.html is not None:
                sheet.add(prediction)
            if options.copy_by_class is not None:
                sort_into(options.copy_by_class, model.classes[prediction.label], prediction.file)
    if options.html is not None:
        write_atomically(options.html, sheet.to_html().encode("utf-8", "backslashreplace"))
    for line in score.lines(model.classes):
        print(line)
    if several:
        print(f"files with several pages, of which the first was used: {several}")
    if unreadable:
        print(f"{unreadable} of {read + unreadable} files could not be read; their rows say why")
    if not read:
        raise UserError(f"no picture could be read; {options.output} says why")
    rate = read / max(time.monotonic() - began, 1e-9)
    print(f"{read} pictures predicted, {rate:.0f} a second: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
