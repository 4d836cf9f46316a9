"""Tables of results: which runs a table is made of, the files that keep what they gave, and the rendered table.

A table is a YAML file under benchmarks/tables/: rows, each a config by what differs, and seeds. A finished run leaves a
result file under benchmarks/results/runs/, and a table is rendered from these alone.
"""

import json
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from scipy.stats import t as student

from mixmatch.config import (
    Config,
    PseudoLabel,
    Section,
    differing_keys,
    differing_keys_of_rounds,
    explain,
    load_config,
    override,
    read_yaml,
)
from mixmatch.errors import UserError
from mixmatch.files import write_atomically
from mixmatch.rounds import config_of_round, round_path
from mixmatch.run import ROOT

TABLES = ROOT / "benchmarks" / "tables"
RESULTS = ROOT / "benchmarks" / "results" / "runs"
NOTHING = "-"  # what a table says of runs that are not there


class Row(Section):
    """A line of a table."""

    label: str = Field(pattern=r"^[^|\n]+$")
    config: str | None = None  # in place of the table's
    set: list[str] = Field([])  # key=value, laid over the table's
    round: list[str] | None = None  # key=value of pseudo_label: the row is a round on the run that the rest describes
    published: dict[str, str] = Field({})  # figures to compare with, by source


class Table(Section):
    """What a table file holds, and which it is."""

    file: str
    data: str  # what the figures are of, such as CIFAR-10 (JPEG)
    about: str  # said above the rendered table
    config: str  # a config file; its path begins at the repository, or at the table file if it is there
    set: list[str] = Field([])
    seeds: list[int] = Field(min_length=1)
    control: str | None = None  # label of the row that the others are compared with, seed by seed
    rows: list[Row] = Field(min_length=1)


@dataclass(frozen=True)
class Planned:
    """A run that a table needs.

    Attributes:
        name: of its run directory and its result file.
        config: the run's; of a round, its parent's with the round's pseudo_label section.
        parent: the run that a round goes on from, None for other runs.
    """

    name: str
    config: Config
    parent: "Planned | None" = None

    def differing(self, stored: Config) -> list[str]:
        """Return the keys in which a run's stored config is not this one's."""
        if self.parent is None:
            return differing_keys(stored, self.config)
        expected = config_of_round(self.config, self.parent.config.train.steps)
        return differing_keys(stored, expected) + differing_keys_of_rounds(stored, expected)


def table_files() -> list[Path]:
    """Return the files of this project's tables, by name."""
    return sorted(TABLES.glob("*.yml"), key=lambda file: file.stem)


def arguments_of(file: Path) -> str:
    """Return the arguments that name a table: ``labels --data digits`` for this project's ``labels-digits.yml``."""
    return file.stem.replace("-", " --data ", 1) if file.parent == TABLES else str(file)


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
    if table.control is not None and table.control not in labels:
        raise UserError(f"{file}: control: must be the label of a row, got {table.control!r}")
    return table


def plan(table: Table) -> list[dict[int, Planned]]:
    """Return the runs of each row, by seed.

    Raises:
        UserError: if a row's config is not one, or two rows with different configs have one name.
    """
    rows = [{seed: _plan_run(table, row, seed) for seed in table.seeds} for row in table.rows]
    known: dict[str, Planned] = {}
    for run in (run for row in rows for run in row.values()):
        if known.setdefault(run.name, run) != run:
            raise UserError(f"{table.file}: two rows make different runs named {run.name}; set name=... in one")
    return rows


def _plan_run(table: Table, row: Row, seed: int) -> Planned:
    beside = Path(table.file).parent / (row.config or table.config)
    file = beside if beside.exists() else ROOT / (row.config or table.config)
    config = load_config(file, [*table.set, *row.set, f"seed={seed}"])
    # What the table says of rounds is no part of the run before them, which another table may need as well.
    run = Planned(config.run_name(), config.model_copy(update={"pseudo_label": PseudoLabel()}))
    if row.round is None:
        return run
    config = override(config, [f"pseudo_label.{setting}" for setting in row.round])
    return Planned(round_path(Path(run.name), config.pseudo_label).name, config, run)


def save_result(run: Path, results: Path) -> None:
    """Keep what a finished run gave: its config, results.json and metrics.jsonl, with commit and date, in one file.

    Args:
        run: the run directory.
        results: the folder of result files.
    """
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    content = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "config": read_yaml(run / "config.yml"),
        "results": json.loads((run / "results.json").read_bytes()),
        **{f"metrics.{key}": [_brief(entry.get(key)) for entry in history] for key in history[-1] if key != "guesses"},
    }
    # A line for each entry, for git to compare.
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()) + "\n}\n"
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / f"{run.name}.json", text.encode())


