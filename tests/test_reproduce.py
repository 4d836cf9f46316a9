"""Tables: what they plan, what they render, and how the command trains them in slices."""

import json
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import reproduce.command as command_of_tables
from reproduce.results import RESULTS, Line, passes_of, read_lines, render, render_into, result_file
from reproduce.tables import TABLES, find_table, in_order, plan, read_table
from tests.helpers import ROOT, SMALL, assert_same_run, metrics

SHOWN = [ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "photographs.md"]


def write_table(path, **values):
    content = {
        "data": "digits",
        "about": "A table of the tests.",
        "config": "configs/digits.yml",
        "set": [setting for setting in SMALL if setting != "data.dataset=digits"] + ["pseudo_label.steps=4"],
        "seeds": [1, 2],
        "control": "nothing",
        "rows": [
            {"label": "supervised", "set": ["method=supervised"], "published": {"elsewhere": "12.34"}},
            {"label": "nothing", "round": ["select=none"]},
            {"label": "everything", "round": ["select=balanced", "fraction=1.0"]},
        ],
    }
    path.write_text(json.dumps(content | values))  # JSON is YAML
    return path


def command(tmp_path, *arguments):
    places = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    return command_of_tables.main([str(argument) for argument in (*arguments, *places)])


def kept(folder):
    """The lines of the table's result file, by run."""
    return read_lines(folder / "results" / "small.jsonl")


def without(folder, to, *names):
    """A copy of the table's result file without some lines."""
    lines = (folder / "results" / "small.jsonl").read_text().splitlines(keepends=True)
    to.mkdir(parents=True, exist_ok=True)
    (to / "small.jsonl").write_text("".join(line for line in lines if json.loads(line)["run"] not in names))


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("table")
    table = write_table(tmp_path / "small.yml")
    assert command(tmp_path, table, "--quiet") == 0
    return tmp_path


