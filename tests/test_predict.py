"""The command predict.py on the files that people have."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mixmatch.cli import part_file, predict, predictions, train
from mixmatch.cli.part_file import PartFile
from mixmatch.cli.predictions import copy_to_class_folder
from mixmatch.data.folder.index import index_folder
from mixmatch.data.weak_augmentation import to_float
from mixmatch.errors import UserError
from mixmatch.files import load_tensors
from mixmatch.inference import Classifier, fingerprint, load_model
from tests.helpers import ROOT, SMALL

pytestmark = pytest.mark.slow  # nearly all need the run of a fixture
SETTINGS = [
    *SMALL,
    "data.dataset=folder",
    "data.num_labeled=all",
    "data.image_size=16",
    "data.num_validation=3",
    "data.fit=pad",
    "model.bn_momentum=0.2",
    "train.ema_decay=0.5",
    "train.steps=40",
    "train.precision=bfloat16",
]
CLASSES = ["=cmd()", "<b>ß 猫", "horizontal"]


def make_image(channel, seed, size=(20, 20)):
    """An image that is bright in one channel."""
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 60, (size[1], size[0], 3))
    pixels[..., channel] += random.randint(120, 190)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 8), ("test", 6)):
        for channel, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                make_image(channel, 100 * channel + i + count, (24, 20)).save(root / part / name / f"{i}.png")
    (root / "unlabeled").mkdir()
    for i in range(20):
        make_image(i % 3, 900 + i).save(root / "unlabeled" / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    assert train.main(["--run-dir", str(path), *SETTINGS, f"data.root={photos}"]) == 0
    return path


@pytest.fixture
def command(trained, tmp_path):
    """Runs predict.py with the trained run, and writes to p.csv unless the arguments say otherwise."""

    def call(*arguments, run=trained):
        options = ["--run-dir", run, "--output", tmp_path / "p.csv", *arguments]
        return predict.main([str(option) for option in options])

    return call


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_is_that_of_the_run_and_rows_are_complete(photos, trained, command, tmp_path, capsys):
    assert command(photos / "test") == 0
    printed = capsys.readouterr().out
    accuracy = json.loads((trained / "results.json").read_text())["test_accuracy"]
    assert f"accuracy {accuracy:.2f}% of 18 files whose class is known, balanced accuracy {accuracy:.2f}%" in printed
    assert "precision  recall" in printed and "18 images classified" in printed
    rows = read_rows(tmp_path / "p.csv")
    names = ["'=cmd()", "<b>ß 猫", "horizontal"]  # a formula would be computed by spreadsheets
    for row in rows:
        probabilities = {name: float(row[name]) for name in names}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=probabilities.get)
        assert float(row["confidence"]) == max(probabilities.values())
        assert row["true_class"].strip("'") == row["file"].split("/")[-2]
    correct = [row["class"] == row["true_class"] for row in rows]
    assert len(rows) == 18 and 100 * sum(correct) / 18 == pytest.approx(accuracy)


def test_the_model_file_needs_no_run_and_predicts_the_same(photos, trained, command, tmp_path):
    shutil.copy(trained / "model.safetensors", tmp_path / "moved.safetensors")
    assert command(photos / "test") == 0
    arguments = ["--model", tmp_path / "moved.safetensors", photos / "test", "--output", tmp_path / "q.csv"]
    assert predict.main([str(argument) for argument in arguments]) == 0
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()
    assert load_model(tmp_path / "moved.safetensors").classes == sorted(CLASSES)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.unlink(),
        lambda path: shutil.copy(sorted((path.parent / "checkpoints").iterdir())[-1], path),
    ],
    ids=["truncated", "missing", "a checkpoint"],
)
def test_a_corrupt_model_file_gives_one_line(photos, trained, tmp_path, capsys, corrupt):
    shutil.copytree(trained, tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    corrupt(model)
    assert predict.main(["--model", str(model), str(photos / "test"), "--output", str(tmp_path / "p.csv")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "model.safetensors" in error and not (tmp_path / "p.csv").exists()


def test_files_below_the_minimum_confidence_have_no_class(photos, command, tmp_path, capsys):
    assert command(photos / "test") == 0
    confidences = sorted(float(row["confidence"]) for row in read_rows(tmp_path / "p.csv"))
    threshold = confidences[len(confidences) // 2]
    num_below = sum(confidence < threshold for confidence in confidences)
    assert 0 < num_below < 18
    capsys.readouterr()
    assert command(photos / "test", "--min-confidence", threshold, "--copy-by-class", tmp_path / "sorted") == 0
    rows = read_rows(tmp_path / "p.csv")
    assert all((row["class"] == "") == (float(row["confidence"]) < threshold) for row in rows)
    printed = capsys.readouterr().out
    assert f"{num_below} of 18 files are below --min-confidence" in printed
    assert f"of {18 - num_below} files whose class is known" in printed
    assert len([path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]) == 18 - num_below
    assert command(photos / "test", "--min-confidence", "1.5") == 2


def test_best_is_the_checkpoint_with_the_best_validation_accuracy(trained, tmp_path, photos, command, capsys):
    shutil.copytree(trained, tmp_path / "run")
    step = json.loads((trained / "results.json").read_text())["best_validation"]["step"]
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}.safetensors"
    tensors, _ = load_tensors(checkpoint)
    assert torch.equal(load_model(trained, best=True).network.dense.weight, tensors["ema.dense.weight"])
    assert command(photos / "test", "--best") == 0
    assert step < 40
    checkpoint.write_bytes(b"")
    assert command(photos / "test", "--best", run=tmp_path / "run") == 2
    assert f"step-{step:08d}.safetensors: " in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if there had been no validation images
    assert command(photos / "test", "--best", run=tmp_path / "run") == 2
    assert (
        "has no best checkpoint; that takes an evaluation with data.num_validation above 0" in capsys.readouterr().err
    )


def test_files_that_cannot_be_read_are_rows_and_the_others_are_classified(command, tmp_path, monkeypatch, capsys):
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    make_image(0, 1).save(new / "good.png")
    (new / "sub" / "bad.png").write_text("not an image")
    (new / "sub" / "Thumbs.db").write_text("junk")
    os.mkfifo(new / "pipe.png")
    os.symlink(new / "nowhere", new / "dangling.png")
    os.symlink(new, new / "sub" / "circle")
    make_image(1, 2).save(new / "x.png")
    os.rename(os.fsencode(new / "x.png"), os.fsencode(new) + b"/\xff=cmd().png")
    make_image(1, 2).save(new / "line\nbreak.png", "TIFF", save_all=True, append_images=[make_image(2, 2)])
    monkeypatch.chdir(tmp_path)
    make_image(2, 3).save("=1+1.png")
    assert command(new, "=1+1.png") == 0
    rows = read_rows(tmp_path / "p.csv")
    problems = {row["file"].split("/")[-1]: row["problem"] for row in rows if row["problem"]}
    assert set(problems) == {"bad.png", "pipe.png", "dangling.png"} and "file" in problems["pipe.png"]
    assert len(rows) == 7 and rows[-1]["file"] == "./=1+1.png"
    assert any("\\udcff=cmd().png" in row["file"] for row in rows)
    printed = capsys.readouterr().out
    assert "3 of 7 files could not be read" in printed and f"  {new}/sub/bad.png: not a picture, damaged" in printed
    assert "of which the first was used: 1" in printed
    (new / "sub" / "circle").unlink()
    assert command(new / "sub") == 2
    assert "no image could be read" in capsys.readouterr().err
    assert read_rows(tmp_path / "p.csv")[0]["problem"]


def test_classes_are_named_by_folders_below_the_given_one(photos, command, tmp_path, capsys):
    assert command(photos / "test" / "horizontal") == 0
    assert {row["true_class"] for row in read_rows(tmp_path / "p.csv")} == {"horizontal"}
    printed = capsys.readouterr().out
    assert "of 6 files whose class is known" in printed and "<b>" not in printed  # no files of that class
    assert command(photos / "unlabeled", *(photos / "test" / "horizontal").iterdir()) == 0
    assert sorted({row["true_class"] for row in read_rows(tmp_path / "p.csv")}) == ["", "horizontal"]
    assert "of 6 files whose class is known" in capsys.readouterr().out


def test_a_file_that_is_given_twice_counts_once(photos, command, tmp_path, capsys):
    assert command(photos / "test", photos / "test" / "horizontal", *(photos / "test" / "horizontal").iterdir()) == 0
    files = [row["file"] for row in read_rows(tmp_path / "p.csv")]
    assert len({*files}) == len(files) == len([*(photos / "test").rglob("*.*")])


def test_the_table_of_one_folder_is_a_labels_file(photos, command, tmp_path, capsys):
    new = tmp_path / "new"
    shutil.copytree(photos / "test", new / "sub")
    make_image(1, 2).save(new / "=1+1.png")
    assert command(new) == 0 and read_rows(tmp_path / "p.csv")[0]["file"] == "./=1+1.png"
    (new / "labels.csv").write_bytes((tmp_path / "p.csv").read_bytes())
    index = index_folder(new, "labels.csv")
    assert index.classes == sorted(CLASSES) and not index.problems and not index.notes
    named = {
        index.relative_path(file): index.classes[label] for file, label in zip(index.files, index.labels, strict=True)
    }
    rows = read_rows(tmp_path / "p.csv")
    assert named == {row["file"].removeprefix("./"): row["class"].removeprefix("'") for row in rows}


def test_a_folder_without_files_and_names_with_a_dash(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty") == 2
    assert "empty: no files found; give files or folders" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()
    monkeypatch.chdir(tmp_path)
    make_image(0, 1).save("-x.png")
    assert command("--", "-x.png") == 0 and read_rows(tmp_path / "p.csv")[0]["file"] == "./-x.png"


def test_the_table_of_an_earlier_command_is_not_classified(photos, command, tmp_path):
    folder = tmp_path / "new"
    shutil.copytree(photos / "unlabeled", folder)
    tables = []
    for _ in range(2):
        assert command(folder, "--output", folder / "p.csv") == 0
        tables.append((folder / "p.csv").read_bytes())
    assert tables[0] == tables[1] and b"p.csv" not in tables[0]


def test_copies_by_class_are_made_once_and_never_overwrite(photos, command, tmp_path):
    source, copies = tmp_path / "new", tmp_path / "sorted"
    shutil.copytree(photos / "unlabeled", source / "a")
    assert command(source / "a", "--copy-by-class", copies) == 0
    assert len([path for path in copies.rglob("*") if path.is_file()]) == 20
    shutil.copytree(source / "a", source / "b")
    for path in (source / "b").iterdir():
        with open(path, "ab") as file:
            file.write(b"x")  # other content, the same picture
    for _ in range(2):
        assert command(source, "--copy-by-class", copies) == 0
        assert len([path for path in copies.rglob("*") if path.is_file()]) == 40
    for row in read_rows(tmp_path / "p.csv"):
        folder, name = row["file"].split("/")[-2:]
        copy = name if folder == "a" else name.replace(".jpg", "-2.jpg")
        assert (copies / row["class"].strip("'") / copy).read_bytes() == (source / folder / name).read_bytes()
    with pytest.raises(UserError):
        copy_to_class_folder(copies, "cat", tmp_path / "gone.png")
    assert not list((copies / "cat").iterdir())


def test_the_onnx_file_computes_the_same_logits(trained, command, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert command("--export", tmp_path / "m.onnx") == 0
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    model = load_model(trained)
    torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-3, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == model.classes and metadata["fit"] == model.spec.fit
    assert [json.loads(metadata[name]) for name in ("size", "channels", "mean", "std")] == [16, 3, 127.5, 127.5]


def test_the_onnx_file_takes_pixels_if_asked(trained, command, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert command("--export", tmp_path / "m.onnx", "--export-uint8") == 0
    pixels = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (logits,) = session.run(None, {"images": pixels.numpy()})
    expected = load_model(trained)(to_float(pixels))
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("PHOTOS", "give either --run-dir or --model"),
        ("--run-dir RUN --model RUN/model.safetensors PHOTOS", "give either --run-dir or --model"),
        ("--run-dir nowhere PHOTOS", "nowhere: not a run directory"),
        ("--run-dir RUN", "give images or --export"),
        ("--run-dir RUN nowhere.png", "nowhere.png: "),
        ("--run-dir RUN PHOTOS --export-uint8", "--export-uint8: requires --export"),
        ("--run-dir RUN --device mps PHOTOS", "device: must "),
        ("--model RUN/model.safetensors --best PHOTOS", "--best: requires --run-dir"),
        ("--run-dir RUN PHOTOS --output /nowhere/p.csv", "/nowhere/p.csv: cannot be written"),
        ("--run-dir RUN --export /nowhere/m.onnx", "m.onnx: cannot be written"),
        ("--run-dir RUN PHOTOS --output x.jpg", "--output: x.jpg is an image"),
        ("--run-dir RUN --export m.pt", "--export: writes an ONNX file, m.pt must end in .onnx"),
        ("--model RUN/config.yml PHOTOS", "config.yml: cannot be read as a model"),
        ("--run-dir RUN PHOTOS --copy-by-class PHOTOS/sorted", "must be outside the input folder"),
    ],
)
def test_bad_input_gives_one_line(trained, photos, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = arguments.replace("RUN", str(trained)).replace("PHOTOS", str(photos / "unlabeled"))
    assert predict.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_out_of_memory_gives_one_line(photos, command, monkeypatch, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    monkeypatch.setattr(Classifier, "predict_probabilities", full)
    assert command(photos) == 2
    assert capsys.readouterr().err == "error: cpu: out of memory; stop other programs on the device\n"


def test_an_existing_table_stays_until_the_new_one_is_complete(photos, command, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("mine")
    assert command(tmp_path / "mistyped") == 2
    assert command(photos / "test", "--output", "/dev/null") == 2
    assert table.read_text() == "mine" and list(tmp_path.iterdir()) == [table]
    os.symlink(table, tmp_path / "link.csv")
    assert command(photos / "test", "--output", tmp_path / "link.csv") == 0
    assert (tmp_path / "link.csv").is_symlink() and len(read_rows(table)) == 18


def test_copies_that_cannot_be_written_lose_no_predictions(photos, command, tmp_path, capsys):
    assert command(photos / "test", "--copy-by-class", "/dev/null/sorted") == 2
    assert "error: /dev/null/sorted/" in capsys.readouterr().err
    assert command(photos / "test") == 0
    assert "18 of 18 files are done" in capsys.readouterr().out


# Interruptions.

BATCH = 8
SCRIPT = f"""
import os, sys
from mixmatch.cli import predict, predictions
from tests.test_predict import signal_after
predictions.BATCH_SIZE = {BATCH}
signal_after(int(sys.argv.pop(1)), 9)
sys.exit(predict.main())
"""


def signal_after(batches, number, setattr=setattr):
    """Let the command get a signal when it has predicted some batches."""
    remaining, predict_batch = iter(range(batches)), predictions.predict_batch

    def predict_or_stop(model, files):
        if next(remaining, None) is None:
            os.kill(os.getpid(), number)
        return predict_batch(model, files)

    setattr(predictions, "predict_batch", predict_or_stop)


@pytest.fixture
def new(photos, tmp_path):
    """A folder of 40 files."""
    for folder in ("a", "b"):
        shutil.copytree(photos / "unlabeled", tmp_path / "new" / folder)
    (tmp_path / "new" / "a" / "7.jpg").write_text("not an image")
    return tmp_path / "new"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def part(out):
    return out / ".p.csv.part"


@pytest.fixture
def finish(command, new, out, monkeypatch, capsys):
    """Runs the command to its end, and returns what it prints and its table."""
    monkeypatch.setattr(predictions, "BATCH_SIZE", BATCH)

    def call(*arguments, output=out / "p.csv"):
        capsys.readouterr()
        assert command("--output", output, *(arguments or [new])) == 0
        assert not list(output.parent.glob(".*"))
        return capsys.readouterr().out, output.read_bytes()

    return call


@pytest.fixture
def stop(command, new, out, monkeypatch, capsys):
    """Runs the command until it gets a signal after some batches, and returns what it prints."""
    monkeypatch.setattr(predictions, "BATCH_SIZE", BATCH)

    def call(batches, *arguments, number=signal.SIGINT):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            signal_after(batches, number, patch.setattr)
            assert command("--output", out / "p.csv", *(arguments or [new])) == 128 + number
        return "".join(capsys.readouterr())

    return call


@pytest.mark.slow
def test_a_killed_command_continues_and_has_the_same_outputs(photos, trained, new, out, part, finish, tmp_path):
    for name in CLASSES:
        shutil.copytree(photos / "test" / name, new / name)  # 18 files of known classes
    options = [new, "--copy-by-class", tmp_path / "sorted"]
    for batches in (2, 3):
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            str(batches),
            "--run-dir",
            trained,
            "--output",
            out / "p.csv",
            *options,
        ]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "sorted").exists()
    printed, table = finish(*options)
    assert f"continuing {part}: 40 of 58 files are done\n" in printed and list(out.iterdir()) == [out / "p.csv"]
    copies = sorted((tmp_path / "sorted").rglob("*"))
    expected, same_table = finish(*options, output=tmp_path / "p.csv")
    assert table == same_table
    assert copies == sorted((tmp_path / "sorted").rglob("*"))
    report = expected[: expected.index(" images classified")]
    assert "continuing" not in report and "of 18 files whose class is known" in report and report in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_is_done(stop, finish, out, tmp_path, number):
    assert stop(1, number=number) == "interrupted: 8 of 40 files are done; the same command continues\n"
    printed, table = finish()
    assert "8 of 40 files are done" in printed and table == finish(output=tmp_path / "p.csv")[1]
    assert "interrupted: 0 of 40" in stop(0, number=number) and list(out.iterdir()) == [out / "p.csv"]


def test_interrupted_copies_continue(stop, finish, new, tmp_path, monkeypatch):
    options = [new, "--copy-by-class", tmp_path / "sorted"]
    with monkeypatch.context() as patch:
        copyfile = shutil.copyfile
        patch.setattr(shutil, "copyfile", lambda *paths: (copyfile(*paths), os.kill(os.getpid(), signal.SIGINT)))
        assert "interrupted: 40 of 40 files are done" in stop(99, *options)
    assert not [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    printed, _ = finish(*options)
    assert "40 of 40 files are done" in printed and "39 images classified: " in printed
    assert len([path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]) == 20


def test_the_table_has_the_files_that_are_there_now(stop, finish, new, out, tmp_path):
    stop(3)
    (new / "a" / "0.jpg").unlink()
    make_image(1, 5).save(new / "a" / "00.png")
    os.rename(new / "a" / "1.jpg", new / "z.jpg")
    assert "22 of 40 files are done" in finish()[0]
    finish(output=tmp_path / "p.csv")
    rows, others = read_rows(out / "p.csv"), read_rows(tmp_path / "p.csv")
    assert [row["file"] for row in rows] == [row["file"] for row in others]
    for row, other in zip(rows, others, strict=True):  # other batches can differ in the last digit
        assert float(row["confidence"] or 0) == pytest.approx(float(other["confidence"] or 0), abs=2e-6)


def test_another_picture_in_the_place_of_one_that_is_done_is_classified(stop, finish, new, out):
    stop(3)
    make_image(1, 5, (24, 20)).save(new / "a" / "0.jpg")
    (new / "a" / "7.jpg").unlink()
    make_image(1, 6, (24, 20)).save(new / "a" / "7.jpg")
    assert "22 of 40 files are done" in finish()[0]
    assert not [row["file"] for row in read_rows(out / "p.csv") if row["problem"]]


def test_another_command_keeps_the_predictions_of_an_interrupted_one(
    stop, command, finish, new, out, part, trained, tmp_path, monkeypatch, capsys
):
    shutil.copytree(new, tmp_path / "elsewhere" / "new")  # equal relative paths, other files
    monkeypatch.chdir(tmp_path)
    stop(3, "new")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("--output", out / "p.csv", "new") == 0
    printed = capsys.readouterr().out
    assert "continuing" not in printed
    assert (
        f"note: {part} keeps 24 predictions of an interrupted command; repeat that command, or remove this file\n"
        in printed
    )
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    images = json.loads((other / "images.json").read_text())
    (other / "images.json").write_text(json.dumps(images | {"fit": "stretch"}))
    stop(0, "--run-dir", other, "new")  # nothing is done
    assert "24 of 40 files are done" in finish("new")[0]


def test_rows_of_another_model_are_not_used(stop, finish, trained, new, part, tmp_path):
    model, other = load_model(trained), tmp_path / "other"
    shutil.copytree(trained, other)
    images = json.loads((other / "images.json").read_text())
    (other / "images.json").write_text(json.dumps(images | {"fit": "stretch"}))  # the same weights
    stop(2, "--run-dir", other, new)
    printed, table = finish()
    assert "continuing" not in printed and table == finish(output=tmp_path / "p.csv")[1]
    with torch.no_grad():
        model.network.dense.bias[0] += 1
    assert len({fingerprint(each) for each in (model, load_model(trained), load_model(other))}) == 3


def test_rows_of_another_version_are_not_used(stop, finish, monkeypatch):
    stop(2)
    monkeypatch.setattr(part_file, "FORMAT", part_file.FORMAT + 1)
    assert "continuing" not in finish()[0]


def test_a_file_of_another_kind_or_in_use_is_left_alone(command, photos, tmp_path, capsys):
    part = tmp_path / ".p.csv.part"
    part.write_text("mine")
    assert command(photos / "test") == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert part.read_text() == "mine" and list(tmp_path.iterdir()) == [part]
    part.unlink()
    with PartFile(part, [], "model"):
        content = part.read_bytes()
        assert command(photos / "test") == 2
        assert "another command is writing it" in capsys.readouterr().err
        assert part.read_bytes() == content
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_rows(command, stop, finish, new, out, part, tmp_path, capsys):
    (out / "p.csv").write_text("mine")
    stop(1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (part.stat().st_size, limits[1]))
    try:
        assert command("--output", out / "p.csv", new) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    found = re.search(r"\.p\.csv\.part: cannot be written \(.*\); (\d+ of 40 files are done), and", error)
    assert found and error.count("\n") == 1
    assert (out / "p.csv").read_text() == "mine"
    printed, table = finish()
    assert f"continuing {part}: {found[1]}" in printed and table == finish(output=tmp_path / "p.csv")[1]
