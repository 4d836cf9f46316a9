"""Accuracy against compute, from the results of a table."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import reproduce.command as command_of_tables
from benchmarks.compute import Point, compute_to, main, render
from tests.helpers import ROOT
from tests.test_reproduce import cells, write_table

POINTS = [Point("a, 1", 1e12, [38.0, 42.0], 2), Point("a, 2", 4e12, [50.0], 1), Point("a, 3", 5e12, [48.0], 1)]


@pytest.mark.parametrize("accuracy, expected", [(40, 1e12), (30, 1e12), (45, 2e12), (50, 4e12), (50.1, None)])
def test_compute_to_an_accuracy(accuracy, expected):
    assert compute_to(accuracy, POINTS) == (expected and pytest.approx(expected))


def test_recipes_are_told_as_shares_of_the_first_ones_longest_runs():
    other = [Point("b, 1", 0.5e12, [45.0, 46.0, 47.0], 5)]
    head, _, *rows = cells(render({"a": POINTS, "b": other}, [45.0, 60.0]))
    assert head == ["runs", "compute, 10^12 operations", "of the reference's", "accuracy (%)", "seeds"]
    assert rows[0] == ["a, 1", "1", "0.2", "40.00 ± 2.83", "2"]
    assert rows[3] == ["b, 1", "0.5", "0.1", "46.00 ± 1.00", "3 of 5"]
    assert rows[4:] == [["recipe", "45.00%", "60.00%"], ["---"] * 3, ["a", "0.4", "-"], ["b", "≤ 0.1", "-"]]


def test_the_command_reads_and_draws_the_results_of_a_table(tmp_path, monkeypatch, capsys):
    rows = [
        {"label": "long, 12 steps"},
        {"label": "short, 6 steps", "set": ["train.steps=6", "name=short"]},
        {"label": "short, 12 steps", "set": ["train.lr=0.004", "name=short-12"]},
    ]
    table = write_table(tmp_path / "small.yml", rows=rows, control=None, accuracy="last")

    def compute(*options):
        return [*map(str, [table, "--results", tmp_path / "results", *options])]

    def said(*options):
        """Return the output of a command that succeeds, or the one line of one that does not."""
        code = main(compute(*options))
        out, err = capsys.readouterr()
        assert (code, err.count("\n")) in ((0, 0), (2, 1)) and bool(out) == (not err), err
        return out or err

    assert "no run of 'long, 12 steps', the reference, has results" in said()
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--quiet"]
    assert command_of_tables.main([str(table), *places]) == 0
    capsys.readouterr()
    command = [
        sys.executable,
        ROOT / "benchmarks" / "compute.py",
        *compute("--draw", "curves.png", "--output", "1", "99"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout)[2:]
    # K = 2: two views guessed, three batches trained on; WRN-10-0.5 of 8x8 gray pixels, ten classes, by hand.
    stem = 16 * 9 * 64
    groups = [(16, 8, 64), (8, 16, 16), (16, 32, 4)]
    blocks = sum((a * b * 9 + b * b * 9 + a * b) * area for a, b, area in groups)
    operations = 2 * (stem + blocks + 32 * 10)
    expected = 12 * (2 + 3 * 3) * 8 * operations
    assert [row[1] for row in rows[:3]] == [f"{expected / 1e12 * share:.3g}" for share in (1, 0.5, 1)]
    assert [row[2] for row in rows[:3]] == ["1", "0.5", "1"] and [row[4] for row in rows[:3]] == ["2"] * 3
    assert [row[0] for row in rows[3:]] == ["recipe", "---", "long", "short"]
    assert [row[1] for row in rows[5:]] == ["≤ 1", "≤ 0.5"] and [row[2] for row in rows[5:]] == ["-", "-"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (700, 400)
    for number in ("x", "nan", "-1", "101"):
        assert "invalid percent value" in said("--output", number)
    assert main(compute("--draw", tmp_path / "nowhere" / "curves.png")) == 2
    assert capsys.readouterr().err.startswith("error: ")

    # What does not tell its compute is left out and said; without its first row a table has no reference.
    file = tmp_path / "results" / "small.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    by_run = {line["run"]: line for line in lines}
    del by_run["digits-20-seed1"]["results"]["operations_per_pass"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = cells(said())
    assert [row[4] for row in rows[2:5]] == ["1 of 2", "2", "2"] and rows[2][2] == "1"
    del by_run["digits-20-seed2"]["results"]["operations_per_pass"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "no run of 'long, 12 steps', the reference" in said()

    write_table(table, rows=[{"label": "no length"}], control=None)
    assert "rows must be called 'recipe, length', got 'no length'" in said()
