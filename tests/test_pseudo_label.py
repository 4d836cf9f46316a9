"""Pseudo-labels: the rules on hand-made predictions, calibration, and whole rounds through pseudo_label.py."""

import csv
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import main
import pseudo_label
from mixmatch.cli.common import import_files
from mixmatch.config import PseudoLabelSettings, load_config
from mixmatch.data import DATASETS, Dataset
from mixmatch.data.split import Split
from mixmatch.pseudo_labels.calibration import calibrate, draw_reliability
from mixmatch.pseudo_labels.rules import balance, describe_selection, select, threshold_table, to_csv
from mixmatch.runs.directory import RunDirectory
from reproduce.compare import compare_runs
from tests.factories import make_toy_trainer, toy_data
from tests.fake_cuda_graph import optimizers_of_a_gpu
from tests.helpers import (
    ROOT,
    after_each_step,
    assert_same_curves,
    assert_same_run,
    curves,
    final,
    metrics,
    run,
    signal_after,
)

UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
PREDICTIONS = torch.tensor(
    [
        [0.96, 0.03, 0.01],
        [0.95, 0.04, 0.01],  # exactly at the threshold
        [0.94, 0.05, 0.01],
        [0.10, 0.80, 0.10],
        [0.10, 0.80, 0.10],  # ties with the one before
        [0.20, 0.60, 0.20],
    ]
)  # class 2 is never predicted


def chosen(select_, predictions=PREDICTIONS, prior=UNIFORM, **settings):
    selection = select(predictions, prior, PseudoLabelSettings(select=select_, **settings))
    assert selection.chosen.shape == selection.labels.shape == (len(predictions),)
    return selection.chosen.nonzero().flatten().tolist(), selection.labels.tolist()


def test_threshold_takes_what_is_at_least_so_confident():
    assert chosen("threshold", threshold=0.95) == ([0, 1], [0, 0, 0, 1, 1, 1])
    assert chosen("threshold", threshold=0.5)[0] == [0, 1, 2, 3, 4, 5]
    assert chosen("threshold", threshold=1.0)[0] == []


def test_top_takes_the_share_of_each_predicted_class_and_ties():
    assert chosen("top", fraction=0.1)[0] == [0, 3, 4]  # one of each class, and what ties with it
    assert chosen("top", fraction=0.5)[0] == [0, 1, 3, 4]
    assert chosen("top", fraction=1.0)[0] == [0, 1, 2, 3, 4, 5]


def test_nothing_to_select_from():
    assert chosen("none")[0] == []
    for rule in ("none", "threshold", "top", "balanced"):
        assert chosen(rule, torch.empty(0, 3)) == ([], [])


@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 1))
def test_the_faithful_rules_keep_to_their_definition(count, classes, seed, fraction):
    source = torch.Generator().manual_seed(seed)
    predictions = (torch.randint(0, 5, (count, classes), generator=source).float()).softmax(dim=1)
    confidence, labels = predictions.max(1)
    prior = torch.full((classes,), 1 / classes, dtype=torch.float64)
    picked, given_labels = chosen("threshold", predictions, prior, threshold=fraction)
    assert picked == [i for i in range(count) if confidence[i] >= fraction] and given_labels == labels.tolist()
    picked, _ = chosen("top", predictions, prior, fraction=fraction)
    for number in range(classes):
        members = [i for i in range(count) if labels[i] == number]
        taken = [i for i in members if i in picked]
        left = [i for i in members if i not in picked]
        if members:
            assert len(taken) >= fraction * len(members) - 1e-9
            assert all(confidence[i] > confidence[j] for i in taken for j in left)
            least = [i for i in taken if confidence[i] == min(confidence[j] for j in taken)]
            assert len(taken) - len(least) < fraction * len(members)  # without the last and its ties it were too few


def test_balance_by_hand():
    """A class that takes all but a little of another gives up its least certain members."""
    predictions = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert chosen("top", predictions, half, fraction=1.0)[1] == [0, 0, 0, 0]
    assert chosen("balanced", predictions, half, fraction=1.0)[1] == [0, 0, 1, 1]
    # For two classes the scaled odds are the old ones times one factor.
    table = balance(predictions, half)
    factors = (table[:, 1] / table[:, 0]) / (predictions[:, 1] / predictions[:, 0]).double()
    torch.testing.assert_close(factors, factors[:1].expand(4))