def test_a_table_is_trained_and_rendered(done, capsys):
    names = ["digits-20-seed", "digits-20-supervised-seed"]
    rounds = [f"digits-20-seed{seed}-{rule}" for seed in (1, 2) for rule in ("control", "balanced-1")]
    expected = {f"{name}{seed}" for name in names for seed in (1, 2)} | {*rounds}
    assert {path.name for path in (done / "runs").iterdir()} == expected
    assert set(kept(done)) == expected
    assert list(kept(done)) == [run.name for run in in_order(read_table(done / "small.yml"))]

    head, _, supervised, nothing, everything = cells(render(read_table(done / "small.yml"), done / "results"))
    assert head[:3] == ["digits", "test accuracy (%)", "against nothing, 95% interval"]
    assert head[3:] == ["coverage (%)", "precision (%)", "seeds", "steps", "elsewhere"]
    results = {name: json.loads((done / "runs" / name / "results.json").read_text()) for name in expected}
    figures = [results[f"digits-20-supervised-seed{seed}"]["test_accuracy"] for seed in (1, 2)]
    assert supervised[1] == f"{np.mean(figures):.2f} ± {np.std(figures, ddof=1):.2f}"
    assert supervised[3:] == ["-", "-", "2", "12", "12.34"] and nothing[2:5] == ["-", "-", "-"]
    assert everything[3] == "100.0" and everything[5:] == ["2", "16", "-"]
    gains = [
        results[f"digits-20-seed{seed}-balanced-1"]["test_accuracy"]
        - results[f"digits-20-seed{seed}-control"]["test_accuracy"]
        for seed in (1, 2)
    ]
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert everything[2] == f"{np.mean(gains):+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"

    # Again: nothing is trained, the same table comes out.
    before = (done / "results" / "small.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert command(done, done / "small.yml") == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"complete\ncurves: tensorboard --logdir {done / 'runs'}\n")
    assert render(read_table(done / "small.yml"), done / "results") in printed and "step" not in printed.split("\n")[0]
    assert (done / "results" / "small.jsonl").stat().st_mtime_ns == before


def test_results_stand_in_the_tables_order_whatever_seeds_were_asked_for_first(done, tmp_path):
    places = [str(done / "small.yml"), "--runs", str(done / "runs"), "--results", str(tmp_path)]
    runs = [run.name for run in in_order(read_table(done / "small.yml"))]
    assert command_of_tables.main([*places, "--seeds", "2"]) == 0
    assert list(read_lines(tmp_path / "small.jsonl")) == [run for run in runs if "seed2" in run]
    assert command_of_tables.main([*places, "--seeds", "1"]) == 0
    assert list(read_lines(tmp_path / "small.jsonl")) == runs


def test_a_line_holds_config_results_and_curves(done):
    name = "digits-20-seed2-balanced-1"
    content = kept(done)[name].model_dump(exclude_unset=True)
    assert content["results"] == json.loads((done / "runs" / name / "results.json").read_text())
    assert content["config"]["train"]["steps"] == 16 and content["config"]["seed"] == 2
    assert content["metrics.step"] == [entry["step"] for entry in metrics(done / "runs" / name)]
    losses = [entry["loss"] for entry in metrics(done / "runs" / name)]
    assert content["metrics.loss"] == pytest.approx(losses, rel=1e-4)
    assert content["results"]["commit"] and content["date"][:2] == "20"


def test_what_has_not_been_run_is_a_dash_and_a_part_says_so(done, tmp_path):
    lost = ("digits-20-supervised-seed2", "digits-20-seed1-balanced-1", "digits-20-seed2-balanced-1")
    without(done, tmp_path / "results", *lost)
    *_, supervised, _nothing, everything = cells(render(read_table(done / "small.yml"), tmp_path / "results"))
    assert "±" not in supervised[1] and supervised[5] == "1 of 2"
    assert everything[1:] == ["-", "-", "-", "-", "0", "-", "-"]
    nothing_at_all = render(read_table(TABLES / "labels-cifar10.yml"), tmp_path / "results")
    by_label = {row[0]: row[1:] for row in cells(nothing_at_all)}
    assert by_label["250 labels, MixMatch"] == ["-", "0", "-", "88.92 ± 0.87", "86.52", "86.37 ± 0.59"]
    assert "nothing has been run yet" in nothing_at_all


def test_rows_with_seeds_and_a_control_of_their_own(done, tmp_path):
    rows = [
        {"label": "supervised", "set": ["method=supervised"]},
        {"label": "nothing", "round": ["select=none"], "control": "supervised"},
        {"label": "everything", "round": ["select=balanced", "fraction=1.0"], "seeds": [1]},
    ]
    table = read_table(write_table(tmp_path / "small.yml", control=None, rows=rows))
    assert [[*row] for row in plan(table)] == [[1, 2], [1, 2], [1]]
    assert "digits-20-seed2-balanced-1" not in [run.name for run in in_order(table)]
    head, _, supervised, nothing, everything = cells(render(table, done / "results"))
    assert head[2] == "difference, 95% interval" and supervised[2] == "-" and everything[2] == "-"
    assert nothing[5] == "2" and everything[5] == "1"
    accuracies = [[kept(done)[run.name].results.test_accuracy for run in row.values()] for row in plan(table)[:2]]
    assert nothing[2] == interval(np.subtract(*reversed(accuracies)))


def test_what_rows_cost_is_shown(done, tmp_path):
    table = read_table(write_table(tmp_path / "small.yml", passes=True))
    head, _, supervised, nothing, _ = cells(render(table, done / "results"))
    assert head[-2:] == ["passes over images, millions", "elsewhere"] and supervised[-1] == "12.34"
    of_run, of_round = 12 * 8 * (2 + 9), 4 * 8 * (2 + 9)  # steps * batch size * (guesses + 3 * batches)
    assert passes_of(plan(table)[1][1], kept(done)) == of_run + of_round
    assert passes_of(plan(table)[0][1], kept(done)) == 12 * 8 * 3
    assert supervised[-2] == "0.00" and nothing[-2] == "0.00"
    lines = kept(done)
    del lines["digits-20-seed1"]  # what the round goes on from is not known
    assert passes_of(plan(table)[1][1], lines) is None
    without(done, tmp_path / "results", *(name for name in kept(done) if "supervised" in name))
    assert cells(render(table, tmp_path / "results"))[2][-2] == "-"


def test_the_last_evaluation_may_stand_for_a_run(done, tmp_path):
    rows = [{"label": "supervised", "set": ["method=supervised"]}, {"label": "nothing", "round": ["select=none"]}]
    table = read_table(write_table(tmp_path / "small.yml", rows=rows, control=None, accuracy="last"))
    text = render(table, done / "results")
    last = [metrics(done / "runs" / f"digits-20-supervised-seed{seed}")[-1]["test_accuracy"] for seed in (1, 2)]
    head, _, supervised, _ = cells(text)
    assert supervised[1] == f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}" and "of the last evaluation." in text
    assert head[2:] == ["precision (%)", "seeds", "steps"]  # no round fixes labels: there is no coverage


