"""The command that classifies image files with a trained model."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, add_model_options, add_run_dir, command_line, run_command
from mixmatch.errors import UserError


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        usage=f"{command_line('predict')} (--run-dir DIRECTORY | --model FILE) [options] IMAGES ...",
        description="Classify image files with a trained model and write a CSV row for each.\n"
        "Files in folders named like a class count towards the accuracy that is printed,\n"
        "unless the run was trained on their labels.",
    )
    add_run_dir(parser, "directory of the run that trained the model")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="model.safetensors or checkpoint of a run, instead of --run-dir"
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGES", help="files, and folders to search for files")
    add_model_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("predictions.csv"),
        help="CSV file of the predictions (default: predictions.csv)",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        default=0.0,
        help="give no class to images of a lower confidence, 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--copy-by-class", type=Path, metavar="DIR", help="copy each file into a folder named like its predicted class"
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the network as an ONNX file")
    parser.add_argument(
        "--export-uint8",
        action="store_true",
        help="let the ONNX file take pixels, (n, side, side, channels) uint8, instead of normalized images",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, export_and_predict)


def export_and_predict(options: Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: if the command line is wrong, the model cannot be loaded, or a file cannot be read or written.
        Stopped: after a signal; the same command continues.
    """
    from mixmatch.cli.predictions import Outputs, check_inputs, write_predictions
    from mixmatch.config import build_config
    from mixmatch.inference import export_onnx, load_model
    from mixmatch.training.device import choose_device, explain_out_of_memory

    if (options.run_dir is None) == (options.model is None):
        raise UserError("give either --run-dir or --model; see --help")
    if not 0 <= options.min_confidence <= 1:
        raise UserError(f"--min-confidence: must be from 0 to 1, got {options.min_confidence}")
    if options.best and options.model:
        raise UserError("--best: requires --run-dir; a model file holds one network")
    if options.export_uint8 and options.export is None:
        raise UserError("--export-uint8: requires --export FILE")
    if not options.images and options.export is None:
        raise UserError("give images or --export; see --help")
    if options.export is not None and options.export.suffix.lower() != ".onnx":
        raise UserError(f"--export: writes an ONNX file, {options.export} must end in .onnx")
    outputs = Outputs(options.output, options.copy_by_class, options.min_confidence)
    check_inputs(options.images, outputs)
    device = choose_device(build_config({"device": options.device}, "--device").device)
    source = options.run_dir or options.model
    with explain_out_of_memory(device):
        model = load_model(source, str(device), options.best)
        if options.export is not None:
            export_onnx(model, options.export, options.export_uint8)
            print(f"{options.export}: written")
        if options.images:
            write_predictions(model, options.images, outputs, *labeled_files(source))


def labeled_files(path: Path, seen: frozenset[Path] = frozenset()) -> tuple[set[str], bool]:
    """Return the real paths of the pictures that a run was trained on with their labels, and if these are all.

    Those of the run whose weights it started from (``init_from``) are included.

    Args:
        path: the run directory, or a model file in it.
        seen: runs that started from this one; names may go round, if runs were trained again.
    """
    from mixmatch.data.split import load_split
    from mixmatch.runs.directory import RunDirectory

    checkpoint = RunDirectory.of_checkpoint(path)
    run = checkpoint[0] if checkpoint else RunDirectory(path if path.is_dir() else path.parent)
    try:
        split, config = load_split(run.split_file), run.read_config()
        paths = [Path(config.data.root, split.files[number]) for number in split.labeled] if split.files else []
    except (UserError, IndexError):  # IndexError: a damaged split
        return set(), False
    before, knows_all, resolved = set[str](), True, run.path.resolve()
    if config.init_from and resolved not in seen:
        before, knows_all = labeled_files(Path(config.init_from), seen | {resolved})
    knows_all = knows_all and bool(split.files) and all(path.exists() for path in paths)
    return before | {os.path.realpath(path) for path in paths}, knows_all
