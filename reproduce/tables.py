"""Tables of results: the runs that a table consists of.

A table is a YAML file in benchmarks/tables: rows, each a config by the keys that differ, and seeds.
"""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mixmatch.config import (
    Config,
    PseudoLabelSettings,
    apply_overrides,
    build_config,
    differing_keys,
    differing_pseudo_label_keys,
    load_config,
)
from mixmatch.config.strict_yaml import read_yaml
from mixmatch.errors import UserError
from mixmatch.pseudo_labels.start import check_overrides, stage_config, stage_path
from mixmatch.runs.directory import ROOT
from mixmatch.settings import Settings, describe_validation_error

TABLES = ROOT / "benchmarks" / "tables"
RECORDS = ROOT / "benchmarks" / "results" / "runs.jsonl"
WITHOUT_EFFECT = ("train.checkpoint_every", "train.keep_checkpoints", "train.log_every")  # on the results
IN_RUN_NAME = {"name", "seed", "method", "data.dataset", "data.root", "data.image_size", "data.num_labeled"}

Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]  # values by key


class Row(Settings):
    """A row of a table."""

    label: str = Field(pattern=r"^[^|\n]+$")
    config: str | None = None  # instead of the table's
    set: list[str] = Field([])  # key=value overrides, after the table's
    grid: Grid = Field({})  # a row for each combination of these values and those of the table's grid
    # Overrides of pseudo_label or its method's section: the row is a pseudo-label stage on the run of the other keys.
    stage: list[str] | None = None
    published: dict[str, str] = Field({})  # figures to compare with, by source
    seeds: list[int] | None = Field(None, min_length=1)  # some of the table's
    control: str | None = None  # instead of the table's

    @property
    def settings(self) -> dict[str, str]:
        """The values in ``set``, by key."""
        return dict(setting.split("=", 1) for setting in self.set if "=" in setting)


class Table(Settings):
    """A table file."""

    file: str
    data: str  # heading of the first column, such as CIFAR-10 (JPEG)
    about: str  # printed above the table
    config: str  # the name of a config, or a file relative to the table file
    set: list[str] = Field([])
    seeds: list[int] = Field(min_length=1)
    accuracy: Literal["test", "validation"] = "test"  # settings are chosen on validation images
    control: str | None = None  # label of the row that the others are compared with, seed by seed
    cost: bool = False  # show the forward passes that each row took
    median: bool = False  # show the paper's median of the last 20 evaluations too
    grid: Grid = Field({})  # of all rows
    rows: list[Row] = Field([])  # may be left out if there is a grid

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if not self.rows and not self.grid:
            raise ValueError("rows: missing; list rows, or values of keys in grid")
        return self

    @property
    def name(self) -> str:
        """The name on the command line."""
        return Path(self.file).stem if self._is_of_project() else self.file

    @property
    def records_file(self) -> Path:
        """The default file of the runs' records: one for all of this project's tables, else next to the table."""
        return RECORDS if self._is_of_project() else Path(self.file).with_suffix(".jsonl")

    def _is_of_project(self) -> bool:
        return Path(self.file).resolve().parent == TABLES.resolve()


@dataclass(frozen=True)
class RunSpec:
    """A run of a table.

    Attributes:
        name: of its run directory and its record.
        config: of the run; of a pseudo-label stage the parent's with the stage's pseudo_label section.
        parent: the run that a pseudo-label stage continues.
    """

    name: str
    config: Config
    parent: "RunSpec | None" = None

    def differing_keys(self, stored: dict[str, Any]) -> list[str]:
        """Return the keys in which the config of a trained run differs from this one."""
        try:
            config = build_config({**stored, "name": self.config.name})
        except UserError as error:  # it has keys that there are no more
            return [f"config ({error})"]
        if self.parent is None:
            return differing_keys(config, self.config, WITHOUT_EFFECT)
        settings, start_step = self.parent.config.train, config.train.steps - (config.pseudo_label.steps or 0)
        expected = stage_config(self.config, settings.steps if settings.patience is None else start_step)
        keys = differing_pseudo_label_keys(config, expected, self.parent.config.method)
        return differing_keys(config, expected, WITHOUT_EFFECT) + keys


def find_table(name: str, folder: Path = TABLES) -> Path:
    """Return the file of a table by its name; a name that ends in .yml is a file itself.

    Raises:
        UserError: if it does not exist.
    """
    file = Path(name) if name.endswith((".yml", ".yaml")) else folder / f"{name}.yml"
    if not file.exists():
        raise UserError(f"{file}: does not exist; --list lists the tables")
    return file


