"""Pseudo-labels: the rules on hand-made predictions, and whole stages through pseudo_label.py."""

import csv
import json
import math
import shutil
import signal

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mixmatch
from mixmatch.cli import pseudo_label, train
from mixmatch.cli.common import import_file
from mixmatch.config import PseudoLabelSettings, build_config
from mixmatch.data import DATASETS, load_data
from mixmatch.data.split import Split
from mixmatch.errors import Stopped
from mixmatch.inference import load_model
from mixmatch.pseudo_labels.rules import describe_selection, expected_calibration_error, select, to_csv
from mixmatch.pseudo_labels.stage import PseudoLabelStage
from mixmatch.pseudo_labels.start import find_stage, stage_config, start_stage
from mixmatch.runs.comparison import group_runs, read_run
from mixmatch.runs.directory import LockedRun, RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
from tests.factories import make_toy_trainer, toy_data
from tests.helpers import (
    CPU,
    ROOT,
    SMALL,
    after_each_step,
    assert_same_curves,
    assert_same_run,
    at_step,
    final,
    metrics,
    run,
    signal_after,
)

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


def selected(predictions=PREDICTIONS, **settings):
    return select(predictions, PseudoLabelSettings(**settings)).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"select": "threshold", "threshold": 0.95}, [0, 1]),
        ({"select": "threshold", "threshold": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"select": "threshold", "threshold": 1.0}, []),
        ({"select": "top", "fraction": 0.1}, [0, 3, 4]),  # one of each class, and a tie
        ({"select": "top", "fraction": 0.5}, [0, 1, 3, 4]),
        ({"select": "top", "fraction": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"select": "none"}, []),
        ({"method": "softmatch"}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_rules(settings, expected):
    assert selected(**settings) == expected
    assert selected(torch.empty(0, 3), **settings) == []


@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 1))
def test_top_selects_the_most_confident_fraction_of_each_class(count, classes, seed, fraction):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(0, 5, (count, classes), generator=generator).float().softmax(dim=1)
    confidence, labels = predictions.max(dim=1)
    top = selected(predictions, select="top", fraction=fraction)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten().tolist()
        inside = [confidence[i] for i in members if i in top]
        outside = [confidence[i] for i in members if i not in top]
        assert len(inside) >= fraction * len(members) - 1e-9
        assert all(min(inside) > value for value in outside)
        assert sum(value > min(inside) for value in inside) < fraction * len(members)  # the rest ties with the last


def test_the_number_of_selected_predictions_is_not_rounded_up_by_floating_point():
    confidence = torch.linspace(0.6, 0.9, 100)
    predictions = torch.stack([confidence, 1 - confidence], dim=1)
    for percent in range(1, 101):
        assert len(selected(predictions, select="top", fraction=percent / 100)) == percent


def test_statistics_with_and_without_true_labels():
    chosen = select(PREDICTIONS, PseudoLabelSettings(select="top", fraction=0.5))
    entry = describe_selection(7, PREDICTIONS, chosen, torch.tensor([0, 1, 0, -1, 1, 1]), ["a", "b", "c"], {})
    assert (entry.candidates, entry.selected, entry.correct, entry.precision) == (6, 4, 2, pytest.approx(200 / 3))
    assert entry.coverage == pytest.approx(400 / 6)
    assert entry.classes["a"].model_dump() == {"selected": 2, "correct": 1, "precision": 50}
    assert entry.classes["c"].model_dump() == {"selected": 0, "correct": 0, "precision": None}
    assert [counts.selected for counts in entry.thresholds.values()] == [3, 2, 0, 0, 0]
    assert entry.thresholds["0.9"].precision == pytest.approx(200 / 3) and entry.thresholds["0.97"].precision is None
    unknown = describe_selection(7, PREDICTIONS, chosen, torch.full((6,), -1), ["a", "b", "c"], {})
    for counts in (unknown, *unknown.classes.values(), *unknown.thresholds.values()):
        assert counts.correct is None and counts.precision is None


