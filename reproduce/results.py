"""Results of a table: the file that keeps them, a line for each run, and the table rendered from it alone."""

import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from scipy.stats import t as student

from mixmatch.config import build_config
from mixmatch.config.strict_yaml import read_yaml
from mixmatch.errors import UserError, describe_error
from mixmatch.files import explain_os_errors, read_file, write_atomically
from mixmatch.runs.directory import ROOT
from reproduce.tables import TABLES, RunSpec, Table, arguments_of, in_order, plan, read_table

RESULTS = ROOT / "benchmarks" / "results"
MISSING = "-"  # what a table says of runs that are not there


class Selected(BaseModel):
    """What a table shows of a selection of pseudo-labels."""

    model_config = ConfigDict(extra="allow")
    selected: int
    coverage: float
    precision: float | None


class OfRound(BaseModel):
    """What a table shows of a round."""

    model_config = ConfigDict(extra="allow")
    select: str = ""
    selections: list[Selected]


class Best(BaseModel):
    """What a comparison shows of the best evaluation on validation images."""

    accuracy: FiniteFloat
    step: int


class RunResult(BaseModel):
    """What a table shows of results.json; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow")
    test_accuracy: FiniteFloat | None
    test_accuracy_last: FiniteFloat | None = None
    best_validation: Best | None = None
    steps: int
    seconds: FiniteFloat = 0.0
    device: str
    torch: str
    commit: str
    precision: str
    processes: int = 1
    passes_per_step: int | None = None
    operations_per_pass: int | None = None
    pseudo_label: OfRound | None = None


class Line(BaseModel):
    """A line of a result file: what a finished run gave, and its curves."""

    model_config = ConfigDict(extra="allow")
    run: str
    date: str
    config: dict[str, Any]
    results: RunResult

    def differing(self, planned: RunSpec) -> list[str]:
        """Return the keys in which the run was not what the table now says."""
        return planned.differing(build_config(self.config))


def result_file(table: Table, results: Path | None) -> Path:
    """Return the file that keeps a table's results: in the folder ``results``, or where the table's are by default.

    Those of this project's tables lie in benchmarks/results, those of others beside the table.
    """
    file = Path(table.file)
    folder = results or (RESULTS if file.parent == TABLES else file.parent)
    return folder / f"{file.stem}.jsonl"


def read_lines(file: Path) -> dict[str, Line]:
    """Return the lines of a result file by the names of their runs; none if there is no file.

    Raises:
        UserError: if it is no result file.
    """
    try:
        lines = [Line.model_validate_json(text) for text in read_file(file).splitlines()]
        for line in lines:
            build_config(line.config)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError, UserError) as error:
        reason = " ".join(str(error).split("\n")[:3])
        raise UserError(f"{file}: is no result file ({reason}); mend or remove it") from None
    return {line.run: line for line in lines}


def save_result(run: Path, table: Table, file: Path) -> None:
    """Keep what a finished run gave, in place of what was kept of it before: config, results and curves, with the date.

    Args:
        run: the run directory.
        table: says in which order lines stand.
        file: from ``result_file``. Several processes may write to it.
    """
    try:
        history = [json.loads(line) for line in read_file(run / "metrics.jsonl").splitlines()]
        results = json.loads(read_file(run / "results.json"))
        keys = [key for key in history[-1] if key != "guesses"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{run}: what it left cannot be read ({describe_error(error)}); train it anew") from None
    content = {
        "run": run.name,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "config": read_yaml(run / "config.yml"),
        "results": results,
        **{f"metrics.{key}": [_brief(entry.get(key)) for entry in history] for key in keys},
    }
    with explain_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        lines = {name: line.model_dump() for name, line in read_lines(file).items()} | {run.name: content}
        order = [planned.name for planned in in_order(table)]
        order += [name for name in lines if name not in order]
        text = "".join(json.dumps(lines[name]) + "\n" for name in order if name in lines)
        write_atomically(file, text.encode())


def render(table: Table, results: Path | None = None, only: str = "") -> str:
    """Return the table in Markdown, from its result file alone; what has not been run is a dash.

    Args:
        table: the table.
        results: the folder of its result file, as for ``result_file``.
        only: leave out rows whose labels begin otherwise, and what stands around them.

    Raises:
        UserError: if the result file is none.
    """
    kept = read_lines(result_file(table, results))
    planned = plan(table)
    rows = [{seed: kept[run.name].results for seed, run in runs.items() if run.name in kept} for runs in planned]
    figures = [accuracies(row, table) for row in rows]
    sources = list(dict.fromkeys(source for row in table.rows for source in row.published))
    rounds = any(row.round for row in table.rows)
    selects = {run.config.pseudo_label.select for runs in planned for run in runs.values() if run.parent}
    fixing = bool(selects - {"none", "method"})
    by_label = {row.label: i for i, row in enumerate(table.rows)}
    controls = [by_label.get(row.control or table.control) for row in table.rows]
    own = any(row.control for row in table.rows)

    head = [table.data, "test accuracy (%)"]
    if own or table.control:
        head.append("difference, 95% interval" if own else f"against {table.control}, 95% interval")
    head += ["coverage (%)"] * fixing + ["precision (%)"] * rounds + ["seeds", "steps"]
    head += ["passes over images, millions"] * table.passes + sources
    lines = [head, ["---"] * len(head)]
    for i, row in enumerate(table.rows):
        line = [row.label, spread(list(figures[i].values()))]
        if own or table.control:
            others = {} if controls[i] is None else figures[controls[i]]
            differences = [figures[i][seed] - others[seed] for seed in figures[i] if seed in others]
            line.append(MISSING if i == controls[i] else _interval(differences))
        outcomes = list(rows[i].values())
        if rounds:
            line += _coverage_and_precision(outcomes)[not fixing :]
        line.append(count_seeds(len(outcomes), len(planned[i])))
        steps = sorted({outcome.steps for outcome in outcomes})
        line.append(" and ".join(f"{number:,}" for number in steps) or MISSING)
        if table.passes:
            costs = [cost for cost in (passes_of(run, kept) for run in planned[i].values()) if cost is not None]
            line.append(f"{statistics.mean(costs) / 1e6:.2f}" if costs else MISSING)
        lines.append(line + [row.published.get(source, MISSING) for source in sources])

    if only:
        if not any(row.label.startswith(only) for row in table.rows):
            raise UserError(f"{table.file}: has no row whose label begins with {only!r}")
        shown = [line for line, row in zip(lines[2:], table.rows, strict=True) if row.label.startswith(only)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [*lines[:2], *shown])
    runs = [run for row in planned for run in row.values() if run.name in kept]
    where = "; ".join(sorted({_origin(kept[run.name], run) for run in runs})) or "nothing has been run yet"
    of_run = {"median": "median of the last 20 evaluations, or of all if fewer", "last": "last evaluation"}
    text = f"{table.about.strip()} Mean ± std over seeds of the {of_run[table.accuracy]}."
    command = f"`python3 -m reproduce {arguments_of(Path(table.file))}` ({where})"
    return "\n".join([text, "", *(f"| {' | '.join(line)} |" for line in lines), "", command])


def accuracies(outcomes: dict[int, RunResult], table: Table) -> dict[int, float]:
    """Return the accuracies that stand for runs, in percent by seed, see ``Table.accuracy``."""
    name = "test_accuracy_last" if table.accuracy == "last" else "test_accuracy"
    values = {seed: getattr(outcome, name) for seed, outcome in outcomes.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def passes_of(run: RunSpec, kept: dict[str, Line]) -> int | None:
    """Return the passes over images of a run, of a round with those of what it goes on from; None if not known."""
    outcome = kept[run.name].results if run.name in kept else None
    if outcome is None or outcome.passes_per_step is None:
        return None
    if run.parent is None:
        return outcome.passes_per_step * outcome.steps
    before = passes_of(run.parent, kept)
    if before is None:
        return None
    return before + outcome.passes_per_step * (outcome.steps - kept[run.parent.name].results.steps)


def render_into(text: str, tables: Path = TABLES, results: Path | None = None) -> str:
    """Return Markdown with the tables in it rendered anew: what stands between ``<!-- table NAME -->`` and its end.

    With ``<!-- table NAME: BEGINNING -->`` only the rows whose labels begin so.

    Args:
        text: the Markdown.
        tables: the folder of table files.
        results: the folder of result files, as for ``result_file``.

    Raises:
        UserError: if a table is not there, or has no end.
    """
    pattern = re.compile(r"(<!-- table ([\w.-]+)(?:: (.+?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
    if len(pattern.findall(text)) != text.count("<!-- table "):
        raise UserError("a '<!-- table NAME -->' line has no '<!-- end of table -->' line")

    def anew(match: re.Match) -> str:
        return match[1] + render(read_table(tables / f"{match[2]}.yml"), results, match[3] or "") + "\n" + match[4]

    return pattern.sub(anew, text)


def _brief(value: float | None) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _origin(line: Line, planned: RunSpec) -> str:
    """Return what computed a run: device, precision, processes if several, torch, the commit, and what has changed."""
    outcome = line.results
    several = f" in {outcome.processes} processes" if outcome.processes > 1 else ""
    text = f"{outcome.device}{several}, {outcome.precision}, torch {outcome.torch}, commit {outcome.commit}"
    differing = line.differing(planned)
    return text + (f", where the config was another: {', '.join(differing)}" if differing else "")


def _coverage_and_precision(outcomes: list[RunResult]) -> list[str]:
    rounds = [outcome.pseudo_label for outcome in outcomes if outcome.pseudo_label is not None]
    selections = [each.selections[-1] for each in rounds]
    chosen = [entry for entry in selections if entry.selected]
    if not chosen:
        return [MISSING, MISSING]
    known = [entry.precision for entry in chosen if entry.precision is not None]
    coverage = statistics.mean(entry.coverage for entry in selections)
    if any(each.select == "method" for each in rounds):  # no label is fixed; precision is of predictions at the end
        return [MISSING, f"{statistics.mean(known):.2f}" if known else MISSING]
    return [f"{coverage:.1f}", f"{statistics.mean(known):.2f}" if known else MISSING]


def count_seeds(count: int, planned: int) -> str:
    """Return how many seeds there are, of how many if some but not all."""
    return str(count) if count in (0, planned) else f"{count} of {planned}"


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    if not values:
        return MISSING
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _interval(differences: list[float]) -> str:
    """Return the mean of paired differences with its 95% confidence interval (Student's t)."""
    if not differences:
        return MISSING
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = student.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
