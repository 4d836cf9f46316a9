"""The command that compares runs: groups, table, CSV, plot."""

import csv
import io
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from mixmatch.cli import compare, pseudo_label
from mixmatch.runs.comparison import describe_seeds, group_runs, read_run
from tests.helpers import metrics, run, signal_after

BLUE, ORANGE, GREEN, RED = (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of MixMatch, a stage by SoftMatch, a supervised run, and a third seed that is not finished."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    assert run(folder / "a1") == run(folder / "a2", "seed=2") == 0
    assert run(folder / "supervised", "method=supervised") == 0
    stage = ["--run-dir", str(folder / "a1"), "pseudo_label.method=softmatch", "pseudo_label.steps=4"]
    assert pseudo_label.main([*stage, "train.eval_every=2"]) == 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        signal_after(monkeypatch, 7, signal.SIGTERM)
        assert run(folder / "a3", "seed=3") == 128 + signal.SIGTERM
    (folder / "page.html").touch()
    return folder


def results(path):
    return json.loads((path / "results.json").read_text())


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def command(*arguments):
    return compare.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_table_csv_and_plot(runs, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    outputs = ["--csv", tmp_path / "table.csv", "--plot", tmp_path / "curves.png"]
    assert command(*sorted(runs.iterdir()), runs / "a1", *outputs) == 0  # one is named twice
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    printed = capsys.readouterr().out
    assert f"left out: {runs / 'a3'}: not finished" in printed and "page.html" not in printed

    head, _, mixmatch, stage, supervised = cells(printed)
    assert head == [
        *("name", "method", "train.steps", "stage"),
        *("test accuracy (%)", "best validation (%)", "runs", "seeds", "seconds"),
    ]
    tests = [results(runs / name)["test_accuracy"] for name in ("a1", "a2")]
    best = [results(runs / name)["best_validation"]["accuracy"] for name in ("a1", "a2")]
    assert mixmatch[:4] == ["a1, a2", "mixmatch", "12", "-"] and mixmatch[6:8] == ["2", "1, 2"]
    for cell, values in ((mixmatch[4], tests), (mixmatch[5], best)):
        assert cell == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert stage[:4] == ["a1-softmatch", "softmatch", "16", "softmatch"]
    assert supervised[:4] == ["supervised", "supervised", "12", "-"]
    assert stage[4] == f"{results(runs / 'a1-softmatch')['test_accuracy']:.2f}"
    assert len({len(line) for line in printed.splitlines() if line[:1] == "|"}) == 1  # aligned

    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["name"] for row in rows] == ["a1, a2", "a1-softmatch", "supervised"]
    assert [row["method"] for row in rows] == ["mixmatch", "softmatch", "supervised"]
    assert float(rows[0]["test_accuracy_mean"]) == np.mean(tests)
    assert float(rows[0]["test_accuracy_std"]) == pytest.approx(np.std(tests, ddof=1), rel=1e-12)
    assert float(rows[0]["best_validation_mean"]) == np.mean(best)
    assert (rows[0]["num_runs"], rows[0]["seeds"], rows[0]["stage"], rows[1]["test_accuracy_std"]) == (
        "2",
        "1 2",
        "",
        "",
    )

    pixels = np.asarray(Image.open(tmp_path / "curves.png")).reshape(-1, 3)
    counts = [(pixels == color).all(axis=1).sum() for color in (BLUE, ORANGE, GREEN, RED)]
    assert min(counts[:3]) > 50 and counts[3] == 0


@pytest.mark.slow
def test_curves_are_the_evaluations_and_the_mean_is_that_of_finished_runs(runs):
    (group,) = group_runs([read_run(runs / name) for name in ("a3", "a2", "a1")])
    assert group.describe() == "a1, a2, a3 (seeds: 1 to 3; unfinished: 3)"
    for accuracy in ("test_accuracy", "validation_accuracy"):
        histories = [{entry["step"]: entry[accuracy] for entry in metrics(runs / f"a{seed}")} for seed in (1, 2, 3)]
        curves = group.curves(accuracy)
        assert curves.runs == histories and [list(curve) for curve in histories] == [[6, 12], [6, 12], [6]]
        assert curves.mean == {step: np.mean([histories[0][step], histories[1][step]]) for step in (6, 12)}


@pytest.mark.slow
def test_unfinished_runs_alone_and_cells_that_are_formulas(runs, tmp_path, capsys):
    assert command(runs / "a3", "--plot", tmp_path / "curves.png") == 0
    assert (tmp_path / "curves.png").exists() and "|" not in capsys.readouterr().out
    assert command(runs / "a3", "--csv", tmp_path / "table.csv") == 2
    assert not (tmp_path / "table.csv").exists()

    shutil.copytree(runs / "a2", tmp_path / "formula")
    config = tmp_path / "formula" / "config.yml"
    config.write_text(config.read_text().replace("init_from: null", "init_from: '=1+1'"))
    assert command(runs / "a1", tmp_path / "formula", "--csv", tmp_path / "table.csv") == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["init_from"] for row in rows] == ["", "'=1+1"]


@pytest.mark.slow
def test_runs_on_other_images_or_labels_are_not_seeds(runs, tmp_path):
    shutil.copytree(runs / "a2", tmp_path / "a2")
    split = json.loads((tmp_path / "a2" / "split.json").read_text())
    config = tmp_path / "a2" / "config.yml"
    config.write_text(config.read_text().replace("root: data", "root: /elsewhere/data"))  # the same images
    paths = [runs / "a1", tmp_path / "a2"]
    assert len(group_runs([read_run(path) for path in paths])) == 1
    train, test = (split[key][:8] for key in ("fingerprint", "test_fingerprint"))
    for key, other in (("fingerprint", f"01234567 {test}"), ("test_fingerprint", f"{train} 01234567")):
        (tmp_path / "a2" / "split.json").write_text(json.dumps(split | {key: "0123456789"}))
        groups = group_runs([read_run(path) for path in paths])
        assert [group.settings["images"] for group in groups] == [f"{train} {test}", other]


@pytest.mark.slow
def test_runs_without_a_test_set_are_plotted_by_validation_accuracy(runs, tmp_path, capsys):
    for name in ("blind", "nothing"):
        shutil.copytree(runs / "a1", tmp_path / name)
    entries = [entry | {"test_accuracy": None} for entry in metrics(runs / "a1")]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "blind" / "metrics.jsonl").write_text(lines + '{"ste')  # the last line was cut off
    (tmp_path / "nothing" / "metrics.jsonl").unlink()
    assert command(tmp_path / "blind", tmp_path / "nothing", "--plot", tmp_path / "curves.png") == 0
    assert f"not in the plot: {tmp_path / 'nothing'}: has no validation accuracy" in capsys.readouterr().out
    assert command(tmp_path / "nothing", "--plot", tmp_path / "none.png") == 2
    assert "none of these runs has been evaluated" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "none of these is a finished run; left out: nowhere: not a run directory"),
        (["nowhere", "--plot", "curves.png"], "none of these is a finished run"),
        (["nowhere", "--plot", "curves.pdf"], "--plot: must end in .png, got curves.pdf"),
        (["nowhere", "--csv", "a.png", "--plot", "a.png"], "--plot: is the file of --csv; choose another"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_seeds_are_described_by_ranges():
    assert describe_seeds([5, 1, 2, 3, 8, 9]) == "1 to 3, 5, 8, 9"
    assert describe_seeds([1, 1]) == "1, 1"