def test_csv():
    chosen = select(PREDICTIONS, PseudoLabelSettings())
    true_labels = torch.tensor([0, 1, -1, 1, 1, 1])
    text = to_csv(torch.arange(10, 16), PREDICTIONS, chosen, true_labels, ["a", "b, c", "d"])
    rows = list(csv.DictReader(text.splitlines()))
    values = {"index": "10", "predicted_class": "a", "confidence": "0.960000", "selected": "1"}
    assert rows[0] == {**values, "true_class": "a", "correct": "1"}
    assert rows[1]["correct"] == "0" and rows[1]["true_class"] == "b, c"
    assert rows[2]["true_class"] == rows[2]["correct"] == "" and rows[2]["selected"] == "0"


def test_expected_calibration_error():
    predictions = torch.tensor([[0.995, 0.005], [0.995, 0.005], [0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    # 0.995 twice in one bin, half of them correct; 0.7 and 0.6 in bins of their own, both correct.
    error = expected_calibration_error(predictions, torch.tensor([0, 1, 0, 1]))
    assert error == pytest.approx((2 * abs(0.5 - 0.995) + 0.3 + 0.4) / 4)
    certain = torch.tensor([[1.0, 0.0]] * 5)
    assert expected_calibration_error(certain, torch.zeros(5, dtype=torch.int64)) == 0
    assert expected_calibration_error(certain, torch.ones(5, dtype=torch.int64)) == 1


def trainer_with_unlabeled(unlabeled):
    split = Split("toy", "", list(range(6)), unlabeled, [])
    return make_toy_trainer(split=split, data=toy_data(count=30), model={"width": 0.5}, train={"batch_size": 6})


def test_pseudo_labeled_images_move_to_the_labeled_set():
    trainer = trainer_with_unlabeled(list(range(30)))
    trainer.dataset.set_pseudo_labels(torch.tensor([10, 20]), torch.tensor([2, 0]))
    assert trainer.dataset.labeled.tolist() == [0, 1, 2, 3, 4, 5, 10, 20]
    assert trainer.dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 0]
    assert trainer.dataset.unlabeled.tolist() == [i for i in range(30) if i not in (10, 20)]
    trainer.train_step()
    copy = trainer_with_unlabeled(list(range(30)))
    copy.load_state({name: value.clone() for name, value in trainer.state().items()}, 1)
    for each in (trainer, copy):
        each.train_step()
    assert all(torch.equal(value, copy.state()[name]) for name, value in trainer.state().items())
    trainer.dataset.set_pseudo_labels(torch.tensor([11]), torch.tensor([1]))  # replaces the former ones
    assert trainer.dataset.labeled.tolist() == [0, 1, 2, 3, 4, 5, 11] and len(trainer.dataset.unlabeled) == 29
    trainer.train_step()


def test_if_all_images_are_selected_they_stay_unlabeled_too():
    for first in (6, 0):  # without and with the labeled images among them
        trainer = trainer_with_unlabeled(list(range(first, 30)))
        trainer.dataset.set_pseudo_labels(torch.arange(6, 30), torch.zeros(24, dtype=torch.int64))
        assert len(trainer.dataset.labeled) == 30 and len(trainer.dataset.unlabeled) == 30 - first
        trainer.train_step()


QUICK = ["model.bn_momentum=0.1", "train.ema_decay=0.9", "train.steps=30", "train.batch_size=16"]
REFRESH = "pseudo_label.refresh_every=5"
STAGE = ["pseudo_label.steps=12", "pseudo_label.select=top", "pseudo_label.fraction=0.3"]
SOFTMATCH = [*STAGE[:1], "pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=1"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    path = tmp_path_factory.mktemp("parent") / "run"
    assert run(path, *QUICK) == 0
    return path


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "lock" not in file.name}


def stage(parent, path, *overrides):
    output = [] if path is None else ["--output-dir", str(path)]
    return pseudo_label.main(["--run-dir", str(parent), *output, *(overrides or STAGE)])


def results(path):
    return json.loads((path / "results.json").read_text())


def rows(path):
    """The rows of the last selection."""
    return list(csv.DictReader(max((path / "pseudo_labels").iterdir()).read_text().splitlines()))


def pseudo_labels(path):
    return final(path)[0]["pseudo.index"]


@pytest.mark.parametrize(("steps", "of_stage"), [(300, 300), (1_048_576, 65_536)])
def test_a_stage_is_as_long_as_its_run_by_default(steps, of_stage):
    config = stage_config(build_config({"train": {"steps": steps}}), steps)
    assert config.train.steps == steps + of_stage and config.pseudo_label.steps == of_stage


@pytest.mark.slow
def test_a_stage_selects_prints_and_records(parent, tmp_path, monkeypatch, capsys):
    before, matrices = contents(parent), {}
    monkeypatch.setattr(RunWriter, "confusion", lambda self, tag, matrix, *_: matrices.update({tag: matrix}))
    path = tmp_path / "stage"
    assert stage(parent, path, *STAGE, REFRESH) == 0
    printed = capsys.readouterr().out
    assert "threshold  generated   correct  precision" in printed
    assert printed.count("pseudo_label.select=top: ") == 3  # at steps 30, 35, 40

    found = results(path)
    details = found["pseudo_label"]
    assert (found["steps"], details["start_step"], details["parent_method"]) == (42, 30, "mixmatch")
    assert (details["select"], details["method"]) == ("top", None)
    assert details["accuracy_before"]["test"] == results(parent)["test_accuracy"]
    assert [entry["step"] for entry in details["selections"]] == [30, 35, 40]
    data = load_data(RunDirectory(path).read_config().data, CPU)
    errors = details["selections"][0]["calibration_error"]
    assert errors.keys() == {"unlabeled", "validation", "test"}
    predicted = load_model(parent).predict_probabilities(data.test_images)
    assert errors["test"] == pytest.approx(expected_calibration_error(predicted, data.test_labels)) != 0
    last = details["selections"][-1]
    assert len(rows(path)) == 1327 == last["candidates"]
    assert sum(row["selected"] == "1" for row in rows(path)) == last["selected"] == len(pseudo_labels(path)) > 0
    selected = [row for row in rows(path) if row["selected"] == "1"]
    true, guessed = ([data.classes[int(row[name])] for row in selected] for name in ("true_class", "predicted_class"))
    assert np.array_equal(
        matrices["pseudo_labels"], sklearn.metrics.confusion_matrix(true, guessed, labels=data.classes)
    )
    assert [entry["step"] for entry in metrics(path)] == [36, 42]
    # Each selection is kept, and the curves have the number of images that were labeled then.
    kept = sorted(file.name for file in (path / "pseudo_labels").iterdir())
    assert kept == [f"step-{step:08d}.csv" for step in (30, 35, 40)]
    chosen = {entry["step"]: entry["selected"] for entry in details["selections"]}
    counts = [(entry["labeled_images"], entry["unlabeled_images"]) for entry in metrics(path)]
    assert counts == [(20 + chosen[step], 1327 - chosen[step]) for step in (35, 40)]
    assert before == contents(parent)


@pytest.mark.slow
def test_the_control_is_the_parent_trained_longer(parent, tmp_path, capsys):
    assert stage(parent, tmp_path / "control", *STAGE, "pseudo_label.select=none") == 0
    assert run(tmp_path / "longer", *QUICK, "train.steps=42") == 0
    assert stage(parent, tmp_path / "empty", *STAGE[:1], "pseudo_label.threshold=1.0") == 0
    assert capsys.readouterr().out.count("no image is selected, training goes on with the split's labels alone") == 2
    values = [
        [(entry["loss"], entry["test_accuracy"]) for entry in metrics(tmp_path / name) if entry["step"] > 30]
        for name in ("control", "longer", "empty")
    ]
    assert values[0] == values[1] == values[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["pseudo_label.method=softmatch", "softmatch.unlabeled_ratio=2"],
        ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=2", "remixmatch.ramp_up_steps=0"],
        ["pseudo_label.method=supervised"],
    ],
    ids=["softmatch", "remixmatch", "supervised"],
)
def test_another_method_trains_a_stage_and_resumes_it(parent, tmp_path, monkeypatch, capsys, settings):
    settings = [*STAGE[:1], *settings, "pseudo_label.lr_schedule=cosine"]
    assert stage(parent, tmp_path / "whole", *settings) == 0
    printed = capsys.readouterr().out
    method = settings[1].partition("=")[2]
    assert printed.count(f"pseudo_label.method={method}: predictions are not fixed as labels") == 2

    details = results(tmp_path / "whole")["pseudo_label"]
    start, end = details["selections"]
    assert results(tmp_path / "whole")["method"] == details["method"] == method and details["select"] is None
    assert (start["step"], end["step"]) == (30, 42) and start["coverage"] == end["coverage"] == 100
    correct = [row["correct"] == "1" for row in rows(tmp_path / "whole")]
    assert 100 * sum(correct) / len(correct) == pytest.approx(end["precision"])
    assert len(pseudo_labels(tmp_path / "whole")) == 0
    rates = [entry["lr"] for entry in metrics(tmp_path / "whole")]
    assert rates == pytest.approx([0.002 * math.cos(7 / 16 * math.pi * done) for done in (6 / 12, 12 / 12)])

    for stop_at, number in ((30 + 3, signal.SIGTERM), (30 + 8, signal.SIGINT)):
        signal_after(monkeypatch, stop_at, number)
        assert stage(parent, tmp_path / "cut", *settings) == 128 + number
        monkeypatch.undo()
    assert train.main(["--run-dir", str(tmp_path / "cut")]) == 0  # a stage is an ordinary run
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_an_interrupted_stage_ends_in_the_same_weights(parent, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    assert stage(parent, tmp_path / "whole", *STAGE, REFRESH) == 0
    monkeypatch.setattr(LockedRun, "write_config", interrupt)  # between the first checkpoint and the config
    for settings in (SOFTMATCH, [*STAGE, REFRESH]):  # such a directory is as good as new
        assert stage(parent, tmp_path / "cut", *settings) == 128 + signal.SIGINT
    monkeypatch.undo()
    for step in (31, 35, 38, 41):
        at_step(monkeypatch, step, interrupt)
        assert stage(parent, tmp_path / "cut", *STAGE, REFRESH) == 128 + signal.SIGINT
        monkeypatch.undo()
    assert stage(parent, tmp_path / "cut", *STAGE, REFRESH) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


@pytest.mark.slow
def test_a_stage_does_not_continue_on_another_split(parent, tmp_path, monkeypatch, capsys):
    signal_after(monkeypatch, 33, signal.SIGTERM)
    assert stage(parent, tmp_path / "stage", *SOFTMATCH) == 128 + signal.SIGTERM
    monkeypatch.undo()
    (tmp_path / "stage" / "split.json").unlink()
    assert stage(parent, tmp_path / "stage", *SOFTMATCH) == 2
    assert f"{tmp_path / 'stage' / 'split.json'}: cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_one_start_serves_several_stages_and_their_resumption(parent, tmp_path, monkeypatch):
    config, _ = find_stage(parent, tmp_path / "a", STAGE)
    config, start = start_stage(parent, tmp_path / "a", config)
    signal_after(monkeypatch, 33, signal.SIGTERM)
    with pytest.raises(Stopped):
        mixmatch.train(config, tmp_path / "a", start=start)
    monkeypatch.undo()
    for name in ("a", "b"):
        mixmatch.train(config, tmp_path / name, start=start)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def replace_in_config(run, old, new):
    text = (run / "config.yml").read_text()
    assert old in text
    (run / "config.yml").write_text(text.replace(old, new, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\n  temperature: 0.5", "\n  temperature: 0.7", "mixmatch.temperature (0.5 there, 0.7 now)"),
        ("\nmethod: mixmatch", "\nmethod: supervised", "continues a run by mixmatch, "),
    ],
)
def test_a_stage_by_another_method_belongs_to_its_parent(parent, tmp_path, capsys, old, new, message):
    for name in ("run", "other"):
        shutil.copytree(parent, tmp_path / name)
    replace_in_config(tmp_path / "other", old, new)
    settings = [*STAGE[:1], "pseudo_label.method=supervised"]
    for name in ("run", "other"):
        assert stage(tmp_path / name, None, *settings) == 0
    runs = [read_run(tmp_path / f"{name}-supervised") for name in ("run", "other")]
    assert len(group_runs(runs)) == 2  # their parents differ
    replace_in_config(tmp_path / "run", old, new)
    capsys.readouterr()
    assert stage(tmp_path / "run", None, *settings) == 2
    error = capsys.readouterr().err
    assert message in error and "use another pseudo_label.name (or --output-dir" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_method_starts_a_stage_with_its_initial_state(parent, tmp_path, monkeypatch):
    seen = []
    after_each_step(monkeypatch, lambda trainer: seen.append(trainer.method.state["mean"].item()))
    assert stage(parent, tmp_path / "stage", *SOFTMATCH, "softmatch.momentum=0.5") == 0
    assert len(seen) == 12 and seen[0] < 0.1 / 2 + 0.5  # half of the 1 / 10 that it starts with
    # So does a stage on that stage by the same method. A name is not passed on to stages.
    for _ in range(2):
        assert stage(tmp_path / "stage", None, "pseudo_label.name=twice") == 0
    assert len(seen) == 24 and seen[12] < 0.1 / 2 + 0.5
    assert stage(tmp_path / "stage-twice", None, "pseudo_label.steps=4") == 0
    assert (tmp_path / "stage-twice-softmatch" / "results.json").exists()


@pytest.mark.slow
def test_a_method_forgets_the_labels_of_a_former_stage(parent, tmp_path):
    assert stage(parent, tmp_path / "labeled", *STAGE[:1], "pseudo_label.threshold=0.05") == 0
    assert len(pseudo_labels(tmp_path / "labeled")) > 1000
    assert stage(tmp_path / "labeled", tmp_path / "stage", *SOFTMATCH) == 0
    assert len(pseudo_labels(tmp_path / "stage")) == 0


@pytest.mark.slow
def test_schedules_and_outputs_of_the_method(parent, tmp_path, registries):
    import_file(ROOT / "tests" / "fixtures" / "plugin.py")
    remixmatch = ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.ramp_up_steps=30"]
    assert stage(parent, tmp_path / "stage", *STAGE[:1], *remixmatch, "remixmatch.lambda_rotation=0.5") == 0
    control = [*STAGE[:1], "pseudo_label.method=null", "pseudo_label.select=none"]
    assert stage(tmp_path / "stage", tmp_path / "control", *control) == 0
    # The control of such a stage continues its schedules, and its rotation head.
    weights = [entry["lambda_u"] for name in ("stage", "control") for entry in metrics(tmp_path / name)]
    assert weights == pytest.approx([1.5 * step / 30 for step in (6, 12, 18, 24)])
    assert [name for name in final(tmp_path / "control")[0] if name.startswith("head.")] == ["head.bias", "head.weight"]
    # Another method takes over neither the head nor its optimizer state.
    assert stage(tmp_path / "control", tmp_path / "other", *SOFTMATCH) == 0
    moments = [{n for n in final(tmp_path / name)[0] if "exp_avg_sq" in n} for name in ("control", "other")]
    assert moments[0] > moments[1] and len(moments[0] - moments[1]) == 2
    # A schedule over the length of the run ends with the stage.
    assert stage(parent, tmp_path / "toy", *STAGE[:1], "pseudo_label.method=toy", "toy.weight=0.5") == 0
    assert [entry["toy_weight"] for entry in metrics(tmp_path / "toy")] == pytest.approx([0.25, 0.5])


@pytest.mark.slow
def test_a_schedule_over_the_whole_run_stays_at_its_end(tmp_path):
    assert run(tmp_path / "run", "mixmatch.ramp_up_steps=null", "mixmatch.lambda_u=8") == 0
    assert [entry["lambda_u"] for entry in metrics(tmp_path / "run")] == pytest.approx([4, 8])
    assert stage(tmp_path / "run", tmp_path / "top", *STAGE[1:], "pseudo_label.steps=6") == 0
    assert stage(tmp_path / "top", tmp_path / "again", "pseudo_label.select=none") == 0
    for name in ("top", "again"):
        assert [entry["lambda_u"] for entry in metrics(tmp_path / name)] == [8]
    assert stage(tmp_path / "top", tmp_path / "new", *STAGE[:1], "pseudo_label.method=mixmatch") == 0
    assert [entry["lambda_u"] for entry in metrics(tmp_path / "new")] == pytest.approx([4, 8])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_a_new_head_joins_an_optimizer_with_state(tmp_path, optimizer):
    assert run(tmp_path / "run", f"train.optimizer={optimizer}") == 0
    settings = ["pseudo_label.method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.lambda_rotation=0.5"]
    assert stage(tmp_path / "run", tmp_path / "stage", *STAGE[:1], *settings) == 0
    assert final(tmp_path / "stage")[0]["head.weight"].any()
    assert all(entry["loss_rotation"] > 0 for entry in metrics(tmp_path / "stage"))


def test_a_selection_gives_each_image_without_a_label_its_prediction(tmp_path, monkeypatch):
    trainer = make_toy_trainer()  # images 0 to 8 are labeled, and among the unlabeled 0 to 29

    def predict(images, index=None):
        return torch.eye(3)[(torch.arange(len(images)) if index is None else index) // 2 % 3]

    monkeypatch.setattr(trainer, "predict", predict)
    selecting = PseudoLabelStage(PseudoLabelSettings(), Progress(), ["a", "b", "c"])
    selecting.start(trainer, {})
    with RunWriter(LockedRun(tmp_path), 0, 1, enabled=False) as writer:
        selecting.before_step(0, writer)
    assert trainer.dataset.pseudo_index.tolist() == list(range(9, 30))
    assert torch.equal(trainer.dataset.pseudo_labels, torch.arange(9, 30) // 2 % 3)


@pytest.mark.slow
def test_main_runs_a_stage_on_a_finished_run(tmp_path, capsys):
    assert run(tmp_path / "run", *QUICK) == 0
    arguments = [*QUICK, *SOFTMATCH, "pseudo_label.enabled=true"]
    for _ in range(2):
        assert run(tmp_path / "run", *arguments) == 0
    assert capsys.readouterr().out.count("is finished") == 3
    found = results(tmp_path / "run-softmatch")
    assert found["method"] == "softmatch" and found["forward_equivalents_per_step"] == 16 * 3 * (1 + 2)
    assert "softmatch" not in (tmp_path / "run" / "config.yml").read_text()
    assert run(tmp_path / "run", *arguments, "softmatch.unlabeled_ratio=3") == 2
    assert "softmatch.unlabeled_ratio (1 there, 3 now)" in capsys.readouterr().err
    assert run(tmp_path / "run", *arguments, "--check") == 0
    assert run(tmp_path / "run", *QUICK) == 0
    shutil.rmtree(tmp_path / "run")
    assert run(tmp_path / "run", *arguments, "softmatch.unlabeled_ratio=3") == 2
    assert "softmatch.unlabeled_ratio (1 there, 3 now)" in capsys.readouterr().err
    assert run(tmp_path / "run", *arguments) == 0
    assert not (tmp_path / "run").exists()  # nor is it trained again


@pytest.mark.slow
def test_a_signal_in_the_last_step_stops_before_the_stage(tmp_path, monkeypatch, capsys):
    arguments = [*QUICK, *SOFTMATCH, "pseudo_label.enabled=true"]
    signal_after(monkeypatch, 30, signal.SIGTERM)
    assert run(tmp_path / "run", *arguments) == 128 + signal.SIGTERM
    monkeypatch.undo()
    stage_directory = tmp_path / "run-softmatch"
    assert f"stopped by SIGTERM; {tmp_path / 'run'} is finished" in capsys.readouterr().out
    assert results(tmp_path / "run")["steps"] == 30 and not stage_directory.exists()
    assert run(tmp_path / "run", *arguments) == 0
    assert results(stage_directory)["steps"] == 42


def test_an_ordinary_run_in_the_place_of_the_stage_is_found_before_training(parent, tmp_path, capsys):
    shutil.copytree(parent, tmp_path / "run-softmatch")
    shutil.rmtree(tmp_path / "run-softmatch" / "checkpoints")
    assert run(tmp_path / "run", *QUICK, *SOFTMATCH, "pseudo_label.enabled=true") == 2
    assert "an ordinary run, not a pseudo-label stage; use another pseudo_label.name" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_true_labels_are_used_for_statistics_only(parent, tmp_path, monkeypatch):
    assert stage(parent, tmp_path / "stage") == 0
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
    monkeypatch.setitem(DATASETS, "digits", type(digits)(permuted))
    permuted(None, torch.device("cpu"), True)
    assert stage(tmp_path / "parent", tmp_path / "blind") == 0
    columns = ("index", "predicted_class", "confidence", "selected", "true_class")
    ours, theirs = ([[row[column] for column in columns] for row in rows(tmp_path / p)] for p in ("stage", "blind"))
    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs] and ours != theirs
    losses = [[entry["loss"] for entry in metrics(tmp_path / name)] for name in ("stage", "blind")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_stage_without_true_labels(tmp_path, capsys):
    for part, count in (("train/cat", 4), ("train/dog", 4), ("unlabeled", 20)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i * 9, len(part) * 9, 50)).save(tmp_path / "photos" / part / f"{i}.png")
    folder = ["data.dataset=folder", f"data.root={tmp_path / 'photos'}", "data.num_labeled=all", "data.image_size=8"]
    assert run(tmp_path / "run", *QUICK, *folder, "data.num_validation=0") == 0
    assert stage(tmp_path / "run", None) == 0
    assert "  threshold  generated\n" in capsys.readouterr().out
    path = tmp_path / "run-top-0.3"
    assert {row["file"] for row in rows(path)} == {f"unlabeled/{i}.png" for i in range(20)}
    assert all(row["true_class"] == "" for row in rows(path))
    selection = results(path)["pseudo_label"]["selections"][0]
    assert selection["precision"] is None and selection["calibration_error"] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    [
        (["pseudo_label.threshold=0"], "must be greater than 0, got 0"),
        (["pseudo_label.threshold=1.5"], "must be less than or equal to 1, got 1.5"),
        (["pseudo_label.select=balanced"], "must be 'none', 'threshold'"),
        (["pseudo_label.method=none"], "pseudo_label.method: must be 'mixmatch', "),
        (["pseudo_label.name=../x"], "pseudo_label.name: must be up to 100 letters"),
        (["model.width=1"], "model.width: cannot be changed"),
        (["train.steps=99"], "train.steps: cannot be changed"),
        (["mixmatch.alpha=0.5"], "allowed: pseudo_label.*, device"),
        ([*SOFTMATCH, "mixmatch.alpha=0.5"], "allowed: pseudo_label.*, softmatch.*, device"),
        ([*SOFTMATCH, "pseudo_label.fraction=0.5"], "is not used with pseudo_label.method=softmatch"),
        (["softmatch.momentum=0.9"], "softmatch.momentum: cannot be changed"),
    ],
)
def test_settings_that_are_refused(parent, tmp_path, capsys, overrides, message):
    assert stage(parent, tmp_path / "stage", *overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "stage").exists()


@pytest.mark.slow
def test_runs_that_are_refused(parent, tmp_path, capsys):
    def refused(run_dir, *arguments):
        assert pseudo_label.main(["--run-dir", str(run_dir), *map(str, arguments)]) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        return error.removeprefix("error: ")

    assert refused(tmp_path / "missing").startswith(str(tmp_path / "missing"))
    for name in ("unfinished", "empty", "damaged", "other", "cut"):
        shutil.copytree(parent, tmp_path / name)
    (tmp_path / "unfinished" / "results.json").unlink()
    assert "is not finished" in refused(tmp_path / "unfinished")
    for path in (tmp_path / "empty" / "checkpoints").iterdir():
        path.unlink()
    assert "has no checkpoint" in refused(tmp_path / "empty")
    for path in (tmp_path / "damaged" / "checkpoints").iterdir():
        path.write_bytes(b"x")
    assert "checkpoint" in refused(tmp_path / "damaged")
    max((tmp_path / "cut" / "checkpoints").iterdir()).write_bytes(b"x")
    assert "delete its results.json and continue it" in refused(tmp_path / "cut")
    split = json.loads((parent / "split.json").read_text()) | {"fingerprint": "other"}
    (tmp_path / "other" / "split.json").write_text(json.dumps(split))
    assert str(tmp_path / "other" / "split.json") in refused(tmp_path / "other", *STAGE)
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished", "empty", "damaged", "other", "cut"}
    assert "an ordinary run, not a pseudo-label stage" in refused(parent, "--output-dir", parent)


@pytest.mark.slow
def test_a_stage_continues_without_its_parent_and_keeps_its_settings(parent, tmp_path, monkeypatch, capsys):
    assert stage(parent, tmp_path / "whole", *STAGE) == 0
    shutil.copytree(parent, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.chdir(tmp_path / "run")
    command = ["--run-dir", ".", "--allow-unfinished", *STAGE]
    signal_after(monkeypatch, 35, signal.SIGTERM)
    assert pseudo_label.main(command) == 143
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run")
    command[1] = str(tmp_path / "run")
    path = tmp_path / "run-top-0.3"
    for setting in ("pseudo_label.fraction=0.4", "pseudo_label.steps=77"):
        assert pseudo_label.main([*command, "--output-dir", str(path), setting]) == 2
        assert f"is a stage with other settings: {setting.partition('=')[0]} (" in capsys.readouterr().err
        assert train.main(["--run-dir", str(path), setting]) == 2
        assert setting.partition("=")[0] in capsys.readouterr().err
    assert pseudo_label.main(command) == 0
    assert [entry["step"] for entry in metrics(path)] == [36, 42]
    assert_same_run(path, tmp_path / "whole")
    shutil.rmtree(path / "checkpoints")  # it is finished
    assert pseudo_label.main(command) == 0
    assert run(tmp_path / "run", *QUICK, *STAGE, "pseudo_label.enabled=true") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_stage_that_could_not_be_trained_is_refused_before_the_run(tmp_path, capsys, check):
    settings = [*SMALL, "method=supervised", "data.num_labeled=all", "pseudo_label.enabled=true"]
    assert train.main([*check, "--run-dir", str(tmp_path / "run"), *settings, "pseudo_label.method=softmatch"]) == 2
    assert "no unlabeled images are left; use pseudo_label.method=supervised" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
