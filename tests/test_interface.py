"""The Python interface: config, train, load, predict; in the main thread and in others."""

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import mixmatch
from mixmatch.data import load_data
from mixmatch.errors import Stopped
from mixmatch.training.trainer import Trainer
from tests.helpers import ROOT, SMALL, assert_same_run, final, run, signal_after


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    config = mixmatch.load_config(None, [*SMALL, "model.bn_momentum=0.1", "train.ema_decay=0.9"])
    return config, mixmatch.train(config, path, quiet=True), path


def test_a_loaded_model_is_the_evaluated_one(trained):
    config, results, path = trained
    model = mixmatch.load_model(path)
    data = load_data(config.data, torch.device("cpu"))
    probabilities = model.predict_probabilities(data.test_images)
    accuracy = 100 * (probabilities.argmax(dim=1) == data.test_labels).double().mean().item()
    assert accuracy == pytest.approx(results.test_accuracy)
    assert torch.equal(model.predict_probabilities(data.test_images.numpy()), probabilities)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.classes == [str(digit) for digit in range(10)]
    assert repr(model) == "Classifier(WRN-10-0.5, 8x8x1 images, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    model.classes = [f"class {i}" for i in range(100)]
    assert repr(model).endswith("100 classes: class 0, class 1, class 2, class 3, class 4, class 5, ...)")
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(400))
    normalized = (data.test_images.float() - model.spec.mean) / model.spec.std
    torch.testing.assert_close(model(normalized.movedim(3, 1)).softmax(dim=1), probabilities)


