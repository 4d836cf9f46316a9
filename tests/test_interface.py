"""The Python interface of README: config, train, load, predict; in the main thread, in others, and of old runs."""

import json
import re
import shutil
import signal
import threading

import pytest
import torch

import mixmatch
from mixmatch.data import load_data
from tests.helpers import ROOT, SMALL, assert_same_run, run

FAST = [*SMALL, "model.bn_momentum=0.1", "train.ema_decay=0.9"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    config = mixmatch.load_config(None, FAST)
    return config, mixmatch.train(config, path, quiet=True), path


def test_a_loaded_model_is_what_was_evaluated(trained):
    config, results, path = trained
    model = mixmatch.load_model(path)
    data = load_data(config.data, torch.device("cpu"))
    predictions = model.predict(data.test_images)
    accuracy = 100 * (predictions.argmax(dim=1) == data.test_labels).double().mean().item()
    assert accuracy == pytest.approx(results["test_accuracy_last"])
    assert torch.equal(model.predict(data.test_images.numpy()), predictions)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.classes == [str(digit) for digit in range(10)]
    torch.testing.assert_close(predictions.sum(dim=1), torch.ones(400))
    scaled = (data.test_images.float() - model.spec.mean) / model.spec.std
    torch.testing.assert_close(model(scaled.movedim(3, 1)).softmax(dim=1), predictions)


def test_nothing_of_the_data_is_needed(trained, tmp_path):
    _, _, path = trained
    shutil.copytree(path, tmp_path / "run")
    config = (tmp_path / "run" / "config.yml").read_text()
    (tmp_path / "run" / "config.yml").write_text(
        config.replace("dataset: digits", "dataset: folder").replace("root: data", "root: /nowhere")
    )
    assert mixmatch.load_model(tmp_path / "run").classes[3] == "3"
    spec = json.loads((tmp_path / "run" / "images.json").read_text())
    assert spec == {
        "classes": [str(i) for i in range(10)],
        "size": 8,
        "channels": 1,
        "mean": 127.5,
        "std": 127.5,
        "fit": "crop",
    }


def test_a_run_of_a_version_that_wrote_no_images_json_asks_its_data(trained, tmp_path):
    _, _, path = trained
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "run" / "images.json").unlink()
    ours, theirs = mixmatch.load_model(tmp_path / "run"), mixmatch.load_model(path)
    assert ours.spec == theirs.spec
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert mixmatch.load_model(ROOT / "tests" / "fixtures" / "run-format-1").spec.channels == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: (path / "config.yml").unlink(), "is no run directory"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "has no checkpoint"),
        (lambda path: (path / "images.json").write_text("{}"), "images.json: cannot be read"),
        (lambda path: (path / "images.json").write_text("["), "images.json: cannot be read"),
        (
            lambda path: (path / "config.yml").write_text((path / "config.yml").read_text().replace("0.5", "1.0")),
            "does not fit",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(trained, tmp_path, change, message):
    shutil.copytree(trained[2], tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(mixmatch.UserError, match=message) as raised:
        mixmatch.load_model(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_images_of_another_shape_are_refused(trained):
    model = mixmatch.load_model(trained[2])
    for images in (torch.zeros(1, 9, 9, 1, dtype=torch.uint8), torch.zeros(1, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"must be \(n, 8, 8, 1\) uint8"):
            model.predict(images)


def test_threads_train_at_once_to_the_weights_that_they_train_to_alone(tmp_path):
    """Without touching signals, which belong to the command."""
    seeds = (1, 2)
    for seed in seeds:
        assert run(tmp_path / f"alone-{seed}", f"seed={seed}") == 0
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    failed = []

    def work(seed):
        try:
            mixmatch.train(
                mixmatch.load_config(None, [*SMALL, f"seed={seed}"]), tmp_path / f"thread-{seed}", quiet=True
            )
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=[seed]) for seed in seeds]
    for thread in threads:
        thread.start()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    for thread in threads:
        thread.join()
    assert not failed
    for seed in seeds:
        assert_same_run(tmp_path / f"alone-{seed}", tmp_path / f"thread-{seed}")


def test_a_round_that_the_config_asks_for_is_done(tmp_path):
    settings = ["pseudo_label.enabled=true", "pseudo_label.select=top", "pseudo_label.steps=4"]
    results = mixmatch.train(mixmatch.load_config(None, [*SMALL, *settings]), tmp_path / "run", quiet=True)
    assert results["steps"] == 16 and results["pseudo_label"]["start"] == 12
    assert (tmp_path / "run" / "results.json").exists() and (tmp_path / "run-top-0.1" / "results.json").exists()


def test_what_is_public_is_there_and_nothing_else():
    assert all(getattr(mixmatch, name) is not None for name in mixmatch.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = mixmatch.nonsense


def test_the_readmes_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5
    block = block.replace("configs/digits.yml", f"{ROOT}/configs/digits.yml").replace("seed=2", "train.steps=3")
    scope = {"images": torch.zeros(2, 8, 8, 1, dtype=torch.uint8)}
    exec(block, scope)
    assert scope["results"]["steps"] == 3
