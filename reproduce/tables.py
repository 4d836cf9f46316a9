"""Tables of results: which runs a table is made of.

A table is a YAML file under benchmarks/tables/: rows, each a config by what differs, and seeds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mixmatch.config import (
    Config,
    PseudoLabelSettings,
    differing_keys,
    differing_keys_of_rounds,
    load_config,
    override,
)
from mixmatch.config.strict_yaml import read_yaml
from mixmatch.errors import UserError
from mixmatch.pseudo_labels.start import check_overrides, config_of_round, round_path
from mixmatch.runs.directory import ROOT
from mixmatch.settings import Settings, explain

TABLES = ROOT / "benchmarks" / "tables"


class Row(Settings):
    """A line of a table."""

    label: str = Field(pattern=r"^[^|\n]+$")
    config: str | None = None  # in place of the table's
    set: list[str] = Field([])  # key=value, laid over the table's
    # key=value of pseudo_label, or section.key=value of its method: the row is a round on the run of the rest
    round: list[str] | None = None
    published: dict[str, str] = Field({})  # figures to compare with, by source
    seeds: list[int] | None = Field(None, min_length=1)  # of the table's, if not all
    control: str | None = None  # in place of the table's


class Table(Settings):
    """What a table file holds, and which it is."""

    file: str
    data: str  # what the figures are of, such as CIFAR-10 (JPEG)
    about: str  # said above the rendered table
    config: str  # a config file; its path begins at the repository, or at the table file if it is there
    set: list[str] = Field([])
    seeds: list[int] = Field(min_length=1)
    control: str | None = None  # label of the row that the others are compared with, seed by seed
    passes: bool = False  # show what each row cost: to compare methods at equal compute
    # What stands for a run: the median of its last 20 evaluations, as in the paper, or the last one, where runs are so
    # short that these would be most of them.
    accuracy: Literal["median", "last"] = "median"
    rows: list[Row] = Field(min_length=1)


@dataclass(frozen=True)
class RunSpec:
    """A run that a table needs.

    Attributes:
        name: of its run directory and its result file.
        config: the run's; of a round, its parent's with the round's pseudo_label section.
        parent: the run that a round goes on from, None for other runs.
    """

    name: str
    config: Config
    parent: "RunSpec | None" = None

    def differing(self, stored: Config) -> list[str]:
        """Return the keys in which a run's stored config is not this one's."""
        if self.parent is None:
            return differing_keys(stored, self.config)
        expected = config_of_round(self.config, self.parent.config.train.steps)
        return differing_keys(stored, expected) + differing_keys_of_rounds(stored, expected, self.parent.config.method)


def table_files(folder: Path = TABLES) -> list[Path]:
    """Return the table files in a folder, by name."""
    return sorted(folder.glob("*.yml"), key=lambda file: file.stem)


def arguments_of(file: Path) -> str:
    """Return the arguments that name a table: ``labels --data digits`` for this project's ``labels-digits.yml``."""
    return file.stem.replace("-", " --data ", 1) if file.parent == TABLES else str(file)


def find_table(name: str, data: str | None, folder: Path = TABLES) -> Path:
    """Return the file of the table ``name`` for ``data``; a name that ends in .yml is a file itself.

    Raises:
        UserError: if there is none.
    """
    if name.endswith((".yml", ".yaml")):
        return Path(name)
    named = [file for file in table_files(folder) if file.stem.startswith(f"{name}-")]
    file = named[0] if data is None and len(named) == 1 else folder / f"{name}-{data or 'cifar10'}.yml"
    if not file.exists():
        known = ", ".join(map(arguments_of, table_files(folder)))
        raise UserError(f"{name} --data {data}: is no table; there are {known}")
    return file


def read_table(file: Path) -> Table:
    """Read a table file.

    Raises:
        UserError: in one line, if it cannot be read or is none.
    """
    values = read_yaml(file)
    try:
        table = Table.model_validate({**values, "file": str(file)})
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, Table)}") from None
    labels = [row.label for row in table.rows]
    if len({*labels}) < len(labels):
        raise UserError(f"{file}: two rows have the same label")
    for part in (table, *table.rows):
        if part.control is not None and part.control not in labels:
            raise UserError(f"{file}: control: must be the label of a row, got {part.control!r}")
    for row in table.rows:
        if not {*(row.seeds or ())} <= {*table.seeds}:
            raise UserError(f"{file}: seeds of {row.label!r} must be among the table's")
    return table


def plan(table: Table) -> list[dict[int, RunSpec]]:
    """Return the runs of each row, by seed.

    Raises:
        UserError: if a row's config is not one, or two rows with different configs have one name.
    """
    rows = [{seed: _plan_run(table, row, seed) for seed in seeds_of(row, table)} for row in table.rows]
    known: dict[str, RunSpec] = {}
    for run in (run for row in rows for run in row.values()):
        if known.setdefault(run.name, run) != run:
            raise UserError(f"{table.file}: two rows make different runs named {run.name}; set name=... in one")
    return rows


def seeds_of(row: Row, table: Table) -> list[int]:
    """Return the seeds that a row is trained with."""
    return [seed for seed in table.seeds if row.seeds is None or seed in row.seeds]


def _plan_run(table: Table, row: Row, seed: int) -> RunSpec:
    beside = Path(table.file).parent / (row.config or table.config)
    file = beside if beside.exists() else ROOT / (row.config or table.config)
    config = load_config(file, [*table.set, *row.set, f"seed={seed}"])
    # What the table says of rounds is no part of the run before them, which another table may need as well.
    run = RunSpec(config.run_name(), config.model_copy(update={"pseudo_label": PseudoLabelSettings()}))
    if row.round is None:
        return run
    settings = [text if "." in text.partition("=")[0] else f"pseudo_label.{text}" for text in row.round]
    config = override(config, settings)
    check_overrides(config, settings)
    return RunSpec(round_path(Path(run.name), config.pseudo_label).name, config, run)


def in_order(table: Table) -> list[RunSpec]:
    """Return every run that a table needs once: by seed, then by row, and a run before the rounds on it."""
    found: dict[str, RunSpec] = {}
    rows = plan(table)
    for seed in table.seeds:
        for row in (row for row in rows if seed in row):
            for run in (row[seed].parent, row[seed]):
                if run is not None:
                    found.setdefault(run.name, run)
    return list(found.values())
