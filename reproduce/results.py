"""The records of finished runs: a file with a line for each run, which tables are rendered from."""

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from mixmatch.config.strict_yaml import read_yaml
from mixmatch.errors import UserError, describe_error
from mixmatch.files import explain_os_errors, write_atomically
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.results import RunResults


class ResultRecord(BaseModel):
    """A finished run.

    Attributes:
        run: the name.
        date: of the record, as year-month-day.
        config: config.yml.
        results: results.json.
        metrics: the columns of metrics.jsonl, of one entry per evaluation.
    """

    model_config = ConfigDict(extra="forbid")
    run: str
    date: str
    config: dict[str, Any]
    results: RunResults
    metrics: dict[str, list[float | None]]


def read_records(file: Path) -> dict[str, ResultRecord]:
    """Return the records in a file by run; none if the file does not exist.

    Raises:
        UserError: if it is not such a file.
    """
    try:
        records = [ResultRecord.model_validate(json.loads(line)) for line in file.read_bytes().splitlines()]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # what pydantic raises is a ValueError
        raise UserError(f"{file}: not a file of results ({describe_error(error)}); repair or remove it") from None
    return {record.run: record for record in records}


def save_record(run: Path, results: RunResults, file: Path) -> None:
    """Add a finished run to a file of records, or replace its record. Several processes may write to the file.

    Args:
        run: the run directory.
        results: of the run.
        file: created if it does not exist.

    Raises:
        UserError: if the run cannot be read or the file cannot be written.
    """
    history = [entry.model_dump() for entry in RunDirectory(run).read_metrics()]
    if not history:
        raise UserError(f"{run}: has no metrics.jsonl; remove it to train it again")
    names = [name for name, value in history[-1].items() if not isinstance(value, list)]
    record = ResultRecord(
        run=run.name,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        config=read_yaml(run / "config.yml"),
        results=results,
        metrics={name: [_round(entry.get(name)) for entry in history] for name in names},
    )
    with explain_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        records = read_records(file) | {run.name: record}
        lines = [json.dumps(records[name].model_dump()) for name in sorted(records)]
        write_atomically(file, "".join(f"{line}\n" for line in lines).encode())


def _round(value: float | None) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value
