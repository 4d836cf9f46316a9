"""Runs as a parcel: one folder of files small enough to be moved anywhere, for machines that keep nothing.

The parcel is a tar archive cut into parts, ``cat runs.tar.* | tar t`` lists it.
"""

import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mixmatch.errors import UserError
from mixmatch.files import explain_os_errors, write_atomically
from mixmatch.run import RunDirectory

PART_BYTES = 15 * 2**20
MEMBER = re.compile(r"[\w.-]+/(config\.yml|split\.json|metrics\.jsonl|results\.json|checkpoints/step-\d+\.safetensors)")


def pack(runs: Sequence[Path], folder: Path) -> int:
    """Write what ``runs`` need to be continued to ``folder``, in place of a parcel that is there.

    Returns:
        The parcel's bytes.

    Raises:
        UserError: if it cannot be written.
    """
    with explain_os_errors(folder), tempfile.TemporaryFile() as whole:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for run in runs:
                for file in RunDirectory(run).files_to_continue():
                    archive.add(file, f"{run.name}/{file.relative_to(run)}")
        size = whole.tell()
        whole.seek(0)
        parts = [folder / f"runs.tar.{number:03}" for number in range(-(-size // PART_BYTES))]
        for part in parts:
            write_atomically(part, whole.read(PART_BYTES))
        for part in set(folder.glob("runs.tar.*")) - set(parts):
            part.unlink()
    return size


def unpack(folder: Path, runs: Path) -> list[str]:
    """Put the runs of a parcel into ``runs``; those that are there already are left as they are.

    Returns:
        The names of the runs that were taken.

    Raises:
        UserError: if there is no parcel, or it is damaged, or holds anything but runs.
    """
    parts = sorted(folder.glob("runs.tar.*"))
    if not parts:
        raise UserError(f"{folder}: holds no parcel (runs.tar.000 and on); give --unpack a folder that --pack wrote")
    with explain_os_errors(runs), tempfile.TemporaryFile() as whole:
        runs.mkdir(parents=True, exist_ok=True)
        for part in parts:
            whole.write(part.read_bytes())
        whole.seek(0)
        with tempfile.TemporaryDirectory(dir=runs, prefix=".parcel-") as opened:
            try:
                with tarfile.open(fileobj=whole, mode="r:") as archive:
                    for member in archive.getmembers():
                        if not member.isfile() or not MEMBER.fullmatch(member.name) or member.name.startswith("."):
                            raise UserError(f"{folder}: {member.name!r} has no place in a parcel; it is not ours")
                    archive.extractall(opened, filter="data")
            except tarfile.TarError as error:
                raise UserError(f"{folder}: the parcel is damaged ({error}); pack it again") from None
            taken = [run for run in sorted(Path(opened).iterdir()) if not (runs / run.name).exists()]
            for run in taken:
                shutil.move(run, runs / run.name)
    return [run.name for run in taken]