def test_features_leave_the_network_as_it_is(trained):
    model = mixmatch.load_model(trained[2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = np.asarray(Image.new("L", (8, 8)))[None, :, :, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's view of a picture is not writable
        features = model.embed(pixels)
    assert features.shape[0] == 1 and not model.network.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_needs_no_data_set(trained, tmp_path):
    shutil.copytree(trained[2], tmp_path / "run")
    config = (tmp_path / "run" / "config.yml").read_text()
    config = config.replace("dataset: digits", "dataset: folder").replace("root: data", "root: /nowhere")
    (tmp_path / "run" / "config.yml").write_text(config)
    assert mixmatch.load_model(tmp_path / "run").classes[3] == "3"
    spec = json.loads((tmp_path / "run" / "images.json").read_text())
    classes = [str(digit) for digit in range(10)]
    decoding = {"fit": "crop", "background": "white", "white": None, "max_pixels": 178956970}
    assert spec == {"classes": classes, "size": 8, "channels": 1, "mean": 127.5, "std": 127.5} | decoding


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (lambda path: (path / "config.yml").unlink(), "not a run directory"),
        (
            lambda path: (path / "config.yml").write_text(""),
            "config.yml: is empty; restore it, or remove the directory",
        ),
        (
            lambda path: [shutil.rmtree(path / "checkpoints"), (path / "model.safetensors").unlink()],
            "has no checkpoint",
        ),
        (lambda path: (path / "images.json").write_text("{}"), "images.json: "),
        (
            lambda path: (path / "config.yml").write_text((path / "config.yml").read_text().replace("0.5", "1.0")),
            "does not match the config's network",
        ),
    ],
)
def test_a_corrupt_run_gives_one_line(trained, tmp_path, corrupt, message):
    shutil.copytree(trained[2], tmp_path / "run")
    corrupt(tmp_path / "run")
    with pytest.raises(mixmatch.UserError, match=message) as raised:
        mixmatch.load_model(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_finished_run_without_checkpoints_is_loaded(trained, tmp_path):
    shutil.copytree(trained[2], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    expected, found = (mixmatch.load_model(path).network.state_dict() for path in (trained[2], tmp_path / "run"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_images_of_another_shape_or_type_are_an_error(trained):
    model = mixmatch.load_model(trained[2])
    for images in (torch.zeros(1, 9, 9, 1, dtype=torch.uint8), torch.zeros(1, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"must be \(n, 8, 8, 1\) uint8"):
            model.predict(images)
    with pytest.raises(mixmatch.UserError, match=r"nowhere.png: cannot be read as a picture"):
        model.predict("nowhere.png")
    closed = Image.new("L", (8, 8))
    closed.close()
    for image in (Image.new("L", (0, 5)), closed):
        with pytest.raises(mixmatch.UserError, match="cannot be read as a picture"):
            model.predict(image)
    with pytest.raises(ValueError, match="must be paths, PIL images or one array, got a ndarray in a list"):
        model.predict([np.zeros((8, 8, 1), np.uint8)])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    mirrored = model.predict_probabilities(pixels[:, :, ::-1])
    assert torch.equal(mirrored, model.predict_probabilities(np.ascontiguousarray(pixels[:, :, ::-1])))


def test_a_device_that_does_not_exist_and_best_of_a_file_are_one_line(trained):
    for device in ("nope", "cuda:99"):
        with pytest.raises(mixmatch.UserError, match=f"device: '{device}' cannot be used"):
            mixmatch.load_model(trained[2], device)
    for file in (trained[2] / "model.safetensors", next((trained[2] / "checkpoints").iterdir())):
        with pytest.raises(mixmatch.UserError, match=r"best: .* is a single network; give the run directory"):
            mixmatch.load_model(file, best=True)


def test_predictions_of_paths_images_and_pixels_are_the_same(trained, tmp_path):
    config, _, path = trained
    model, pixels = mixmatch.load_model(path), load_data(config.data, torch.device("cpu")).test_images[:5]
    images = [Image.fromarray(image.numpy().squeeze()) for image in pixels]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for image, file in zip(images, paths, strict=True):
        image.save(file)
    expected = model.predict(pixels)
    assert model.predict(images) == model.predict(paths) == model.predict([images[0], *map(str, paths[1:])]) == expected
    (one,) = model.predict(str(paths[2]))
    assert model.predict(images[2]) == [one] and one.class_name == expected[2].class_name
    for prediction, row in zip(expected, model.predict_probabilities(pixels).tolist(), strict=True):
        assert list(prediction.probabilities.values()) == row and prediction.confidence == max(row)
        assert prediction.class_name == model.classes[row.index(max(row))]
    assert repr(one).startswith(f"ClassPrediction(class_name={one.class_name!r}, confidence=")
    assert model.predict([]) == []


def test_an_error_is_shown_without_frames_of_the_package(tmp_path):
    folder = mixmatch.load_config("folder", [f"data.root={tmp_path}/no"])
    for call in (
        lambda: mixmatch.load_config(None, ["seed=x"]),
        lambda: mixmatch.train(folder, tmp_path / "run", quiet=True),
        lambda: mixmatch.load_model(tmp_path),
    ):
        with pytest.raises(mixmatch.UserError) as raised:
            call()
        assert len(traceback.extract_tb(raised.value.__traceback__)) == 3  # two of this file, one of the package
        assert raised.value._render_traceback_() == [f"UserError: {raised.value}"]  # what IPython shows


@pytest.mark.slow
def test_threads_train_to_the_same_weights_as_alone(tmp_path):
    for seed in (1, 2):
        assert run(tmp_path / f"alone-{seed}", f"seed={seed}") == 0
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def train(seed):
        config = mixmatch.load_config(None, [*SMALL, f"seed={seed}"])
        return mixmatch.train(config, tmp_path / f"thread-{seed}", quiet=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, (1, 2)))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    for seed in (1, 2):
        assert_same_run(tmp_path / f"alone-{seed}", tmp_path / f"thread-{seed}")


def count_trainers():
    gc.collect()
    return sum(type(thing) is Trainer for thing in gc.get_objects())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_call_and_the_same_call_continues(tmp_path, monkeypatch, number):
    config, path = mixmatch.load_config(None, SMALL), tmp_path / "run"
    handler = signal.getsignal(number)
    signal_after(monkeypatch, 7, number)
    before = count_trainers()
    with pytest.raises(Stopped) as stopped:
        mixmatch.train(config, path, quiet=True)
    assert count_trainers() == before  # a notebook keeps the last error, which must not keep the trainer
    assert not isinstance(stopped.value, Exception)  # a loop over runs that catches Exception ends
    shown_in_notebooks = [f"stopped by {number.name} at step 7; start it again to continue"]
    assert stopped.value._render_traceback_() == shown_in_notebooks
    assert signal.getsignal(number) is handler
    assert final(path)[1]["step"] == 7
    monkeypatch.undo()
    assert mixmatch.train(config, path, quiet=True).steps == 12


def test_reprs_are_short(trained):
    config = mixmatch.load_config(None, ["method=fixmatch", "data.dataset=digits", "train.steps=600"])
    assert repr(config) == "Config(method='fixmatch', data.dataset='digits', train.steps=600)"
    assert repr(mixmatch.build_config({})) == "Config()"
    _, results, _ = trained
    assert repr(results).startswith(f"RunResults(test_accuracy={results.test_accuracy}, best_validation=")
    assert len(repr(results)) < 150


def test_public_names(tmp_path):
    assert {*mixmatch.__all__, "__version__"} <= set(dir(mixmatch))
    assert all(getattr(mixmatch, name) is not None for name in mixmatch.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = mixmatch.nonsense


@pytest.mark.slow
def test_type_checkers_see_the_signatures(tmp_path):
    names = ("train", "load_model", "Classifier.predict", "METHODS")
    (tmp_path / "user.py").write_text(
        "import mixmatch\n" + "".join(f"reveal_type(mixmatch.{name})\n" for name in names)
    )
    mypy = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", tmp_path / "user.py"]
    found = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True).stdout
    train, load_model, predict, methods = re.findall('Revealed type is "(.*)"', found)
    assert re.match(r"def \(config: [\w.]+\.Config, path: ", train) and re.search(r"-> [\w.]+\.RunResults$", train)
    assert re.search(r"-> [\w.]+\.Classifier$", load_model)
    assert re.search(r"-> (builtins\.)?list\[[\w.]+\.ClassPrediction\]$", predict)
    assert re.search(r"type\[[\w.]+\.Method\[Any\]\]\]$", methods)