@given(st.integers(10, 80), st.integers(2, 6), st.integers(0, 10**6))
def test_balance_gives_each_class_its_share(count, classes, seed):
    source = torch.Generator().manual_seed(seed)
    predictions = torch.randn(count, classes, generator=source).softmax(dim=1)
    prior = torch.rand(classes, generator=source, dtype=torch.float64) + 0.2
    prior = prior / prior.sum()
    table = balance(predictions, prior)
    torch.testing.assert_close(table.sum(1), torch.ones(count, dtype=torch.float64))
    torch.testing.assert_close(table.sum(0) / count, prior, rtol=1e-3, atol=1e-4)


def test_the_table_of_thresholds():
    truth = torch.tensor([0, 1, 0, -1, 1, 1])
    table = threshold_table(PREDICTIONS, truth)
    assert [row["generated"] for row in table] == [3, 2, 0, 0, 0]
    assert [row["correct"] for row in table] == [2, 1, 0, 0, 0]
    assert table[0]["precision"] == pytest.approx(200 / 3) and table[2]["precision"] is None
    unknown = threshold_table(PREDICTIONS, torch.full((6,), -1))
    assert all(row["correct"] is None and row["precision"] is None for row in unknown)


def test_a_selection_is_described_with_and_without_truth():
    selection = select(PREDICTIONS, UNIFORM, PseudoLabelSettings(select="top", fraction=0.5))
    entry = describe_selection(selection, torch.tensor([0, 1, 0, 1, 1, 1]), ["a", "b", "c"])
    assert (entry["candidates"], entry["selected"], entry["correct"]) == (6, 4, 3)
    assert entry["coverage"] == pytest.approx(400 / 6) and entry["precision"] == 75
    assert entry["classes"]["a"] == {"selected": 2, "correct": 1, "precision": 50}
    assert entry["classes"]["c"] == {"selected": 0, "correct": 0, "precision": None}
    unknown = describe_selection(selection, torch.full((6,), -1), ["a", "b", "c"])
    assert unknown["precision"] is None and unknown["classes"]["a"]["correct"] is None


def test_csv():
    selection = select(PREDICTIONS, UNIFORM, PseudoLabelSettings(select="threshold"))
    text = to_csv(torch.arange(10, 16), PREDICTIONS, selection, torch.tensor([0, 1, -1, 1, 1, 1]), ["a", "b, c", "d"])
    rows = list(csv.DictReader(text.splitlines()))
    assert rows[0] == {
        "index": "10",
        "predicted_class": "a",
        "confidence": "0.960000",
        "selected": "1",
        "label": "a",
        "true_class": "a",
        "correct": "1",
    }
    assert rows[1]["correct"] == "0" and rows[1]["true_class"] == "b, c"
    assert rows[2]["true_class"] == "" == rows[2]["correct"] and rows[2]["selected"] == "0"


