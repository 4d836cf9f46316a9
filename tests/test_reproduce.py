"""Tables: the runs that they plan, what they render, and how the command trains them."""

import csv
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mixmatch.config import build_config
from mixmatch.markdown import MISSING
from mixmatch.methods import METHODS
from mixmatch.runs.comparison import group_runs, read_run, run_settings
from reproduce.command import main
from reproduce.render import forward_passes, mean_interval, render, render_into
from reproduce.results import read_records
from reproduce.tables import RECORDS, TABLES, plan, read_table, runs_in_order
from tests.helpers import ROOT, SMALL, assert_same_run, metrics


def write_table(path, **values):
    content = {
        "data": "digits",
        "about": "A table of the tests.",
        "config": "digits",
        "set": [setting for setting in SMALL if setting != "data.dataset=digits"] + ["pseudo_label.steps=4"],
        "seeds": [1, 2],
        "control": "nothing",
        "rows": [
            {"label": "supervised", "set": ["method=supervised"], "published": {"elsewhere": "12.34"}},
            {"label": "nothing", "stage": ["select=none"]},
            {"label": "everything", "stage": ["select=top", "fraction=1.0"]},
        ],
    }
    path.write_text(json.dumps(content | values))  # JSON is YAML
    return path


def command(folder, *arguments):
    options = ["--runs", folder / "runs", "--results", folder / "records.jsonl"]
    return main([str(argument) for argument in (*arguments, *options)])


def records_of(folder):
    return read_records(folder / "records.jsonl")


def copy_records(source, target, *without):
    lines = (source / "records.jsonl").read_text().splitlines(keepends=True)
    (target / "records.jsonl").write_text("".join(line for line in lines if json.loads(line)["run"] not in without))


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def accuracies(folder, *names):
    return [json.loads((folder / "runs" / name / "results.json").read_text())["test_accuracy"] for name in names]


def mean_std(values):
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    assert command(folder, write_table(folder / "small.yml"), "--quiet") == 0
    return folder