def interval(gain):
    low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), gain.std(ddof=1) / len(gain) ** 0.5)
    return f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def test_slices_of_time_end_in_the_same_runs(done, tmp_path, monkeypatch, capsys):
    """The clock is ours: every reading of it is a second later, so that each slice is a few steps."""
    clock = iter(range(10**9))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    slices = 0
    while True:
        assert command(tmp_path, done / "small.yml", "--minutes", "0.5") == 0
        slices += 1
        printed = capsys.readouterr().out
        if printed.splitlines()[-2] == "complete":
            break
        assert "the time is up at step" in printed or "not complete" in printed
        assert slices < 60
    assert slices > 3
    for path in (done / "runs").iterdir():
        assert_same_run(path, tmp_path / "runs" / path.name)


def test_two_commands_at_once_share_the_runs(tmp_path):
    table = write_table(tmp_path / "small.yml", control=None, rows=[{"label": "a"}], seeds=[1, 2, 3])
    arguments = [str(a) for a in (table, "--quiet", "--runs", tmp_path / "runs", "--results", tmp_path / "results")]
    outputs = []

    def start():
        command = [sys.executable, "-m", "reproduce", *arguments]
        outputs.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output.returncode for output in outputs] == [0, 0], outputs
    trained = [line.split(":")[0] for output in outputs for line in output.stdout.splitlines() if "steps/s" in line]
    assert sorted(trained) == [f"digits-20-seed{seed}" for seed in (1, 2, 3)]
    assert list(kept(tmp_path)) == [f"digits-20-seed{seed}" for seed in (1, 2, 3)]


def test_missing_trains_what_has_no_result_and_the_runs_that_it_goes_on_from(done, tmp_path, capsys):
    without(done, tmp_path / "results", "digits-20-seed1-balanced-1")
    before = kept(tmp_path)
    assert command(tmp_path, done / "small.yml", "--missing", "--quiet") == 0
    assert "\ncomplete\n" in capsys.readouterr().out
    trained = {path.name for path in (tmp_path / "runs").iterdir()}
    assert trained == {"digits-20-seed1", "digits-20-seed1-balanced-1"}
    assert {name for name, line in before.items() if kept(tmp_path)[name] != line} <= {"digits-20-seed1"}
    assert set(kept(tmp_path)) == set(kept(done))
    for name in trained:
        assert_same_run(done / "runs" / name, tmp_path / "runs" / name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["labels", "--list"], "--list, --render and --compare train nothing"),
        (["--list", "--render", "README.md"], "not allowed with argument --list"),
        ([], "TABLE: none is given; --list lists them"),
        (
            ["labels", "--data", "mnist"],
            "mnist: is no table; there are ablation --data cifar10, ablation",
        ),
        (["labels", "--data", "digits", "--seeds", "6"], "--seeds: the table's are 1, 2, 3, 4, 5"),
        (["nowhere.yml"], "nowhere.yml: No such file"),
        (["--render", "nowhere.md"], "nowhere.md: cannot be read"),
        (["labels", "--minutes", "soon"], "argument --minutes: invalid float value"),
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
        ({"control": None, "rows": [{"label": "a", "control": "b"}]}, "control: must be the label of a row, got 'b'"),
        (
            {"control": None, "rows": [{"label": "a", "round": ["select=none", "train.lr=0.1"]}]},
            "train.lr: belongs to the run; a round can change pseudo_label.*",
        ),
        ({"control": None, "rows": [{"label": "a", "seeds": [3]}]}, "seeds of 'a' must be among the table's"),
        ({"rows": [{"label": "a"}, {"label": "a"}]}, "two rows have the same label"),
        ({"rows": [{"label": "a|b"}]}, "rows"),
        ({"control": None, "rows": [{"label": "a", "set": ["train.lr=no"]}]}, "train.lr"),
        ({"control": None, "rows": [{"label": "a"}, {"label": "b", "set": ["train.lr=0.1"]}]}, "set name=... in one"),
    ],
)
def test_a_table_that_is_none(tmp_path, capsys, values, message):
    table = write_table(tmp_path / "small.yml", **values)
    assert command(tmp_path, table) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_results_of_another_config_are_shown_as_such_until_trained_anew(done, tmp_path, capsys):
    shutil.copytree(done / "results", tmp_path / "results")
    values = {"set": [*read_table(done / "small.yml").set, "train.lr=0.01"], "seeds": [1]}
    table = write_table(tmp_path / "small.yml", **values)
    text = render(read_table(table), tmp_path / "results")
    assert "where the config was another: train.lr (0.004 there, 0.01 now)" in text and "commit" in text
    assert command(tmp_path, "--list", "--tables", tmp_path) == 0
    assert "4 of 4 runs, 4 of another config" in capsys.readouterr().out
    assert command(tmp_path, table, "--quiet") == 0
    assert "config was another" not in render(read_table(table), tmp_path / "results")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"run": "a"}', b"\xff", b'{"run": "a", "config": {"x": 1}}'])
