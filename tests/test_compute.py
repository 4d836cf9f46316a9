"""benchmarks/compute.py: accuracy against compute, from the records of a table."""

import json

import pytest
from PIL import Image

import reproduce.command
from benchmarks.compute import Point, compute_to, main, render
from tests.test_reproduce import cells, write_table

POINTS = [Point("a, 1", 1e12, [38.0, 42.0], 2), Point("a, 2", 4e12, [50.0], 1), Point("a, 3", 5e12, [48.0], 1)]


@pytest.mark.parametrize("accuracy, expected", [(40, 1e12), (30, 1e12), (45, 2e12), (50, 4e12), (50.1, None)])
def test_compute_to_an_accuracy(accuracy, expected):
    assert compute_to(accuracy, POINTS) == (expected and pytest.approx(expected))


def test_compute_is_relative_to_the_longest_runs_of_the_first_recipe():
    other = [Point("b, 1", 0.5e12, [45.0, 46.0, 47.0], 5)]
    head, _, *rows = cells(render({"a": POINTS, "b": other}, [45.0, 60.0]))
    assert head == ["runs", "TFLOP", "relative to the reference", "accuracy (%)", "seeds"]
    assert rows[0] == ["a, 1", "1", "0.2", "40.00 ± 2.83", "2"]
    assert rows[3] == ["b, 1", "0.5", "0.1", "46.00 ± 1.00", "3 of 5"]
    assert rows[4:] == [["recipe", "45.00%", "60.00%"], ["---"] * 3, ["a", "0.4", "-"], ["b", "≤ 0.1", "-"]]


@pytest.mark.slow
def test_the_command_reads_and_plots_the_records_of_a_table(tmp_path, capsys):
    rows = [
        {"label": "long, 12 steps"},
        {"label": "short, 6 steps", "set": ["train.steps=6", "name=short"]},
        {"label": "short, 9 steps", "set": ["train.steps=9", "name=short-9"]},
    ]
    file = write_table(tmp_path / "small.yml", rows=rows, control=None)
    records = tmp_path / "small.jsonl"  # next to the table
    assert main([str(file)]) == 2 and "'long, 12 steps', the reference, has no results" in capsys.readouterr().err
    assert reproduce.command.main([str(file), "--runs", str(tmp_path / "runs"), "--quiet"]) == 0
    capsys.readouterr()

    assert main([str(file), "--plot", str(tmp_path / "curves.png"), "--goals", "1"]) == 0
    rows = cells(capsys.readouterr().out)[2:]
    # K = 2: two views guessed, three batches trained on; WRN-10-0.5 of 8x8 gray pixels, ten classes, by hand.
    stem = 16 * 9 * 64
    groups = [(16, 8, 64), (8, 16, 16), (16, 32, 4)]
    flops = 2 * (stem + sum((a * b * 9 + b * b * 9 + a * b) * area for a, b, area in groups) + 32 * 10)
    assert [row[1] for row in rows[:2]] == [f"{12 * (2 + 3 * 3) * 8 * flops / 1e12 * share:.3g}" for share in (1, 0.5)]
    assert [row[2:] for row in rows[:2]] == [["1", rows[0][3], "2"], ["0.5", rows[1][3], "2"]]
    assert [row[0] for row in rows[3:]] == ["recipe", "---", "long", "short"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (700, 400)

    # Runs whose compute is unknown are left out.
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0]["results"]["flops_per_forward"] = None
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(file)]) == 0 and cells(capsys.readouterr().out)[2][4] == "1 of 2"

    write_table(file, rows=[{"label": "no length"}], control=None)
    assert main([str(file)]) == 2 and "labels must be 'recipe, length', got 'no length'" in capsys.readouterr().err
