"""From a folder of photographs to a run: tables of labels, groups, what --check says, and what happens on changes."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import main
from mixmatch.config import build_config
from mixmatch.data import load_data
from mixmatch.data.folder.decode import Unreadable, decode
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from tests.factories import labels_alone, split_of
from tests.helpers import SMALL
from tests.test_predict import pattern

CPU = torch.device("cpu")
CLASSES = ["cat", "dog"]
SETTINGS = ["data.dataset=folder", "data.num_labeled=all", "data.image_size=8", "data.num_validation=0", *SMALL[3:]]


@pytest.fixture
def photos(tmp_path):
    """6 of each class to train on, 2 to test, 5 unlabeled."""
    root = tmp_path / "my photos"
    for part, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pattern(number, 50 * number + i + count).save(root / part / name / f"{i}.png")
    (root / "unlabeled").mkdir()
    for i in range(5):
        pattern(i % 2, 900 + i).save(root / "unlabeled" / f"{i}.png")
    return root


def load(root, **settings):
    return load_data(
        build_config({"data": {"dataset": "folder", "root": str(root), "image_size": 8, **settings}}).data, CPU
    )


def train(root, path, *overrides):
    return main.main(["--run-dir", str(path), *SETTINGS, f"data.root={root}", *overrides])


def table(root, text, name="labels.csv"):
    (root / name).write_text(text, encoding="utf-8")
    return name


def heap(root, tmp_path):
    """The same pictures all in one folder, but for test/."""
    (tmp_path / "heap").mkdir()
    for file in (*root.glob("train/*/*"), *root.glob("unlabeled/*")):
        shutil.copy(file, tmp_path / "heap" / f"{file.parent.name}-{file.name}")
    (tmp_path / "heap" / "test").mkdir()
    for file in root.glob("test/*/*"):
        shutil.copy(file, tmp_path / "heap" / "test" / f"{file.parent.name}-{file.name}")
    return tmp_path / "heap"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_says_what_folders_would(photos, tmp_path, separator):
    by_folders, root = load(photos), heap(photos, tmp_path)
    names = [p.relative_to(root).as_posix() for p in root.rglob("*.png")]
    known = [(n, next(c for c in CLASSES if c in n)) for n in names if any(c in n for c in CLASSES)]
    lines = [separator.join(pair) for pair in [("file", "class"), *known]]
    data = load(root, labels=table(root, "\ufeff" + "\r\n".join(lines)))
    assert data.classes == CLASSES
    assert sorted(data.labels.tolist()) == sorted(by_folders.labels.tolist())
    for file, label in zip(data.files, data.labels.tolist(), strict=True):
        assert dict(known).get(file, None) == (None if label < 0 else CLASSES[label])
    theirs = {image.numpy().tobytes(): label for image, label in zip(by_folders.images, by_folders.labels, strict=True)}
    for image, label in zip(data.images, data.labels, strict=True):
        assert theirs[image.numpy().tobytes()] == label
    assert sorted(data.test_labels.tolist()) == [0, 0, 1, 1]


def test_what_a_table_does_not_name_in_test_is_left_out_and_said(photos, tmp_path):
    root = heap(photos, tmp_path)
    rows = "file,class\ncat-0.png,cat\n./dog-0.png,dog\ntest/cat-0.png,cat\n" + f"{root / 'dog-1.png'},dog\n"
    data = load(root, labels=table(root, rows))
    assert (data.labels >= 0).sum() == 3
    assert data.test_labels.tolist() == [0] and len(data.images) == 17
    assert "nothing looks at test/cat-1.png" in data.notes[0]


@pytest.mark.parametrize(
    "rows, message",
    [
        ("name,class\na,b", "needs a first line that names its columns, file,class"),
        ("", "needs a first line"),
        ("file,class\n", "names no files"),
        ("file,class\ncat-0.png,cat\n", "needs at least two classes, has 1"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\nno.png,dog\n", "line 4: no.png is no file below"),
        ("file,class\ncat-0.png,cat\n../../x.png,dog\n", "x.png is no file below"),
        ("file,class\ncat-0.png,cat\ncat-0.png,dog\n", "line 3: cat-0.png was another in line 2"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\ntest/cat-0.png,owl\n", "class 'owl' is there in test/ alone"),
        ('file,class\n"cat-0.png,cat\n', "is no CSV that can be read|no file below|names no"),
    ],
)
def test_tables_that_do_not_work_are_one_line(photos, tmp_path, rows, message):
    root = heap(photos, tmp_path)
    with pytest.raises(UserError, match=message):
        load(root, labels=table(root, rows))


def test_a_table_that_is_not_there_or_cannot_be_read(photos):
    with pytest.raises(UserError, match=r"nowhere.csv: cannot be read .*data.labels must name a CSV file"):
        load(photos, labels="nowhere.csv")
    with pytest.raises(UserError, match="cannot be read"):
        load(photos, labels="train")


def test_folders_say_the_class_and_a_table_the_groups(photos):
    rows = ["file,group", *(f"train/{name}/{i}.png,{name}-{i // 2}" for name in CLASSES for i in range(6))]
    data = load(photos, labels=table(photos, "\n".join(rows)))
    assert data.groups[:6] == ["cat-0", "cat-0", "cat-1", "cat-1", "cat-2", "cat-2"] and data.groups[12:] == [""] * 5
    assert not data.notes  # the table is none of the files that nothing looks at


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 30), st.booleans())
def test_groups_are_never_split_over_validation_and_training(seed, held_out, num_groups, some_without):
    draw = np.random.RandomState(seed)
    labels = np.repeat([0, 1, -1], 60)
    groups = [f"g{number}" for number in draw.randint(0, num_groups, 180)]
    if some_without:
        groups[::3] = [""] * 60
    try:
        split = split_of(labels_alone(labels, CLASSES, groups=groups), seed, "all", 2 * held_out, True)
    except UserError as error:
        assert "are too many" in str(error)  # a group can be all that a class has
        return
    held = {groups[i] for i in split.validation} - {""}
    assert not held & {groups[i] for i in (*split.labeled, *split.unlabeled)}
    counts = np.bincount(labels[split.validation], minlength=2)
    assert (counts >= held_out).all() and not set(split.validation) & set(split.labeled)
    assert split == split_of(labels_alone(labels, CLASSES, groups=groups), seed, "all", 2 * held_out, True)


def test_groups_of_one_are_as_good_as_none():
    labels = np.repeat([0, 1], 50)
    with_groups = split_of(labels_alone(labels, CLASSES, groups=[str(i) for i in range(100)]), 3, 20, 30)
    assert np.bincount(labels[with_groups.validation]).tolist() == [15, 15]
    assert np.bincount(labels[with_groups.labeled]).tolist() == [10, 10]


@pytest.mark.parametrize(
    "counts, labeled, expected",
    [
        ((100, 100), "all", 40),
        ((32, 100), "all", 12),
        ((31, 100), "all", 12),
        ((30, 100), "all", 0),
        ((25, 25), "all", 0),
        ((100, 100), 150, 36),
        ((100, 100), 190, 10),
        ((100, 100), 200, 0),
    ],
)
def test_validation_images_are_held_out_where_there_are_enough(counts, labeled, expected):
    labels = np.repeat([0, 1], counts)
    split = split_of(labels_alone(labels, CLASSES), 1, labeled, "auto")
    assert len(split.validation) == expected
    assert len(split.labeled) == (sum(counts) - expected if labeled == "all" else labeled)


def test_check_says_in_one_go_what_is_odd(photos, tmp_path, capsys):
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "again.png")
    shutil.copy(photos / "train" / "cat" / "1.png", photos / "train" / "dog" / "other.png")
    shutil.copy(photos / "unlabeled" / "1.png", photos / "unlabeled" / "twin.png")
    (photos / "valid" / "cat").mkdir(parents=True)
    pattern(0, 1).save(photos / "valid" / "cat" / "x.png")
    pattern(0, 2, (40, 10)).convert("L").save(photos / "train" / "x.png")
    pattern(0, 3, (40, 10)).convert("L").save(photos / "unlabeled" / "small.gif")
    frames = [pattern(0, i) for i in range(3)]
    frames[0].save(photos / "unlabeled" / "pages.tif", save_all=True, append_images=frames[1:])
    (photos / "train" / "cat" / "Thumbs.db").write_text("litter")
    assert train(photos, tmp_path / "run", "--check", "data.image_size=16") == 0
    printed, error = capsys.readouterr()
    assert not error
    for line in (
        f"{photos}: 26 files",
        "cat              6       3",
        "dog              7       2",
        "unlabeled       8",
        "formats: 24 PNG, RGB; 1 TIFF, RGB; 1 GIF, P",
        "sizes: from 20x20 to 40x10 pixels",
        "1 file has a side below 16 pixels",
        "the same picture in train and in test: train/cat/0.png, test/cat/again.png",
        "the same picture of two classes: train/cat/1.png, train/dog/other.png",
        "the same picture: unlabeled/1.png, unlabeled/twin.png",
        f"nothing looks at {photos / 'train' / 'x.png'}",
        f"nothing looks at {photos / 'valid'}/ (1 file)",
        f"only the first page is used of {photos / 'unlabeled' / 'pages.tif'}",
        "13 labeled, 8 unlabeled",
        "classes are of unequal size: from 6 labeled (cat) to 7 (dog)",
        "12 steps of",
        "GB of memory",
        "nothing speaks against training",
    ):
        assert line in printed, f"{line}\n{printed}"
    assert [path.name for path in tmp_path.iterdir() if path != photos] == ["run-check.png"]
    with Image.open(tmp_path / "run-check.png") as sheet:
        assert sheet.width > 380 and sheet.height > 900


def test_check_names_everything_that_would_fail_and_ends_with_2(photos, tmp_path, capsys):
    for i in range(7):
        (photos / "unlabeled" / f"bad{i}.jpg").write_text("no picture")
    (photos / "train" / "owl").mkdir()
    (photos / "test" / "bird").mkdir()
    assert train(photos, tmp_path / "run", "--check") == 2
    error = capsys.readouterr().err.splitlines()
    assert sum("cannot be read: " in line for line in error) == 7
    assert any("owl: holds no images" in line for line in error)
    assert any("class 'bird' is in test/ but not in train/" in line for line in error)
    assert error[-1] == "error: training would fail, for 9 problems named above"
    assert not (tmp_path / "run").exists()
    assert train(photos, tmp_path / "run") == 2
    assert "(and 1 more such things: --check names them all)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.num_validation=8", "data.num_labeled: 3 images of each class are too many"),
        ("data.crop_padding=9", "data.crop_padding: must be below"),
        ("train.lr=1e5", "the loss is no longer finite"),
        ("init_from=nowhere", "nowhere: is no run directory"),
    ],
)
def test_check_finds_what_training_would_fail_with(photos, tmp_path, capsys, override, message):
    assert train(photos, tmp_path / "run", "--check", override, "data.num_labeled=6") == 2
    assert f"problem: {message}" in capsys.readouterr().err


def test_check_of_other_data_sets_and_of_a_run_that_is_there(tmp_path, capsys):
    assert main.main(["--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    capsys.readouterr()
    assert main.main(["--run-dir", str(tmp_path / "run"), "--check", "train.steps=100"]) == 0
    printed = capsys.readouterr().out
    assert "is there already, at step 12" in printed and "88 steps of" in printed
    assert main.main(["--run-dir", str(tmp_path / "run"), "--check", "seed=2"]) == 2
    assert "holds a run of another config: seed" in capsys.readouterr().err


def test_photographs_added_or_missing_are_counted_and_init_goes_on(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["files"][:7] == [*(f"train/cat/{i}.png" for i in range(6)), "train/dog/0.png"]
    pattern(0, 77).save(photos / "train" / "cat" / "new.png")
    (photos / "unlabeled" / "0.png").unlink()
    (photos / "unlabeled" / "1.png").unlink()
    capsys.readouterr()
    assert train(photos, tmp_path / "run", "train.steps=14") == 2
    error = capsys.readouterr().err
    assert "1 is new, such as train/cat/new.png, 2 are missing, such as unlabeled/0.png" in error
    assert "a new run start from this one's weights with init_from=RUN" in error
    assert train(photos, tmp_path / "next", f"init_from={tmp_path / 'run'}", "train.steps=2") == 0
    assert f"starts from the weights of {tmp_path / 'run'}" in capsys.readouterr().out


def test_a_file_changed_in_place_is_said(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    pattern(0, 78).save(photos / "train" / "cat" / "0.png")
    assert train(photos, tmp_path / "run", "train.steps=14") == 2
    assert "the same files, but pixels or classes have changed" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["run", "model.safetensors"])
def test_init_takes_the_averaged_weights_and_statistics(photos, tmp_path, monkeypatch, source):
    assert train(photos, tmp_path / "run") == 0
    start = tmp_path / "run" if source == "run" else tmp_path / "run" / source
    seen = {}

    def stop(self):
        seen.update({name: value.clone() for name, value in self.state().items()})
        raise UserError("seen")

    monkeypatch.setattr("mixmatch.training.trainer.Trainer.train_step", stop)
    assert train(photos, tmp_path / "next", f"init_from={start}", "seed=2") == 2
    weights = load_model(tmp_path / "run").network.state_dict()
    for name, value in weights.items():
        assert torch.equal(seen[f"model.{name}"], value)
        assert torch.equal(seen.get(f"ema.{name}", value), value)
    assert not any(value.any() for name, value in seen.items() if name.startswith("optimizer"))


def test_init_with_another_class_keeps_all_but_the_last_layer(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    (photos / "train" / "owl").mkdir()
    for i in range(4):
        pattern(2, 300 + i).save(photos / "train" / "owl" / f"{i}.png")
    assert train(photos, tmp_path / "next", f"init_from={tmp_path / 'run'}") == 0
    printed = capsys.readouterr().out
    assert "but for" in printed and "continuing" not in printed
    # Killed and continued it does not start over, also where the first run is gone.
    shutil.rmtree(tmp_path / "run")
    assert train(photos, tmp_path / "next", f"init_from={tmp_path / 'run'}") == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["init_from=runs/nowhere"], "runs/nowhere: is no run directory"),
        (["init_from={run}", "model.depth=16"], "init_from: .* is of another network; give the same model"),
        (["init_from={run}", "model.width=1"], "init_from: .* is of another network"),
    ],
)
def test_init_that_cannot_be_had(photos, tmp_path, capsys, overrides, message):
    assert train(photos, tmp_path / "run") == 0
    overrides = [text.format(run=tmp_path / "run") for text in overrides]
    assert train(photos, tmp_path / "next", *overrides) == 2
    capsys.readouterr()
    assert not (tmp_path / "next" / "results.json").exists()


def test_runs_are_named_after_the_photographs_and_the_method():
    data = {"dataset": "folder", "root": "/some where/My photos (2)!", "num_labeled": "all"}
    assert build_config({"data": data}).run_name() == "My-photos-2-all-seed1"
    data["image_size"] = 64
    assert build_config({"data": data, "seed": 7}).run_name() == "My-photos-2-64px-all-seed7"
    assert build_config({"name": "x", "method": "supervised"}).run_name() == "x-supervised-seed1"
    assert build_config({"data": data | {"root": "猫"}}).run_name() == "folder-64px-all-seed1"


def test_turned_views_train_and_a_run_says_what_nothing_looks_at(photos, tmp_path, capsys):
    (photos / "notes.txt").write_text("by me")
    assert train(photos, tmp_path / "run", "data.rotate=true") == 0
    assert f"note: nothing looks at notes.txt in {photos}" in capsys.readouterr().out
    by_turns = ["method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.lambda_rotation=0.5"]
    assert train(photos, tmp_path / "turns", *by_turns) == 0
    assert train(photos, tmp_path / "both", "data.rotate=true", *by_turns) == 2
    assert "data.rotate: remixmatch learns by how much views are turned" in capsys.readouterr().err


def test_what_cannot_be_read_is_remembered_and_tried_again(photos, tmp_path, monkeypatch):
    bad = photos / "unlabeled" / "bad.png"
    bad.write_text("no picture")
    assert len(load(photos, skip_unreadable=True).images) == 17
    decoded = []
    monkeypatch.setattr("mixmatch.data.folder.decode_all", lambda *a: decoded.append(a) or iter(()))
    data = load(photos, skip_unreadable=True)
    assert len(data.images) == 17 and "left out 1 file" in data.notes[0] and not decoded
    monkeypatch.undo()
    status = bad.stat()
    pattern(0, 5).save(bad)
    os.utime(bad, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(load(photos, skip_unreadable=True).images) == 18


def test_heic_is_read_by_its_plug_in_or_names_it(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    monkeypatch.setattr("mixmatch.data.folder.decode.HEIF", False)
    with pytest.raises(Unreadable, match="pip install pillow-heif reads it"):
        decode(tmp_path / "x.heic", 8)
    monkeypatch.undo()
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "y.heic")
    assert (decode(tmp_path / "y.heic", 8).pixels.astype(int) - [200, 30, 30]).__abs__().max() < 8


def test_without_held_out_images_the_end_says_what_that_means(photos, tmp_path, capsys):
    shutil.rmtree(photos / "test")
    assert train(photos, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "nothing tells how good this network is" in printed and "data.num_validation=N" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_accuracy"] is None and "test_images" not in results


@pytest.mark.parametrize(
    "head, rows, message",
    [
        ("File, Class ", "cat-0.png,cat\ndog-0.png,dog\n", None),
        ("file,label", "cat-0.png,cat\n", "names its columns, file,class .* it names .*'label'"),
        ("file,class,class", "cat-0.png,cat,dog\n", "each once"),
        ("file,class", "cat-0.png,cat, striped\n", "line 2: 3 cells, but 2 columns"),
        ("file,class", "cat-0.png,a/b\n", "line 2: 'a/b' is no name for a class"),
        ("file,class", "cat-0.png,..\n", "is no name for a class"),
    ],
)
def test_headers_and_rows_that_are_almost_right(photos, tmp_path, head, rows, message):
    root = heap(photos, tmp_path)
    labels = table(root, f"{head}\n{rows}")
    if message is None:
        assert (load(root, labels=labels).labels >= 0).sum() == 2
    else:
        with pytest.raises(UserError, match=message):
            load(root, labels=labels)


def test_tables_of_other_systems(photos, tmp_path):
    root = heap(photos, tmp_path)
    (root / "sub").mkdir()
    (root / "cat-0.png").rename(root / "sub" / "a.png")
    (root / "notes.txt").write_text("no picture, and named by nothing")
    (root / "Test").mkdir()
    pattern(0, 4).save(root / "Test" / "y.png")
    data = load(root, labels=table(root, "file,class\r\nsub\\a.png,cat\r\ndog-0.png,dog\r\n"))
    assert (data.labels >= 0).sum() == 2 and len(data.images) == 17 and data.test_images is None
    assert "notes.txt" in data.notes[0] and "Test/y.png" in data.notes[0]
    (root / "labels.csv").write_bytes("file,class\ncat-0.png,café\n".encode("cp1252"))
    with pytest.raises(UserError, match="is not UTF-8; save it as CSV UTF-8"):
        load(root, labels="labels.csv")
    # The table is none of the pictures, however it is called.
    table(root, "file,class\nsub/a.png,cat\ndog-0.png,dog\n")
    assert len(load(root, labels="sub/../labels.csv").images) == 17
    assert len(load(root, labels=str(root.resolve() / "labels.csv")).images) == 17


def test_large_groups_are_held_out_only_if_nothing_else_is_left():
    labels = np.repeat([0, 1], 100)
    groups = ["large"] * 60 + [""] * 140
    for seed in range(30):
        split = split_of(labels_alone(labels, CLASSES, groups=groups), seed, "all", "auto")
        assert np.bincount(labels[split.validation]).tolist() == [20, 20]
    everything = ["one"] * 100 + [""] * 100
    assert split_of(labels_alone(labels, CLASSES, groups=everything), 1, "all", "auto").validation == []