def test_what_is_no_result_file_is_refused_before_training(done, tmp_path, capsys, content):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "small.jsonl").write_bytes(content)
    assert command(tmp_path, done / "small.yml") == 2
    error = capsys.readouterr().err
    assert "small.jsonl: is no result file" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_results_of_a_table_of_ones_own_lie_beside_it(done):
    assert result_file(read_table(done / "small.yml"), None) == done / "small.jsonl"
    assert result_file(read_table(TABLES / "labels-digits.yml"), None) == RESULTS / "labels-digits.jsonl"


def test_committed_results_are_of_the_tables_runs_and_whole():
    files = list(RESULTS.glob("*.jsonl"))
    assert len(files) >= 6
    for file in files:
        names = [run.name for run in in_order(read_table(TABLES / f"{file.stem}.yml"))]
        lines = read_lines(file)
        assert [name for name in names if name in lines] == list(lines)
        assert all(isinstance(line, Line) and line.results.test_accuracy > 10 for line in lines.values())


def test_a_run_that_diverges_leaves_a_dash_and_the_others_go_on(tmp_path, capsys):
    rows = [{"label": "wild", "set": ["train.lr=1000000.0", "name=wild"]}, {"label": "tame"}]
    table = write_table(tmp_path / "small.yml", control=None, seeds=[1], rows=rows)
    assert command(tmp_path, table) == 1
    error = capsys.readouterr().err
    assert "wild-seed1: " in error and "no longer finite" in error
    assert error.endswith("without wild-seed1, which diverged, the table has gaps\n")
    *_, wild, tame = cells(render(read_table(table), tmp_path / "results"))
    assert wild[1] == "-" and float(tame[1]) >= 0