def read_table(file: Path) -> Table:
    """Read a table file.

    Raises:
        UserError: if it cannot be read or is invalid.
    """
    values = read_yaml(file)
    try:
        table = Table.model_validate({**values, "file": str(file)})
    except ValidationError as error:
        raise UserError(f"{file}: {describe_validation_error(error, Table)}") from None
    given = table.rows or [Row(label="grid")]
    rows = [row for row in given for row in _expand_grid(row, table.grid, keep_label=bool(table.rows))]
    table = table.model_copy(update={"rows": rows})
    labels = [row.label for row in rows]
    if len({*labels}) < len(labels):
        raise UserError(f"{file}: two rows have the same label")
    parts: list[Table | Row] = [table, *table.rows]
    for part in parts:
        if any(text.split("=")[0] == "seed" for text in part.set):
            raise UserError(f"{file}: seed: cannot be set or in a grid; list seeds in `seeds`")
        if part.control is not None and part.control not in labels:
            raise UserError(f"{file}: control: must be the label of a row, got {part.control!r}")
    for row in table.rows:
        if not {*(row.seeds or ())} <= {*table.seeds}:
            raise UserError(f"{file}: seeds of {row.label!r} must be among the table's")
    return table


def _expand_grid(row: Row, grid: Grid, keep_label: bool) -> list[Row]:
    """Return a row for each combination of the values in the grids of a table and a row; without grids, the row."""
    grid = grid | row.grid
    rows = []
    for values in itertools.product(*grid.values()):
        texts = (str(value) if isinstance(value, str | date) else json.dumps(value) for value in values)
        point = dict(zip(grid, texts, strict=True))
        parts = [f"{key.rpartition('.')[2]} = {text}" for key, text in point.items()]
        label = ", ".join([row.label, *parts] if keep_label else parts)
        settings = [*row.set, *(f"{key}={text}" for key, text in point.items())]
        rows.append(row.model_copy(update={"label": label, "set": settings, "grid": point}))
    return rows


def plan(table: Table) -> list[dict[int, RunSpec]]:
    """Return the runs of each row, by seed.

    Raises:
        UserError: if a row's config is invalid, or two rows with different configs have one name.
    """
    rows = [
        {seed: _plan_run(table, row, seed) for seed in table.seeds if row.seeds is None or seed in row.seeds}
        for row in table.rows
    ]
    known: dict[str, RunSpec] = {}
    for run in (run for row in rows for stage in row.values() for run in (stage.parent, stage) if run is not None):
        if known.setdefault(run.name, run) != run:
            raise UserError(f"{table.file}: two rows make different runs named {run.name}; set name=... in one")
    return rows


def _plan_run(table: Table, row: Row, seed: int) -> RunSpec:
    try:
        return _build_run(table, row, seed)
    except UserError as error:
        raise UserError(f"{table.file}: row {row.label!r}: {str(error).removeprefix('config: ')}") from None


def _build_run(table: Table, row: Row, seed: int) -> RunSpec:
    source = row.config or table.config
    file = Path(table.file).parent / source
    config = load_config(file if file.is_file() else source, [*table.set, *row.set, f"seed={seed}"])
    if config.pseudo_label.enabled:
        raise UserError("pseudo_label.enabled: not in a table; list the keys of the stage in `stage`")
    # Another table may need the same run: what this one sets of pseudo_label belongs to its stages.
    run = RunSpec(
        config.run_name(_name_note(row, config)), config.model_copy(update={"pseudo_label": PseudoLabelSettings()})
    )
    if row.stage is None:
        return run
    overrides = [text if "." in text.partition("=")[0] else f"pseudo_label.{text}" for text in row.stage]
    config = apply_overrides(config, overrides)
    check_overrides(config, overrides)
    of_stage = [key for key in row.grid if key.startswith("pseudo_label.")]
    return RunSpec(stage_path(Path(run.name), config.pseudo_label).name + _describe(row, of_stage), config, run)


def _name_note(row: Row, config: Config) -> str:
    """Return what the row adds to the name of its runs: the settings that are not part of it, unless it has a name."""
    keys = row.grid.keys() - {"method"} if "name" in row.settings else row.settings.keys() - IN_RUN_NAME
    if config.name is not None:  # which is then in place of the data
        keys |= row.grid.keys() - {"method"}
    return _describe(row, [key for key in row.settings if key in keys and not key.startswith("pseudo_label.")])


def _describe(row: Row, keys: Iterable[str]) -> str:
    """Return settings of a row as a part of a run's name."""
    values = ((key.rpartition(".")[2], row.settings[key].strip("[]")) for key in keys)
    return "".join(f"-{name}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for name, value in values)


def runs_in_order(table: Table) -> list[RunSpec]:
    """Return every run of a table once: by seed, then by row, and a run before the stages that continue it."""
    found: dict[str, RunSpec] = {}
    rows = plan(table)
    for seed in table.seeds:
        for run in (row[seed] for row in rows if seed in row):
            if run.parent is not None:
                found.setdefault(run.parent.name, run.parent)
            found.setdefault(run.name, run)
    return list(found.values())
