"""Tables in Markdown and CSV, rendered from the records of runs alone."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import ttest_1samp

from mixmatch.errors import UserError
from mixmatch.files import csv_text
from mixmatch.markdown import MISSING, markdown_table, mean, mean_std
from reproduce.results import ResultRecord, read_records
from reproduce.tables import TABLES, Row, RunSpec, Table, plan, read_table


def render(table: Table, file: Path | None = None) -> str:
    """Return a table in Markdown.

    Args:
        table: the table.
        file: the records; ``Table.records_file`` by default.

    Raises:
        UserError: if the records cannot be read.
    """
    records = read_records(file or table.records_file)
    runs = dict(zip((row.label for row in table.rows), plan(table), strict=True))
    rows = [row_cells(table, row, runs, records) for row in table.rows]
    # A column in which all cells are None does not apply to the table.
    names = dict.fromkeys(name for cells in rows for name, cell in cells.items() if cell is not None)
    names = dict.fromkeys(name for name in [*rows[0], *names] if name in names)
    text = markdown_table([*names], [[cells.get(name) or MISSING for name in names] for cells in rows])
    parts = [f"{table.about.strip()} Mean ± std over seeds of the last evaluation.", text]
    outdated, commits = [], set()
    for label, specs in runs.items():
        trained = [run for run in specs.values() if run.name in records]
        commits |= {(records[run.name].date, records[run.name].results.commit) for run in trained}
        differing = (text for run in trained for text in run.differing_keys(records[run.name].config))
        keys = dict.fromkeys(text.partition(" ")[0] for text in differing)
        outdated += [f"{label} ({', '.join(keys)})"] if keys else []
    trained_at = ", ".join(dict.fromkeys(commit for _, commit in sorted(commits)))
    parts.append(f"`python3 -m reproduce {table.name}`" + f" (trained at {trained_at})" * bool(trained_at))
    if outdated:
        parts.append(f"Trained with earlier settings, which differ in: {'; '.join(outdated)}.")
    return "\n\n".join(parts)


def row_cells(
    table: Table, row: Row, runs: dict[str, dict[int, RunSpec]], records: dict[str, ResultRecord]
) -> dict[str, str | None]:
    """Return the cells of a row by column; None where the column does not apply.

    Args:
        table: the row's table.
        row: the row.
        runs: of each row, by label and seed.
        records: of finished runs, by name.
    """
    planned = runs[row.label]
    results = [records[run.name].results for run in planned.values() if run.name in records]
    accuracy = accuracies(planned, records, table.accuracy)
    medians = [result.test_accuracy_median20 for result in results]
    control = row.control or table.control
    difference = None
    if control and control != row.label:
        theirs = accuracies(runs[control], records, table.accuracy)
        difference = mean_interval([accuracy[seed] - theirs[seed] for seed in accuracy if seed in theirs])
        if table.control not in (None, control):
            difference += f" (against {control})"
    selections = [result.pseudo_label.selections[-1] for result in results if result.pseudo_label]
    settings = [run.config.pseudo_label for run in planned.values() if run.parent]
    selects_labels = any(setting.method is None and setting.select != "none" for setting in settings)
    costs = [forward_passes(run, records) for run in planned.values()]
    return {
        table.data: row.label,
        f"{table.accuracy} accuracy (%)": mean_std(accuracy.values()),
        "median of the last 20 (%)": mean_std(medians) if table.median else None,
        f"against {table.control}, 95% interval" if table.control else "difference, 95% interval": difference,
        "coverage (%)": mean((s.coverage for s in selections), ".1f") if selects_labels else None,
        "precision (%)": mean(s.precision for s in selections) if selects_labels else None,
        "seeds": count_seeds(len(results), len(planned)),
        "steps": " and ".join(f"{steps:,}" for steps in sorted({result.steps for result in results})),
        "forward passes, millions": mean(cost and cost / 1e6 for cost in costs) if table.cost else None,
        **row.published,
    }


def render_into(text: str, tables: Path = TABLES, file: Path | None = None) -> str:
    """Return Markdown with the tables between ``<!-- table NAME -->`` and ``<!-- end of table -->`` rendered again.

    Args:
        text: the Markdown.
        tables: the folder of table files.
        file: the records; each table's own by default.

    Raises:
        UserError: if a table does not exist, or its end is missing.
    """
    pattern = re.compile(r"(<!-- table ([\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
    if len(pattern.findall(text)) != text.count("<!-- table "):
        raise UserError("a '<!-- table NAME -->' line has no '<!-- end of table -->' line")
    return pattern.sub(lambda m: f"{m[1]}{render(read_table(tables / f'{m[2]}.yml'), file)}\n{m[3]}", text)


def runs_csv(table: Table, file: Path | None = None) -> str:
    """Return the runs of a table that have records as CSV, with the settings of each row and numbers in full precision.

    Accuracies are those of the last evaluation, but ``best_validation_accuracy``.

    Args:
        table: the table.
        file: the records; ``Table.records_file`` by default.

    Raises:
        UserError: if the records cannot be read.
    """
    records = read_records(file or table.records_file)
    keys = [*dict.fromkeys(key for row in table.rows for key in row.settings if key != "method")]
    figures = ["validation_accuracy", "best_validation_accuracy", "test_accuracy", "test_accuracy_median20"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "method", *keys, "stage", "seed", "run", *figures, "steps", "seconds"])
    for row, runs in zip(table.rows, plan(table), strict=True):
        for seed, run in runs.items():
            if run.name in records:
                results = records[run.name].results
                settings = [row.settings.get(key, "") for key in keys]
                cells = [csv_text(text) for text in (row.label, results.method, *settings, " ".join(row.stage or []))]
                last = [evaluation and evaluation.accuracy for evaluation in (results.validation, results.test)]
                accuracies = [last[0], results.best_validation and results.best_validation.accuracy, last[1]]
                accuracies.append(results.test_accuracy_median20)
                writer.writerow([*cells, seed, run.name, *accuracies, results.steps, results.seconds])
    return text.getvalue()


def accuracies(runs: dict[int, RunSpec], records: dict[str, ResultRecord], images: str = "test") -> dict[int, float]:
    """Return the test or validation accuracies of a row in percent, by seed."""
    results = {seed: records[run.name].results for seed, run in runs.items() if run.name in records}
    evaluations = {seed: result.test if images == "test" else result.validation for seed, result in results.items()}
    return {seed: evaluation.accuracy for seed, evaluation in evaluations.items() if evaluation is not None}


def forward_passes(run: RunSpec, records: dict[str, ResultRecord]) -> int | None:
    """Return the cost of a run in forward passes of one image, a backward pass counted as two; None if unknown.

    The cost of a pseudo-label stage includes the run that it continues.
    """
    results = records[run.name].results if run.name in records else None
    if results is None or results.forward_equivalents_per_step is None:
        return None
    if run.parent is None:
        return results.forward_equivalents_per_step * results.steps
    before = forward_passes(run.parent, records)
    if before is None:
        return None
    return before + results.forward_equivalents_per_step * (results.steps - records[run.parent.name].results.steps)


def count_seeds(count: int, planned: int) -> str:
    """Return the number of seeds, such as ``2 of 5`` if some are missing."""
    return str(count) if count in (0, planned) else f"{count} of {planned}"


def mean_interval(differences: Sequence[float]) -> str:
    """Return the mean of paired differences with its 95% confidence interval, if they vary."""
    text = mean(differences, "+.2f")
    if len({*differences}) < 2:
        return text
    low, high = ttest_1samp(differences, 0).confidence_interval()
    return f"{text} [{low:+.2f}, {high:+.2f}]"