def test_photographs_without_a_test_set_are_a_dash(tmp_path, capsys):
    for i in range(24):
        folder = tmp_path / "photos" / ("unlabeled" if i > 7 else f"train/{'ab'[i % 2]}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (i * 9, 99, 50)).save(folder / f"{i}.png")
    (tmp_path / "base.yml").write_text(f"{{name: mine, data: {{dataset: folder, root: {tmp_path / 'photos'}}}}}")
    settings = ["data.num_labeled=all", "data.num_validation=2", "data.image_size=12", *SMALL[3:]]
    table = write_table(tmp_path / "mine.yml", config="base.yml", set=settings, control=None, rows=[{"label": "all"}])
    assert command(tmp_path, table, "--quiet") == 0
    printed = capsys.readouterr().out
    assert cells(printed)[2] == ["all", "-", "2", "12"]
    assert f"`python3 -m reproduce {table}`" in printed and "mine-seed1: best validation" in printed


def test_the_only_data_of_a_table_is_taken():
    assert find_table("demo", None).name == "demo-digits.yml"
    assert find_table("labels", None).name == "labels-cifar10.yml"


def test_all_runs_of_all_tables_have_one_meaning():
    known = {}
    for file in TABLES.glob("*.yml"):
        for row in plan(read_table(file)):
            for planned in row.values():
                assert known.setdefault(planned.name, planned) == planned, (file.name, planned.name)
    assert len(known) > 200


def test_the_published_figures_of_ablations_are_one_hundred_less_the_papers_errors():
    errors = {250: [11.80, 17.09, 11.55, 12.45, 27.83, 11.86, 39.11, 32.16, 12.35, 12.26]}
    errors[4000] = [6.00, 8.06, 6.23, 5.88, 10.59, 6.47, 10.97, 9.22, 6.83, 6.50]
    for name, labels in (("ablation-cifar10", 250), ("ablation-digits", 250), ("ablation-cifar10-4000", 4000)):
        published = [next(iter(row.published.values())) for row in read_table(TABLES / f"{name}.yml").rows]
        assert published == [f"{100 - error:.2f}" for error in errors[labels]]


def test_the_ablations_on_digits_are_those_of_cifar10():
    ours, papers = (plan(read_table(TABLES / f"ablation-{data}.yml")) for data in ("digits", "cifar10"))
    for a, b in zip(ours, papers, strict=True):
        temperature = {0.5: 0.3, 1.0: 1.0}[b[3].config.mixmatch.temperature]
        changes = {"temperature": temperature, "ramp_up_steps": 600}
        assert a[3].config.mixmatch == b[3].config.mixmatch.model_copy(update=changes)


def test_the_texts_show_what_the_result_files_render():
    texts = [path.read_text() for path in SHOWN]
    assert sum(text.count("<!-- table ") for text in texts) >= 8
    assert [render_into(text) for text in texts] == texts


def test_rendering_rewrites_the_tables_and_nothing_else(done, tmp_path, capsys):
    file = tmp_path / "text.md"
    file.write_text("before\n<!-- table small -->\nold\n<!-- end of table -->\nafter\n")
    assert command(done, "--render", file, "--tables", done) == 0
    table = render(read_table(done / "small.yml"), done / "results")
    assert file.read_text() == f"before\n<!-- table small -->\n{table}\n<!-- end of table -->\nafter\n"
    file.write_text("<!-- table small: noth -->\nold\n<!-- end of table -->\nafter\n")
    assert command(done, "--render", file, "--tables", done) == 0
    shown = file.read_text().splitlines()
    assert shown[1:3] == table.splitlines()[2:4] and shown[4:] == ["<!-- end of table -->", "after"]
    assert shown[3] == next(line for line in table.splitlines() if line.startswith("| nothing |"))
    file.write_text("<!-- table small: somth -->\nold\n<!-- end of table -->\nafter\n")
    assert command(done, "--render", file, "--tables", done) == 2
    assert "small.yml: has no row whose label begins with 'somth'" in capsys.readouterr().err
    file.write_text("<!-- table small -->\nno end")
    assert command(done, "--render", file, "--tables", done) == 2
    assert "has no '<!-- end of table -->' line" in capsys.readouterr().err


def test_the_list_counts_what_is_there(done, capsys):
    assert command(done, "--list", "--tables", done) == 0
    assert capsys.readouterr().out.split() == [str(done / "small.yml"), "8", "of", "8", "runs"]


def test_runs_are_compared_by_what_differs(done, capsys):
    runs = sorted(path for path in (done / "runs").iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    capsys.readouterr()
    assert command_of_tables.main(["--compare", *map(str, runs), str(done)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert lines[-1] == f"left out: {done}: is no run directory; the folder of a run is needed"
    expected = ["method", "train.steps", "round.select", "test accuracy (%)", "best validation (%)", "seeds", "seconds"]
    assert head == expected
    by_name = {}
    for path in runs:
        by_name.setdefault(path.name.replace("-seed1", "").replace("-seed2", ""), []).append(path)
    assert len(rows) == len(by_name) == 4  # supervised, the run, and two rounds on it
    for members in by_name.values():
        tests = [json.loads((path / "results.json").read_text())["test_accuracy"] for path in members]
        figure = f"{np.mean(tests):.2f} ± {np.std(tests, ddof=1):.2f}"
        row = next(row for row in rows if row[head.index("test accuracy (%)")] == figure)
        assert row[head.index("seeds")] == "1, 2"
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_comparing_what_is_no_run_is_one_line(tmp_path, capsys):
    assert command_of_tables.main(["--compare", str(tmp_path / "nothing")]) == 2
    assert "none of these is a finished run" in capsys.readouterr().err
    assert command_of_tables.main(["labels", "--compare", str(tmp_path)]) == 2