def test_calibration_by_hand():
    predictions = torch.tensor([[0.995, 0.005], [0.995, 0.005], [0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    result = calibrate(predictions, torch.tensor([0, 1, 0, 1]))
    # Bins of 1/15: the first two share the last, half right; 0.7 and 0.6 are alone in theirs, both right.
    assert result.counts.tolist() == [0] * 8 + [1, 0, 1, 0, 0, 0, 2]
    assert result.error == pytest.approx((2 * abs(0.5 - 0.995) + 0.3 + 0.4) / 4)
    assert (result.wrong_above_99, result.above_99) == (1, 2)
    assert draw_reliability("x", result).size[0] > 100


def test_perfect_and_worst_calibration():
    certain = torch.tensor([[1.0, 0.0]] * 5)
    assert calibrate(certain, torch.zeros(5, dtype=torch.int64)).error == 0
    assert calibrate(certain, torch.ones(5, dtype=torch.int64)).error == 1


def round_trainer(unlabeled):
    split = Split("toy", "", list(range(6)), unlabeled, [])
    return make_toy_trainer(split=split, data=toy_data(count=30), model={"width": 0.5}, train={"batch_size": 6})


def test_selected_images_are_labeled_with_their_pseudo_labels_and_leave_the_unlabeled():
    trainer = round_trainer(list(range(30)))
    trainer.pool.add_labels(torch.tensor([10, 20]), torch.tensor([2, 0]))
    assert trainer.pool.labeled.tolist() == [0, 1, 2, 3, 4, 5, 10, 20]
    assert trainer.pool.targets.tolist() == [0, 1, 2, 0, 1, 2, 2, 0]
    assert trainer.pool.unlabeled.tolist() == [i for i in range(30) if i not in (10, 20)]
    for _ in range(3):
        trainer.train_step()
    trainer.pool.add_labels(torch.tensor([11]), torch.tensor([1]))  # from the original set, not on top
    assert trainer.pool.labeled.tolist() == [0, 1, 2, 3, 4, 5, 11]
    assert len(trainer.pool.unlabeled) == 29
    trainer.train_step()


def test_everything_selected_leaves_all_images_unlabeled_too():
    trainer = round_trainer(list(range(6, 30)))
    trainer.pool.add_labels(torch.arange(6, 30), torch.zeros(24, dtype=torch.int64))
    assert len(trainer.pool.labeled) == 30 and len(trainer.pool.unlabeled) == 24
    trainer.train_step()


def test_a_selection_is_part_of_the_state():
    trainer, twin = round_trainer(list(range(30))), round_trainer(list(range(30)))
    trainer.pool.add_labels(torch.tensor([10, 20]), torch.tensor([2, 0]))
    trainer.train_step()
    twin.load_state({name: value.clone() for name, value in trainer.state().items()}, 1)
    for each in (trainer, twin):
        each.train_step()
    assert all(torch.equal(value, twin.state()[name]) for name, value in trainer.state().items())


QUICK = ["model.bn_momentum=0.1", "train.ema_decay=0.9", "train.steps=30", "train.batch_size=16"]
ROUND = [
    "pseudo_label.steps=12",
    "pseudo_label.refresh_every=5",
    "pseudo_label.select=top",
    "pseudo_label.fraction=0.3",
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    path = tmp_path_factory.mktemp("parent") / "run"
    assert run(path, *QUICK) == 0
    return path


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "lock" not in file.name}


def one_round(parent, path, *overrides):
    return pseudo_label.main(["--run-dir", str(parent), "--output-dir", str(path), *ROUND, *overrides])


def test_a_round_leaves_what_it_should(parent, tmp_path, capsys):
    before = contents(parent)
    path = tmp_path / "round"
    assert one_round(parent, path) == 0
    printed = capsys.readouterr().out
    assert "a round of pseudo-labels" in printed and "threshold  generated   correct  precision" in printed
    assert printed.count("pseudo_label.select=top makes") == 3  # at steps 30, 35, 40

    results = json.loads((path / "results.json").read_text())
    details = results["pseudo_label"]
    assert results["steps"] == 42 and details["start"] == 30 and details["select"] == "top"
    last = json.loads((parent / "results.json").read_text())["test_accuracy_last"]
    assert details["before"]["test_accuracy"] == last
    assert [entry["step"] for entry in details["selections"]] == [30, 35, 40]
    assert set(details["selections"][0]["calibration"]) == {"unlabeled", "validation", "test"}
    rows = list(csv.DictReader((path / "pseudo_labels.csv").read_text().splitlines()))
    assert len(rows) == 1327 == details["selections"][-1]["candidates"]
    assert sum(row["selected"] == "1" for row in rows) == details["selections"][-1]["selected"] > 0
    for name in (
        "selection",
        "reliability_unlabeled",
        "reliability_validation",
        "reliability_test",
        "confident_mistakes",
    ):
        assert (path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"pseudo_labels/{name}" in curves(path)[1].Tags()["images"]
    assert [entry["step"] for entry in metrics(path)] == [36, 42]
    assert before == contents(parent)


def test_the_control_is_the_parent_trained_on(parent, tmp_path):
    assert one_round(parent, tmp_path / "control", "pseudo_label.select=none") == 0
    assert run(tmp_path / "longer", *QUICK, "train.steps=42") == 0
    ours, theirs = metrics(tmp_path / "control"), metrics(tmp_path / "longer")
    # Before the round the optimizer's decay, EMA and draws are the same, so the weights are.
    assert [entry["test_accuracy"] for entry in ours] == [e["test_accuracy"] for e in theirs if e["step"] > 30]
    assert [entry["loss"] for entry in ours] == [e["loss"] for e in theirs if e["step"] > 30]


BY_METHOD = ["pseudo_label.select=method", "pseudo_label.refresh_every=null", "pseudo_label.lr_schedule=cosine"]


@pytest.mark.parametrize(
    "settings",
    [
        ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=2"],
        ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=2", "remixmatch.ramp_up_steps=0"],
        ["pseudo_label.method=supervised"],
    ],
    ids=["softmatch", "remixmatch", "supervised"],
)
def test_a_round_by_another_method(parent, tmp_path, monkeypatch, capsys, settings):
    before = contents(parent)
    assert one_round(parent, tmp_path / "whole", *BY_METHOD, *settings) == 0
    printed = capsys.readouterr().out
    method = settings[0].partition("=")[2]
    assert printed.count(f"pseudo_label.method={method} trains the round, no label is fixed; ") == 2
    assert printed.count("threshold  generated   correct  precision") == 2

    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["method"] == method and results["pseudo_label"]["select"] == "method"
    start, end = results["pseudo_label"]["selections"]
    assert (start["step"], end["step"]) == (30, 42) and start["coverage"] == end["coverage"] == 100
    rows = list(csv.DictReader((tmp_path / "whole" / "pseudo_labels.csv").read_text().splitlines()))
    right = [row["correct"] == "1" for row in rows]
    assert len(rows) == 1327 and 100 * sum(right) / len(rows) == pytest.approx(end["precision"])
    state, _ = final(tmp_path / "whole")
    assert len(state["pseudo.index"]) == 0  # nothing is fixed
    assert not curves(tmp_path / "whole")[0].get("train/lambda_u") or method != "softmatch"
    rates = [entry["lr"] for entry in metrics(tmp_path / "whole")]
    assert rates == pytest.approx([0.002 * math.cos(7 / 16 * math.pi * done) for done in (6 / 12, 12 / 12)])

    for stop_at, number in ((30 + 3, signal.SIGTERM), (30 + 8, signal.SIGINT)):
        signal_after(monkeypatch, stop_at, number)
        assert one_round(parent, tmp_path / "cut", *BY_METHOD, *settings) == 128 + number
        monkeypatch.undo()
    # It is an ordinary run, and says itself by what it is trained.
    assert main.main(["--run-dir", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")
    assert one_round(parent, tmp_path / "whole", *BY_METHOD, *settings) == 0
    assert before == contents(parent)


def reconfigure(run, was, becomes):
    text = (run / "config.yml").read_text()
    assert was in text
    (run / "config.yml").write_text(text.replace(was, becomes, 1))


@pytest.mark.parametrize(
    "was, becomes, message",
    [
        ("\n  temperature: 0.5", "\n  temperature: 0.7", "mixmatch.temperature (0.5 there, 0.7 now)"),
        ("\nmethod: mixmatch", "\nmethod: supervised", "goes on from a run by mixmatch, "),
    ],
)
def test_a_round_by_a_method_is_none_of_another_run(parent, tmp_path, capsys, was, becomes, message):
    shutil.copytree(parent, tmp_path / "run")
    settings = [
        "--run-dir",
        str(tmp_path / "run"),
        *BY_METHOD,
        "pseudo_label.method=supervised",
        "pseudo_label.steps=12",
    ]
    assert pseudo_label.main(settings) == 0
    reconfigure(tmp_path / "run", was, becomes)
    capsys.readouterr()
    assert pseudo_label.main(settings) == 2
    error = capsys.readouterr().err
    assert message in error and "use another directory (--output-dir)" in error and error.count("\n") == 1


def test_rounds_by_a_method_on_different_runs_are_compared_as_such(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "other")
    reconfigure(tmp_path / "other", "\n  temperature: 0.5", "\n  temperature: 0.7")
    rounds = [tmp_path / "a", tmp_path / "b"]
    for trained, to in zip((parent, tmp_path / "other"), rounds, strict=True):
        assert one_round(trained, to, *BY_METHOD, "pseudo_label.method=supervised") == 0
        results = json.loads((to / "results.json").read_text())
        assert results["pseudo_label"]["method_before"] == "mixmatch"
    lines = compare_runs(rounds)[0].splitlines()
    assert lines[0].startswith("| mixmatch.temperature | test accuracy (%)") and len(lines) == 4


def test_a_round_by_a_method_begins_with_what_the_method_begins_with(parent, tmp_path, monkeypatch):
    seen = []
    after_each_step(monkeypatch, lambda trainer: seen.append(trainer.method.state["mean"].item()))
    settings = ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1", "softmatch.momentum=0.5"]
    assert one_round(parent, tmp_path / "round", *BY_METHOD, *settings) == 0
    assert len(seen) == 12 and seen[0] < 0.1 / 2 + 0.5  # half of the 1 / 10 that it starts with
    # A round on that round, by the same method, begins anew too; and one may be called as one likes.
    again = ["--run-dir", str(tmp_path / "round"), "pseudo_label.name=twice", "pseudo_label.lr_schedule=null"]
    assert pseudo_label.main(again) == 0
    assert pseudo_label.main(again) == 0
    assert (tmp_path / "round-twice" / "results.json").exists()
    assert len(seen) == 24 and seen[12] < 0.1 / 2 + 0.5
    assert pseudo_label.main(["--run-dir", str(tmp_path / "round-twice")]) == 0  # the name is not passed on
    assert (tmp_path / "round-twice-softmatch" / "results.json").exists()


def test_a_round_by_a_method_forgets_labels_that_a_round_before_it_fixed(parent, tmp_path):
    threshold = ["pseudo_label.select=threshold", "pseudo_label.threshold=0.05"]
    assert one_round(parent, tmp_path / "fixed", *threshold) == 0
    assert len(final(tmp_path / "fixed")[0]["pseudo.index"]) > 1000
    settings = ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1"]
    assert one_round(tmp_path / "fixed", tmp_path / "round", *BY_METHOD, *settings) == 0
    assert len(final(tmp_path / "round")[0]["pseudo.index"]) == 0


def test_the_control_of_a_round_by_a_method_is_that_round_trained_on(parent, tmp_path, registries):
    import_files(["--import", str(ROOT / "tests" / "fixtures" / "plugin.py")])
    remixmatch = ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.ramp_up_steps=30"]
    remixmatch.append("remixmatch.lambda_rotation=0.5")
    assert one_round(parent, tmp_path / "round", *BY_METHOD, *remixmatch) == 0
    assert one_round(tmp_path / "round", tmp_path / "control", "pseudo_label.select=none") == 0
    weights = [entry["lambda_u"] for name in ("round", "control") for entry in metrics(tmp_path / name)]
    assert weights == pytest.approx([1.5 * step / 30 for step in (6, 12, 18, 24)])
    heads = [name for name in final(tmp_path / "control")[0] if name.startswith("head.")]
    assert heads == ["head.bias", "head.weight"]
    # Of a method's own output, and of its moments in the optimizer, nothing goes to a round by another method.
    softmatch = ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1"]
    assert one_round(tmp_path / "control", tmp_path / "other", *BY_METHOD, *softmatch) == 0
    moments = [{n for n in final(tmp_path / name)[0] if "exp_avg_sq" in n} for name in ("control", "other")]
    assert moments[0] > moments[1] and len(moments[0] - moments[1]) == 2
    # A schedule over the run's length ends with the round.
    assert one_round(parent, tmp_path / "toy", *BY_METHOD, "pseudo_label.method=toy", "toy.weight=0.5") == 0
    assert [entry["toy_weight"] for entry in metrics(tmp_path / "toy")] == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("select", ["none", "top"])
def test_a_schedule_over_all_of_the_run_stays_where_it_ended(tmp_path, select):
    settings = ["mixmatch.ramp_up_steps=null", "mixmatch.lambda_u=8"]
    assert run(tmp_path / "run", *settings) == 0
    assert [entry["lambda_u"] for entry in metrics(tmp_path / "run")] == pytest.approx([4, 8])
    rounds = ["pseudo_label.steps=6", f"pseudo_label.select={select}", "pseudo_label.refresh_every=null"]
    assert one_round(tmp_path / "run", tmp_path / "round", *rounds) == 0
    assert one_round(tmp_path / "round", tmp_path / "again", *rounds) == 0  # a round on a round
    for name in ("round", "again"):
        assert [entry["lambda_u"] for entry in metrics(tmp_path / name)] == [8]
    anew = [*BY_METHOD, "pseudo_label.method=mixmatch", "pseudo_label.steps=12"]
    assert one_round(tmp_path / "round", tmp_path / "anew", *anew) == 0
    assert [entry["lambda_u"] for entry in metrics(tmp_path / "anew")] == pytest.approx([4, 8])


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_an_output_that_a_round_adds_joins_an_optimizer_that_has_gone_on(tmp_path, optimizer):
    with optimizers_of_a_gpu():  # these want the state of all parameters or of none
        assert run(tmp_path / "run", f"train.optimizer={optimizer}") == 0
        settings = ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.lambda_rotation=0.5"]
        assert one_round(tmp_path / "run", tmp_path / "round", *BY_METHOD, *settings) == 0
    assert final(tmp_path / "round")[0]["head.weight"].any()
    assert all(entry["loss_rotation"] > 0 for entry in metrics(tmp_path / "round"))


def test_a_round_half_begun_is_begun_anew_and_no_run_from_step_0(parent, tmp_path, monkeypatch, capsys):
    settings = [*BY_METHOD, "pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1"]
    assert one_round(parent, tmp_path / "whole", *settings) == 0
    for number, name in enumerate(("write_images", "save", "write_config")):
        path = tmp_path / str(number)

        def dies(self, *arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(RunDirectory, name, dies)
        assert one_round(parent, path, *settings) == 128 + signal.SIGINT
        monkeypatch.undo()
        capsys.readouterr()
        assert main.main(["--run-dir", str(path)]) == 2
        assert not capsys.readouterr().out
        assert one_round(parent, path, *settings) == 0
        assert_same_run(tmp_path / "whole", path)


def test_main_does_a_round_by_a_method_on_a_run_that_is_there(tmp_path, capsys):
    assert run(tmp_path / "run", *QUICK) == 0
    by_method = [*ROUND, *BY_METHOD, "pseudo_label.enabled=true", "pseudo_label.method=softmatch"]
    assert run(tmp_path / "run", *QUICK, *by_method, "softmatch.unlabeled_ratio=2") == 0
    results = json.loads((tmp_path / "run-softmatch" / "results.json").read_text())
    assert results["method"] == "softmatch" and results["passes_per_step"] == 16 * (2 + 9)
    assert "softmatch" not in (tmp_path / "run" / "config.yml").read_text().replace("method: softmatch", "")
    assert run(tmp_path / "run", *QUICK, *by_method, "softmatch.unlabeled_ratio=3") == 2
    assert "softmatch.unlabeled_ratio (2 there, 3 now)" in capsys.readouterr().err
    assert run(tmp_path / "run", *QUICK, *by_method, "softmatch.unlabeled_ratio=2", "--check") == 0
    printed = capsys.readouterr().out
    assert "\n0 steps of " in printed and "the round: 12 steps of " in printed


def test_a_round_changes_the_section_of_its_method_alone(parent, tmp_path, capsys):
    for refused in (
        ["mixmatch.alpha=0.5"],
        ["pseudo_label.select=method", "pseudo_label.method=softmatch", "mixmatch.alpha=0.5"],
        ["softmatch.momentum=0.9"],
        ["pseudo_label.select=method", "pseudo_label.method=none"],
        ["pseudo_label.select=method", "pseudo_label.refresh_every=5"],
        ["pseudo_label.select=method", "pseudo_label.refresh_every=null", "pseudo_label.strong_augmentation=true"],
        ["pseudo_label.name=../x"],
    ):
        assert one_round(parent, tmp_path / "round", *refused) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "round").exists()
    settings = ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1"]
    assert one_round(parent, tmp_path / "round", *BY_METHOD, *settings) == 0
    assert one_round(parent, tmp_path / "round", *BY_METHOD, *settings, "softmatch.momentum=0.9") == 2
    assert "softmatch.momentum (0.999 there, 0.9 now)" in capsys.readouterr().err


def test_an_empty_selection_says_so_and_trains_on_unchanged(parent, tmp_path, capsys):
    assert one_round(parent, tmp_path / "control", "pseudo_label.select=none") == 0
    capsys.readouterr()
    nothing = ["pseudo_label.select=threshold", "pseudo_label.threshold=1.0"]
    assert one_round(parent, tmp_path / "empty", *nothing) == 0
    assert "selects nothing: training goes on unchanged" in capsys.readouterr().out
    assert [e["loss"] for e in metrics(tmp_path / "empty")] == [e["loss"] for e in metrics(tmp_path / "control")]


def test_the_truth_neither_selects_nor_orders_nor_stops(parent, tmp_path, monkeypatch):
    assert one_round(parent, tmp_path / "honest") == 0
    split = json.loads((parent / "split.json").read_text())
    digits = DATASETS["digits"]

    def permuted(settings, device, quiet):
        data = digits.load(settings, device, quiet)
        rest = torch.ones(len(data.labels), dtype=torch.bool)
        rest[split["labeled"] + split["validation"]] = False
        shuffled = data.labels[rest]
        data.labels[rest] = shuffled[torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(3))]
        (tmp_path / "parent" / "split.json").write_text(json.dumps(split | {"fingerprint": data.fingerprint()}))
        return data

    shutil.copytree(parent, tmp_path / "parent")
    permuted(load_config(None).data, torch.device("cpu"), True)
    monkeypatch.setitem(DATASETS, "digits", Dataset(permuted))
    assert one_round(tmp_path / "parent", tmp_path / "blind") == 0
    rows = [
        list(csv.DictReader((tmp_path / p / "pseudo_labels.csv").read_text().splitlines())) for p in ("honest", "blind")
    ]
    columns = ("index", "predicted_class", "confidence", "selected", "label")
    picked = [[[row[column] for column in columns] for row in each] for each in rows]
    assert picked[0] == picked[1]
    assert [row["true_class"] for row in rows[0]] != [row["true_class"] for row in rows[1]]
    losses = [[entry["loss"] for entry in metrics(tmp_path / p)] for p in ("honest", "blind")]
    assert losses[0] == losses[1]


def test_a_round_killed_at_random_continues_to_the_same_weights(parent, tmp_path):
    settings = [*ROUND, "pseudo_label.steps=30"]

    def command(to):
        return [
            sys.executable,
            "pseudo_label.py",
            "--run-dir",
            str(parent),
            "--output-dir",
            str(tmp_path / to),
            *settings,
        ]

    subprocess.run(command("whole"), cwd=ROOT, check=True, capture_output=True)
    chance = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(command("cut"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command("cut"), cwd=ROOT, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole/pseudo_labels.csv").read_bytes() == (tmp_path / "cut/pseudo_labels.csv").read_bytes()
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")


def test_a_starter_that_comes_late_deletes_nothing(parent, tmp_path, monkeypatch):
    """Between its look for a round and its lock, another process does the round."""
    look, paths = RunDirectory.load_newest, []

    def late(self):
        found = look(self)
        if self.path == tmp_path / "round" and not paths:
            paths.append(self.path)
            assert one_round(parent, self.path) == 0
        return found

    monkeypatch.setattr(RunDirectory, "load_newest", late)
    assert one_round(parent, tmp_path / "round") == 0
    assert RunDirectory(tmp_path / "round").newest_step() == 42
    assert (tmp_path / "round" / "results.json").exists()


def test_main_hands_over_and_again_is_finished(tmp_path, capsys):
    arguments = [*QUICK, *ROUND, "pseudo_label.enabled=true", "pseudo_label.refresh_every=null"]
    assert run(tmp_path / "run", *arguments) == 0
    assert (tmp_path / "run-top-0.3" / "results.json").exists()
    capsys.readouterr()
    assert run(tmp_path / "run", *arguments) == 0
    assert capsys.readouterr().out.count("is finished") == 2
    # The round is an ordinary run: main.py goes on with it by its own config.
    again = ["--run-dir", str(tmp_path / "run-top-0.3"), "--config", str(tmp_path / "run-top-0.3" / "config.yml")]
    assert main.main(again) == 0


def test_a_round_without_truth(tmp_path, capsys):
    from PIL import Image

    for part, count in (("train/cat", 4), ("train/dog", 4), ("unlabeled", 20)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i * 9, len(part) * 9, 50)).save(tmp_path / "photos" / part / f"{i}.png")
    folder = ["data.dataset=folder", f"data.root={tmp_path / 'photos'}", "data.num_labeled=all", "data.image_size=8"]
    assert run(tmp_path / "run", *QUICK, *folder, "data.num_validation=0") == 0
    assert pseudo_label.main(["--run-dir", str(tmp_path / "run"), *ROUND]) == 0
    assert "  threshold  generated\n" in capsys.readouterr().out
    path = tmp_path / "run-top-0.3"
    rows = list(csv.DictReader((path / "pseudo_labels.csv").read_text().splitlines()))
    assert len(rows) == 20 and all(row["true_class"] == "" for row in rows)
    assert {row["file"] for row in rows} == {f"unlabeled/{i}.png" for i in range(20)}
    selection = json.loads((path / "results.json").read_text())["pseudo_label"]["selections"][0]
    assert selection["precision"] is None and selection["calibration"] == {}

    finished = (path / "metrics.jsonl").read_text()
    (path / "results.json").unlink()
    sorted((path / "checkpoints").iterdir())[-1].unlink()
    assert pseudo_label.main(["--run-dir", str(tmp_path / "run"), *ROUND]) == 0
    assert len((path / "metrics.jsonl").read_text()) == pytest.approx(len(finished), abs=20)


def test_bad_input_is_one_line_and_exit_code_2(parent, tmp_path, capsys):
    def refused(*arguments):
        assert pseudo_label.main([str(argument) for argument in arguments]) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert error.startswith("error: ")
        return error

    assert "is no run directory" in refused("--run-dir", tmp_path / "nowhere")
    assert "the following arguments are required: --run-dir" in refused()
    assert "must be greater than 0, got 0" in refused("--run-dir", parent, "pseudo_label.threshold=0")
    assert "must be less than or equal to 1, got 1.5" in refused("--run-dir", parent, "pseudo_label.threshold=1.5")
    assert "must be 'none', 'threshold'" in refused("--run-dir", parent, "pseudo_label.select=best")

    for name in ("unfinished", "empty", "damaged"):
        shutil.copytree(parent, tmp_path / name)
    (tmp_path / "unfinished" / "results.json").unlink()
    assert "continue it first, or add --allow-unfinished" in refused("--run-dir", tmp_path / "unfinished")
    for path in (tmp_path / "empty" / "checkpoints").iterdir():
        path.unlink()
    assert "has no checkpoint" in refused("--run-dir", tmp_path / "empty")
    for path in (tmp_path / "damaged" / "checkpoints").iterdir():
        path.write_bytes(b"x")
    assert "no checkpoint is whole" in refused("--run-dir", tmp_path / "damaged")

    before = (parent / "results.json").read_bytes()
    assert "is a run of its own, no round" in refused("--run-dir", parent, "--output-dir", parent)
    assert (parent / "results.json").read_bytes() == before

    split = parent / "split.json"
    shutil.copytree(parent, tmp_path / "other")
    changed = json.loads(split.read_text()) | {"fingerprint": "of other images"}
    (tmp_path / "other" / "split.json").write_text(json.dumps(changed))
    assert "belongs to other images" in refused("--run-dir", tmp_path / "other", *ROUND)
    assert "model.width: belongs to the run" in refused("--run-dir", parent, "model.width=1")
    assert "train.steps: belongs to the run" in refused("--run-dir", parent, "train.steps=99")
    unfinished = ["--run-dir", str(tmp_path / "unfinished"), "--allow-unfinished", *ROUND]
    assert pseudo_label.main(unfinished) == 0
    # The round is a run of its own now: it finishes though its parent goes on, or is gone.
    path = tmp_path / "unfinished-top-0.3"
    (path / "results.json").unlink()
    shutil.rmtree(tmp_path / "unfinished" / "checkpoints")
    assert pseudo_label.main(unfinished) == 0
    said = refused(*unfinished, "--output-dir", path, "pseudo_label.fraction=0.4")
    assert (
        "holds a round with other settings: pseudo_label.fraction (" in said
        and "use another directory (--output-dir)" in said
    )
    said = refused(*unfinished, "--output-dir", path, "pseudo_label.steps=77")
    assert "pseudo_label.steps (" in said and "train.steps" not in said


def test_a_run_can_be_named_from_inside(parent, tmp_path, monkeypatch):
    shutil.copytree(parent, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert pseudo_label.main(["--run-dir", ".", *ROUND]) == 0
    assert (tmp_path / "run-top-0.3" / "results.json").exists()


def test_a_round_can_be_asked_for_later(tmp_path):
    arguments = [*QUICK, *ROUND]
    assert run(tmp_path / "run", *arguments) == 0
    assert run(tmp_path / "run", *arguments, "pseudo_label.enabled=true") == 0
    assert run(tmp_path / "run", *QUICK) == 0


def test_a_class_without_a_label_gets_no_share():
    table = balance(PREDICTIONS, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert table.isfinite().all() and (table[:, 2] == 0).all()