@pytest.mark.slow
def test_a_table_is_trained_and_rendered(done, capsys):
    table = read_table(done / "small.yml")
    names = [f"digits-20-{name}" for name in ("supervised-seed1", "supervised-seed2", "seed1", "seed2")]
    names += [f"digits-20-seed{seed}-{stage}" for seed in (1, 2) for stage in ("control", "top-1")]
    assert {path.name for path in (done / "runs").iterdir()} == set(records_of(done)) == set(names)

    text = render(table, done / "records.jsonl")
    head, _, supervised, nothing, everything = cells(text)
    assert head[:3] == ["digits", "test accuracy (%)", "against nothing, 95% interval"]
    assert head[3:] == ["coverage (%)", "precision (%)", "seeds", "steps", "elsewhere"]
    assert supervised[1] == mean_std(accuracies(done, *names[:2]))
    assert supervised[3:] == ["-", "-", "2", "12", "12.34"] and nothing[2:5] == ["-", "-", "-"]
    assert everything[3] == "100.0" and everything[5:] == ["2", "16", "-"]
    stages = [f"digits-20-seed{seed}-" for seed in (1, 2)]
    gains = np.subtract(*(accuracies(done, *(stage + name for stage in stages)) for name in ("top-1", "control")))
    assert everything[2] == mean_interval(list(gains))
    commit = records_of(done)[names[0]].results.commit
    assert text.endswith(f"`python3 -m reproduce {done / 'small.yml'}` (trained at {commit})")

    # Again: nothing is trained, the same table is printed.
    before = (done / "records.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert command(done, done / "small.yml") == 0
    printed = capsys.readouterr().out
    assert text in printed and printed.endswith(f"complete\ncurves: tensorboard --logdir {done / 'runs'}\n")
    assert (done / "records.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_record_holds_config_results_and_metrics(done):
    name = "digits-20-seed2-top-1"
    record, path = records_of(done)[name], done / "runs" / name
    assert record.results.model_dump() == json.loads((path / "results.json").read_text())
    assert record.results.commit and record.date[:2] == "20"
    config = build_config(record.config)
    assert (config.train.steps, config.seed, config.pseudo_label.select) == (16, 2, "top")
    assert record.metrics["step"] == [entry["step"] for entry in metrics(path)]
    assert record.metrics["loss"] == pytest.approx([entry["loss"] for entry in metrics(path)], rel=1e-4)


def test_intervals_are_students_t():
    gains = [0.5, 1.25, -0.25, 2.0]
    low, high = stats.t.interval(0.95, 3, np.mean(gains), stats.sem(gains))
    assert mean_interval(gains) == f"+0.88 [{low:+.2f}, {high:+.2f}]"
    assert mean_interval([0.5]) == mean_interval([0.5, 0.5]) == "+0.50"
    assert mean_interval([]) == "-"


@pytest.mark.slow
def test_what_has_not_been_run_is_a_dash(done, tmp_path):
    copy_records(
        done,
        tmp_path,
        "digits-20-supervised-seed2",
        "digits-20-seed1-top-1",
        "digits-20-seed2-top-1",
        "digits-20-seed1",
    )
    table = read_table(write_table(tmp_path / "small.yml", cost=True))
    *_, supervised, nothing, everything = cells(render(table, tmp_path / "records.jsonl"))
    assert "±" not in supervised[1] and supervised[5] == "1 of 2"
    assert everything[1:] == ["-", "-", "-", "-", "0", "-", "-", "-"]
    # What the first stage continues is unknown, and so is its cost.
    costs = [forward_passes(run, records_of(tmp_path)) for run in plan(table)[1].values()]
    assert costs[0] is None and costs[1] is not None and nothing[7] != "-"


def test_what_a_table_cannot_have_is_one_line(tmp_path, capsys):
    seeds = [
        write_table(tmp_path / "s.yml", control=None, **more)
        for more in ({"grid": {"seed": [1, 2]}}, {"set": ["seed=3"]})
    ]
    (tmp_path / "latin.md").write_bytes("é".encode("latin-1"))
    for arguments in ([seeds[0]], ["--render", tmp_path / "latin.md"], ["--render", tmp_path / "no.md"]):
        assert command(tmp_path, *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("seed: cannot be set" in error or "give a Markdown file" in error)
    rows = [{"label": "a", "grid": {"name": ["2024-01-01", "b"]}}]
    text = json.dumps(json.loads(write_table(tmp_path / "d.yml", control=None, rows=rows).read_text()))
    (tmp_path / "d.yml").write_text(text.replace('"2024-01-01"', "2024-01-01"))  # YAML reads a date
    assert runs_in_order(read_table(tmp_path / "d.yml"))[0].name.startswith("2024-01-01")


def test_tables_of_the_project_are_known_by_any_path(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = read_table(Path("benchmarks/tables/labels-digits.yml"))
    assert table.records_file == RECORDS and table.name == "labels-digits"


@pytest.mark.slow
def test_seeds_control_cost_and_median(done, tmp_path):
    rows = [
        {"label": "supervised", "set": ["method=supervised"]},
        {"label": "nothing", "stage": ["select=none"], "control": "supervised"},
        {"label": "everything", "stage": ["select=top", "fraction=1.0"], "seeds": [1]},
    ]
    table = read_table(write_table(tmp_path / "small.yml", control=None, rows=rows, cost=True, median=True))
    assert [[*row] for row in plan(table)] == [[1, 2], [1, 2], [1]]
    assert "digits-20-seed2-top-1" not in [run.name for run in runs_in_order(table)]
    head, _, supervised, nothing, everything = cells(render(table, done / "records.jsonl"))
    assert head[2:4] == ["median of the last 20 (%)", "difference, 95% interval"]
    assert head[-1] == "forward passes, millions" and nothing[-1] == "0.00"
    assert supervised[2] == supervised[3] == everything[3] == "-"  # fewer than 20 evaluations; no control
    controls = accuracies(done, *(f"digits-20-seed{seed}-control" for seed in (1, 2)))
    baselines = accuracies(done, *(f"digits-20-supervised-seed{seed}" for seed in (1, 2)))
    assert nothing[3] == mean_interval(list(np.subtract(controls, baselines)))
    assert nothing[6] == "2" and everything[6] == "1"
    with_control = read_table(write_table(tmp_path / "small.yml", control="everything", rows=rows))
    head, _, supervised, nothing, _ = cells(render(with_control, done / "records.jsonl"))
    assert head[2] == "against everything, 95% interval" and "against" not in supervised[2]
    assert nothing[2] == f"{mean_interval(list(np.subtract(controls, baselines)))} (against supervised)"
    # Steps * batch size * (forward passes to guess + 3 * to train on), of the run and the stage.
    assert forward_passes(plan(table)[1][1], records_of(done)) == (12 + 4) * 8 * (2 + 3 * 3)
    assert forward_passes(plan(table)[0][1], records_of(done)) == 12 * 8 * 3


@pytest.mark.slow
def test_slices_of_time_end_in_the_same_runs(done, tmp_path, monkeypatch, capsys):
    """Every reading of the clock is a second later, so that each slice is a few steps."""
    clock = iter(range(10**9))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    slices, complete = 0, False
    while not complete:
        assert command(tmp_path, done / "small.yml", "--minutes", "0.5") == 0
        complete = capsys.readouterr().out.splitlines()[-2] == "complete"
        slices += 1
        assert slices < 60
    assert slices > 3
    for path in (done / "runs").iterdir():
        assert_same_run(path, tmp_path / "runs" / path.name)


@pytest.mark.slow
def test_two_commands_at_once_share_the_runs(tmp_path, start):
    table = write_table(tmp_path / "small.yml", control=None, rows=[{"label": "a"}], seeds=[1, 2])
    options = [table, "--quiet", "--runs", tmp_path / "runs", "--results", tmp_path / "records.jsonl"]
    workers = [start(sys.executable, "-m", "reproduce", *options) for _ in range(2)]
    outputs = [worker.communicate(timeout=200)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    trained = [line.split(":")[0] for output in outputs for line in output.splitlines() if "steps/s" in line]
    names = ["digits-20-seed1", "digits-20-seed2"]
    assert sorted(trained) == names == list(records_of(tmp_path))


@pytest.mark.slow
def test_jobs_train_the_same_runs(done, tmp_path, capfd):
    """Stages wait for the runs that they continue; what is finished is only recorded."""
    assert command(tmp_path, done / "small.yml", "--run", "digits-20-seed1", "--quiet") == 0
    (tmp_path / "records.jsonl").unlink()
    capfd.readouterr()
    file = tmp_path / "runs.csv"
    assert command(tmp_path, done / "small.yml", "--jobs", "2", "--quiet", "--csv", file) == 0
    printed = capfd.readouterr().out
    assert sum("steps/s" in line for line in printed.splitlines()) == 7 and "\ncomplete\n" in printed
    assert list(records_of(tmp_path)) == list(records_of(done))
    for path in (done / "runs").iterdir():
        assert_same_run(path, tmp_path / "runs" / path.name)
    lines = list(csv.DictReader(file.open()))
    assert [(line["row"], line["seed"]) for line in lines] == [
        (row, seed) for row in ("supervised", "nothing", "everything") for seed in "12"
    ]
    assert lines[0]["method"] == "supervised" and lines[0]["run"] == "digits-20-supervised-seed1"
    assert [float(line["test_accuracy"]) for line in lines] == accuracies(tmp_path, *(line["run"] for line in lines))
    found = [json.loads((tmp_path / "runs" / line["run"] / "results.json").read_text()) for line in lines]
    for key, values in {
        "best_validation_accuracy": [results["best_validation"]["accuracy"] for results in found],
        "validation_accuracy": [results["validation"]["accuracy"] for results in found],
        "steps": [results["steps"] for results in found],
        "seconds": [results["seconds"] for results in found],
    }.items():
        assert [float(line[key]) for line in lines] == values


@pytest.mark.slow
def test_jobs_are_stopped_and_continued(tmp_path, start):
    rows = [{"label": name, "set": [f"name={name}", "train.steps=300"]} for name in ("a", "b")]
    table = write_table(tmp_path / "small.yml", control=None, seeds=[1], rows=rows)
    options = [table, "--quiet", "--jobs", "2", "--runs", tmp_path / "runs", "--results", tmp_path / "records.jsonl"]
    worker = start(sys.executable, "-m", "reproduce", *options)
    folders = [tmp_path / "runs" / f"{name}-seed1" / "checkpoints" for name in "ab"]
    while worker.poll() is None and not all(folder.exists() and list(folder.iterdir()) for folder in folders):
        time.sleep(0.1)
    worker.terminate()
    output, _ = worker.communicate(timeout=100)
    assert worker.returncode == 128 + signal.SIGTERM and "stopped; the same command continues" in output
    assert not records_of(tmp_path)
    assert command(tmp_path, table, "--quiet", "--jobs", "2") == 0
    assert [record.results.steps for record in records_of(tmp_path).values()] == [300, 300]


@pytest.mark.slow
def test_missing_trains_runs_without_records_and_those_that_they_continue(done, tmp_path, capsys):
    copy_records(done, tmp_path, "digits-20-seed1-top-1")
    assert command(tmp_path, done / "small.yml", "--missing", "--quiet") == 0
    assert "\ncomplete\n" in capsys.readouterr().out
    trained = {path.name for path in (tmp_path / "runs").iterdir()}
    assert trained == {"digits-20-seed1", "digits-20-seed1-top-1"}
    assert list(records_of(tmp_path)) == list(records_of(done))
    for name in trained:
        assert_same_run(done / "runs" / name, tmp_path / "runs" / name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["labels-digits", "--list"], "--list and --render take no TABLE"),
        (["--list", "--render", "README.md"], "not allowed with argument --list"),
        ([], "TABLE: missing; --list lists the tables"),
        (["labels-mnist"], "labels-mnist.yml: does not exist; --list lists the tables"),
        (["labels-digits", "--seeds", "6"], "--seeds: must be among 1, 2, 3, 4, 5"),
        (["nowhere.yml"], "nowhere.yml: does not exist"),
        (["--render", "nowhere.md"], "No such file or directory: 'nowhere.md'"),
        (["labels-digits", "--jobs", "0"], "--jobs: must be at least 1"),
        (["labels-digits", "--run", "digits"], "--run: digits is no run of this table"),
        (["labels-digits", "--minutes", "soon"], "argument --minutes: invalid float value"),
        (["labels-digits", "--minutes", "nan"], "--minutes: must be above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert command(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"sedes": [1]}, "unknown key; did you mean seeds?"),
        ({"seeds": []}, "seeds"),
        ({"control": "no such row"}, "control: must be the label of a row, got 'no such row'"),
        ({"rows": [{"label": "a", "control": "b"}]}, "control: must be the label of a row, got 'b'"),
        ({"rows": [{"label": "a", "stage": ["select=none", "train.lr=0.1"]}]}, "train.lr: "),
        ({"rows": [{"label": "a", "seeds": [3]}]}, "seeds of 'a' must be among the table's"),
        ({"rows": [{"label": "a"}, {"label": "a"}]}, "two rows have the same label"),
        ({"rows": [{"label": "a|b"}]}, "rows"),
        ({"rows": [{"label": "a", "set": ["train.lr=no"]}]}, "train.lr"),
        ({"rows": [{"label": "a"}, {"label": "b", "set": ["name=digits-20", "train.lr=0.1"]}]}, "set name=... in one"),
        (
            {"rows": [{"label": "a", "set": ["pseudo_label.enabled=true"]}]},
            "pseudo_label.enabled: not in a table; list",
        ),
        ({"rows": []}, "rows: missing; list rows, or values of keys in grid"),
        ({"rows": [], "grid": {"train.lr": 1}}, "grid: must be a valid list, got 1"),
        ({"rows": [], "grid": {"train.rate": [1]}}, "train.rate: unknown key"),
        ({"rows": [], "grid": {"train.lr": []}}, "grid"),
    ],
)
def test_an_invalid_table_is_one_line(tmp_path, capsys, values, message):
    assert command(tmp_path, write_table(tmp_path / "small.yml", **{"control": None} | values)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_grid_is_a_row_for_each_combination(tmp_path):
    rows = [
        {"label": "MixMatch", "grid": {"mixmatch.lambda_u": [25, 75.5]}},
        {
            "label": "named",
            "set": ["name=other", "train.lr=0.1"],
            "control": "MixMatch, optimizer = adam, lambda_u = 25",
        },
    ]
    grid = {"train.optimizer": ["adam", "sgd"]}
    table = read_table(write_table(tmp_path / "small.yml", control=None, rows=rows, grid=grid, seeds=[1]))
    labels = [f"MixMatch, optimizer = {o}, lambda_u = {value}" for o in ("adam", "sgd") for value in (25, 75.5)]
    assert [row.label for row in table.rows] == [*labels, "named, optimizer = adam", "named, optimizer = sgd"]
    runs = [row[1] for row in plan(table)]
    names = [f"digits-20-optimizer-{o}-lambda_u-{value}-seed1" for o in ("adam", "sgd") for value in (25, 75.5)]
    assert [run.name for run in runs] == [*names, "other-optimizer-adam-seed1", "other-optimizer-sgd-seed1"]
    assert [run.config.mixmatch.lambda_u for run in runs[:4]] == [25, 75.5, 25, 75.5]
    assert [run.config.train.optimizer for run in runs] == ["adam", "adam", "sgd", "sgd", "adam", "sgd"]

    alone = {"train.lr_decay_steps": [[], [4, 8]], "method": ["mixmatch", "supervised"]}
    table = read_table(write_table(tmp_path / "small.yml", control=None, rows=[], grid=alone, seeds=[1]))
    assert [row.label for row in table.rows][1::2] == [
        f"lr_decay_steps = {v}, method = supervised" for v in ("[]", "[4, 8]")
    ]
    names = [row[1].name for row in plan(table)]
    assert names[2:] == ["digits-20-lr_decay_steps-4-8-seed1", "digits-20-lr_decay_steps-4-8-supervised-seed1"]


def test_grids_of_names_and_stages_make_different_runs(tmp_path):
    stages = {"label": "stage", "stage": ["select=top"], "grid": {"pseudo_label.steps": [10, 20]}}
    labels = {"grid": {"data.num_labeled": [50, 100]}}
    for values, names in (
        ({"rows": [stages]}, ["digits-20-seed1", *(f"digits-20-seed1-top-0.1-steps-{n}" for n in (10, 20))]),
        (labels | {"rows": [], "set": ["name=study"]}, [f"study-num_labeled-{n}-seed1" for n in (50, 100)]),
    ):
        table = read_table(write_table(tmp_path / "table.yml", seeds=[1], control=None, **values))
        assert [run.name for run in runs_in_order(table)] == names


@pytest.mark.slow
def test_a_stage_alone_waits_for_its_run(tmp_path, capsys):
    table = write_table(tmp_path / "table.yml")
    assert command(tmp_path, table, "--run", "digits-20-seed1-control") == 0
    expected = (
        f"digits-20-seed1-control: skipped ({tmp_path / 'runs' / 'digits-20-seed1'} is not finished; train it first)"
    )
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.slow
def test_validation_accuracy(done, tmp_path):
    table = read_table(write_table(tmp_path / "small.yml", accuracy="validation"))
    head, _, supervised, *_ = cells(render(table, done / "records.jsonl"))
    found = [records_of(done)[f"digits-20-supervised-seed{seed}"].results.validation.accuracy for seed in (1, 2)]
    assert head[1] == "validation accuracy (%)" and supervised[1] == mean_std(found)


@pytest.mark.slow
def test_records_of_another_config_are_marked_until_trained_again(done, tmp_path, capsys):
    copy_records(done, tmp_path)
    values = {"set": [*read_table(done / "small.yml").set, "train.lr=0.01"], "seeds": [1]}
    table = write_table(tmp_path / "small.yml", **values)
    text = render(read_table(table), tmp_path / "records.jsonl")
    assert "\nTrained with earlier settings, which differ in: supervised (train.lr); " in text
    wrong = "data: x\nabout: x\nconfig: digits\nseeds: [1]\nrows: [{label: a, set: [model.network=nope]}]\n"
    (tmp_path / "other.yml").write_text(wrong)  # does not keep the others from the list
    assert command(tmp_path, "--list", "--tables", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 runs, 4 with another config" in printed and f"other {' ' * 26} {tmp_path}/other.yml: " in printed
    (tmp_path / "other.yml").unlink()
    stored = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "records.jsonl").write_text(stored.replace('"lr":', '"former_rate":'))
    assert "differ in: supervised (config); " in render(read_table(table), tmp_path / "records.jsonl")
    assert command(tmp_path, table, "--quiet") == 0
    assert "Trained with earlier settings" not in render(read_table(table), tmp_path / "records.jsonl")
    assert records_of(tmp_path)["digits-20-seed1"].config["train"]["lr"] == 0.01
    values["set"] += ["train.log_every=7", "train.checkpoint_every=11"]  # without an effect on results
    table = write_table(tmp_path / "small.yml", **values)
    assert "Trained with earlier settings" not in render(read_table(table), tmp_path / "records.jsonl")


@pytest.mark.slow
def test_a_stage_of_a_run_that_ended_early_has_the_settings_of_its_table(tmp_path, capsys):
    settings = [*read_table(write_table(tmp_path / "small.yml")).set, "train.patience=1", "train.eval_every=2"]
    rows = [{"label": "stage", "stage": ["select=none"]}]
    table = write_table(tmp_path / "small.yml", set=settings, control=None, rows=rows)
    assert command(tmp_path, table, "--quiet") == 0
    printed = capsys.readouterr().out
    assert "Trained with earlier settings" not in printed and "\nstep " not in printed and "\ndone: " not in printed
    records = records_of(tmp_path)
    assert {records[f"digits-20-seed{seed}"].results.steps for seed in (1, 2)} != {12}
    config = build_config(records["digits-20-seed1-control"].config)
    assert run_settings(config, "mixmatch")["train.steps"] == MISSING  # with other CPUs both may end at one step
    (group,) = group_runs([read_run(tmp_path / "runs" / f"digits-20-seed{seed}-control") for seed in (1, 2)])
    assert len(group.runs) == 2


@pytest.mark.slow
def test_finished_stages_without_checkpoints_or_records_are_rendered(done, tmp_path, capfd):
    shutil.copytree(done / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs").iterdir():
        shutil.rmtree(path / "checkpoints")  # to free the disk
    assert command(tmp_path, done / "small.yml", "--quiet") == 0
    assert list(records_of(tmp_path)) == list(records_of(done))
    # The run that it continues is lost: it is trained again, and the stage is recorded all the same.
    shutil.rmtree(tmp_path / "runs" / "digits-20-seed1")
    (tmp_path / "records.jsonl").unlink()
    assert command(tmp_path, done / "small.yml", "--quiet", "--jobs", "2") == 0
    assert list(records_of(tmp_path)) == list(records_of(done)) and "\ncomplete\n" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"run": "a"}', b"\xff"])
def test_a_corrupt_file_of_records_is_refused_before_training(done, tmp_path, capsys, content):
    (tmp_path / "records.jsonl").write_bytes(content)
    assert command(tmp_path, done / "small.yml") == 2
    error = capsys.readouterr().err
    assert "records.jsonl: not a file of results" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "jobs, end", [("1", "diverged: wild-seed1"), ("2", "diverged or failed: wild-seed1; see above")]
)
def test_a_run_that_diverges_leaves_a_dash_and_the_others_go_on(tmp_path, capfd, jobs, end):
    rows = [{"label": "wild", "set": ["train.lr=1000000.0", "name=wild"]}, {"label": "tame"}]
    table = write_table(tmp_path / "small.yml", control=None, seeds=[1], rows=rows)
    assert command(tmp_path, table, "--jobs", jobs) == 1
    printed, error = capfd.readouterr()
    assert "\n| wild " in printed and "wild-seed1: " in error and error.endswith(f"1 of 2 runs {end}\n")
    assert list(records_of(tmp_path)) == ["digits-20-seed1"]
    *_, wild, tame = cells(render(read_table(table), tmp_path / "records.jsonl"))
    assert wild[1] == "-" and float(tame[1]) >= 0


@pytest.mark.slow
def test_photographs_without_a_test_set_are_a_dash_and_records_lie_next_to_the_table(tmp_path, capsys):
    for i in range(24):
        folder = tmp_path / "photos" / ("unlabeled" if i > 7 else f"train/{'ab'[i % 2]}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (i * 9, 99, 50)).save(folder / f"{i}.png")
    (tmp_path / "base.yml").write_text(f"{{name: mine, data: {{dataset: folder, root: {tmp_path / 'photos'}}}}}")
    settings = ["data.num_labeled=all", "data.num_validation=2", "data.image_size=12", *SMALL[3:]]
    table = write_table(tmp_path / "mine.yml", config="base.yml", set=settings, control=None, rows=[{"label": "all"}])
    assert main([str(table), "--quiet", "--runs", str(tmp_path / "runs")]) == 0
    assert cells(capsys.readouterr().out)[2] == ["all", "-", "2", "12"]
    assert len(read_records(tmp_path / "mine.jsonl")) == 2


@pytest.mark.slow
def test_rendering_rewrites_the_tables_and_nothing_else(done, tmp_path, capsys):
    file = tmp_path / "text.md"
    file.write_text("before\n<!-- table small -->\nold\n<!-- end of table -->\nafter\n")
    assert command(done, "--render", file, "--tables", done) == 0
    table = render(read_table(done / "small.yml"), done / "records.jsonl")
    assert file.read_text() == f"before\n<!-- table small -->\n{table}\n<!-- end of table -->\nafter\n"
    file.write_text("<!-- table small -->\nno end")
    assert command(done, "--render", file, "--tables", done) == 2
    assert "has no '<!-- end of table -->' line" in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_tables_and_records_agree():
    known = {}
    for file in TABLES.glob("*.yml"):
        for run in runs_in_order(read_table(file)):
            assert known.setdefault(run.name, run) == run, (file.name, run.name)
    records = read_records(RECORDS)
    assert len(records) == len(RECORDS.read_text().splitlines()) > 500
    assert not records.keys() - known.keys()
    # Runs of methods that have changed since, which the tables note below themselves.
    stale = {name: keys for name in records if (keys := known[name].differing_keys(records[name].config))}
    for name in stale:
        config = records[name].config
        assert {config["method"], config["pseudo_label"]["method"]} & {*METHODS} - {"mixmatch", "supervised", None}
    for record in records.values():
        assert record.results.test_accuracy == pytest.approx(record.metrics["test_accuracy"][-1], abs=1e-2)  # rounded


@pytest.mark.slow
def test_the_texts_show_what_the_records_render():
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    assert sum(text.count("<!-- table ") for text in texts) >= 8
    assert [render_into(text) for text in texts] == texts


def test_the_published_ablations_are_the_papers():
    errors = {250: [11.80, 17.09, 11.55, 12.45, 27.83, 11.86, 39.11, 32.16, 12.35, 12.26]}
    errors[4000] = [6.00, 8.06, 6.23, 5.88, 10.59, 6.47, 10.97, 9.22, 6.83, 6.50]
    for name, labels in (("ablation-cifar10", 250), ("ablation-digits", 250), ("ablation-cifar10-4000", 4000)):
        published = [next(iter(row.published.values())) for row in read_table(TABLES / f"{name}.yml").rows]
        assert published == [f"{100 - error:.2f}" for error in errors[labels]]
    for name in ("ablation-cifar10", "ablation-cifar10-4000"):
        settings = [row[3].config.mixmatch for row in plan(read_table(TABLES / f"{name}.yml"))]
        assert {(each.lambda_u, each.ramp_up_steps) for each in settings} == {(100, 2048)}
    digits, cifar10 = (plan(read_table(TABLES / f"ablation-{data}.yml")) for data in ("digits", "cifar10"))
    for ours, papers in zip(digits, cifar10, strict=True):
        temperature = {0.5: 0.3, 1.0: 1.0}[papers[3].config.mixmatch.temperature]
        changes = {"temperature": temperature, "ramp_up_steps": 600, "lambda_u": 75}
        assert ours[3].config.mixmatch == papers[3].config.mixmatch.model_copy(update=changes)