def load_result(run: Planned, results: Path) -> dict[str, Any] | None:
    """Return what ``save_result`` kept of a run, None if it kept nothing.

    Raises:
        UserError: if the file cannot be read, or is of another config.
    """
    file = results / f"{run.name}.json"
    try:
        content = json.loads(file.read_bytes())
        stored = Config.model_validate(content["config"])
        content["results"]["test_accuracy"], content["date"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no result file ({type(error).__name__}: {error}); remove it") from None
    differing = run.differing(stored)
    if differing:
        raise UserError(
            f"{file}: is of another config than the table's: {', '.join(differing)}; give the row a name of its own "
            "(set: [name=...]), use another --results, or remove the file"
        )
    return content


def render(table: Table, results: Path) -> str:
    """Return the table in Markdown, from result files alone; what has not been run is a dash.

    Raises:
        UserError: if a result file does not fit.
    """
    rows = []
    for runs in plan(table):
        found = {seed: load_result(run, results) for seed, run in runs.items()}
        rows.append({seed: content for seed, content in found.items() if content is not None})
    figures = [
        {seed: figure for seed, content in row.items() if (figure := content["results"]["test_accuracy"]) is not None}
        for row in rows
    ]
    sources = list(dict.fromkeys(source for row in table.rows for source in row.published))
    rounds = any(row.round for row in table.rows)
    control = next((i for i, row in enumerate(table.rows) if row.label == table.control), None)

    head = [table.data, "test accuracy (%)"]
    head += [f"against {table.control}, 95% interval"] * (control is not None)
    head += ["coverage (%)", "precision (%)"] * rounds + ["seeds", "steps", *sources]
    lines = [head, ["---"] * len(head)]
    for i, row in enumerate(table.rows):
        line = [row.label, _spread(list(figures[i].values()))]
        if control is not None:
            pairs = [(figures[i][seed], figures[control][seed]) for seed in figures[i] if seed in figures[control]]
            line.append(NOTHING if i == control else _interval([a - b for a, b in pairs]))
        contents = [content["results"] for content in rows[i].values()]
        if rounds:
            line += _coverage_and_precision(contents)
        count = len(contents)
        line.append(str(count) if count in (0, len(table.seeds)) else f"{count} of {len(table.seeds)}")
        steps = sorted({result["steps"] for result in contents})
        line.append(" and ".join(f"{number:,}" for number in steps) or NOTHING)
        lines.append(line + [row.published.get(source, NOTHING) for source in sources])

    contents = [content for row in rows for content in row.values()]
    where = "; ".join(sorted({_origin(content) for content in contents})) or "nothing has been run yet"
    text = f"{table.about.strip()} Mean ± std over seeds of the median of the last 20 evaluations, or of all if fewer."
    command = f"`python3 -m mixmatch.reproduce {arguments_of(Path(table.file))}` ({where})"
    return "\n".join([text, "", *(f"| {' | '.join(line)} |" for line in lines), "", command])


def render_into(text: str, results: Path) -> str:
    """Return Markdown with the tables in it rendered anew: what stands between ``<!-- table NAME -->`` and its end.

    Raises:
        UserError: if a table is not there, or has no end.
    """
    pattern = re.compile(r"(<!-- table ([\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
    if len(pattern.findall(text)) != text.count("<!-- table "):
        raise UserError("a '<!-- table NAME -->' line has no '<!-- end of table -->' line")
    return pattern.sub(lambda m: m[1] + render(read_table(TABLES / f"{m[2]}.yml"), results) + "\n" + m[3], text)


def _brief(value: float | None) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _origin(content: dict[str, Any]) -> str:
    """Return what computed a run: device, precision, processes if several, torch, and the commit of the code."""
    results, asked = content["results"], content["config"]["train"]["precision"]
    # Before these were part of results.json, runs were made on a CPU, by one process.
    precision = results.get("precision", "float32" if asked == "auto" else asked)
    several = f" in {results['processes']} processes" if results.get("processes", 1) > 1 else ""
    commit = results.get("commit", content.get("commit"))
    return f"{results['device']}{several}, {precision}, torch {results['torch']}, commit {commit}"


def _coverage_and_precision(results: list[dict[str, Any]]) -> list[str]:
    selections = [result["pseudo_label"]["selections"][-1] for result in results if "pseudo_label" in result]
    chosen = [entry for entry in selections if entry["selected"]]
    if not chosen:
        return [NOTHING, NOTHING]
    known = [entry["precision"] for entry in chosen if entry["precision"] is not None]
    coverage = statistics.mean(entry["coverage"] for entry in selections)
    return [f"{coverage:.1f}", f"{statistics.mean(known):.2f}" if known else NOTHING]


def _spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    if not values:
        return NOTHING
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _interval(differences: list[float]) -> str:
    """Return the mean of paired differences with its 95% confidence interval (Student's t)."""
    if not differences:
        return NOTHING
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = student.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
