"""Runs as a parcel: one folder of files small enough to be moved anywhere, for machines that keep nothing.

A parcel is a tar archive cut into parts, and parcel.json, which is written last: the parts in order with their
checksums, and how far each run is.
"""

import hashlib
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixmatch.errors import UserError
from mixmatch.files import explain_os_errors, write_atomically
from mixmatch.run import RunDirectory

PART_BYTES = 15 * 2**20
INDEX = "parcel.json"
MEMBER = re.compile(
    r"[A-Za-z0-9][\w.-]*/"
    r"(config\.yml|split\.json|metrics\.jsonl|results\.json|checkpoints/step-\d+\.safetensors)"
)


def pack(runs: Sequence[Path], folder: Path) -> int:
    """Write what ``runs`` need to be continued to ``folder``, in place of a parcel that is there.

    The old parcel is whole until the new one is.

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
        parts = []
        while content := whole.read(PART_BYTES):
            digest = hashlib.sha256(content).hexdigest()
            parts.append({"name": f"part-{len(parts):03}-{digest[:12]}.tar", "sha256": digest})
            write_atomically(folder / parts[-1]["name"], content)
        index = {"parts": parts, "runs": {run.name: RunDirectory(run).newest_step() for run in runs}}
        write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())
        for part in {*folder.glob("part-*.tar")} - {folder / part["name"] for part in parts}:
            part.unlink()
    return size


def runs_in(folder: Path) -> dict[str, int]:
    """Return the names of a parcel's runs and the steps that they are at; none if there is no parcel.

    Raises:
        UserError: if it is damaged.
    """
    return _read_index(folder)["runs"] if (folder / INDEX).exists() else {}


def unpack(folder: Path, runs: Path) -> list[str]:
    """Put the runs of a parcel into ``runs``; those that are there and as far are left as they are.

    Returns:
        The names of the runs that were taken.

    Raises:
        UserError: if there is no parcel, it is damaged or holds anything but runs, or a run in it is further than the
            one that is there.
    """
    index = _read_index(folder)
    for name, step in index["runs"].items():
        here = RunDirectory(runs / name).newest_step()
        if (runs / name).exists() and here < step:
            raise UserError(
                f"{runs / name}: is at step {here}, but at {step} in {folder}; remove the one here to take that one"
            )
    with explain_os_errors(runs), tempfile.TemporaryFile() as whole:
        runs.mkdir(parents=True, exist_ok=True)
        for part in index["parts"]:
            try:
                content = (folder / part["name"]).read_bytes()
            except OSError as error:
                raise UserError(f"{folder / part['name']}: {error.strerror}; the parcel needs all its parts") from None
            if hashlib.sha256(content).hexdigest() != part["sha256"]:
                raise UserError(f"{folder / part['name']}: is damaged; bring the parcel again")
            whole.write(content)
        whole.seek(0)
        with tempfile.TemporaryDirectory(dir=runs, prefix=".parcel-") as opened:
            try:
                with tarfile.open(fileobj=whole, mode="r:") as archive:
                    for member in archive.getmembers():
                        if not member.isfile() or not MEMBER.fullmatch(member.name):
                            raise UserError(f"{folder}: {member.name!r} has no place in a parcel; it is not ours")
                    archive.extractall(opened, filter="data")
            except tarfile.TarError as error:
                raise UserError(f"{folder}: is no parcel ({error})") from None
            taken = [run for run in sorted(Path(opened).iterdir()) if not (runs / run.name).exists()]
            for run in taken:
                shutil.move(run, runs / run.name)
    return [run.name for run in taken]


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        return {
            "parts": [{"name": str(part["name"]), "sha256": str(part["sha256"])} for part in index["parts"]],
            "runs": {str(name): int(step) for name, step in index["runs"].items()},
        }
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no parcel ({INDEX}); give --unpack a folder that --pack wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX}: is damaged ({type(error).__name__}: {error})") from None
