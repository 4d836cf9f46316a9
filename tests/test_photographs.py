"""Training on a folder of photographs: labels files, groups, --check, changed files and init_from."""

import io
import json
import shutil
import signal
import unicodedata
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydantic import TypeAdapter

import main
from mixmatch.cli import predict, pseudo_label
from mixmatch.cli.check import plot_inputs
from mixmatch.cli.part_file import ListedFile
from mixmatch.cli.predictions import predict_batch
from mixmatch.config import build_config, to_yaml
from mixmatch.data import load_data
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.folder.decode import Unreadable, decode
from mixmatch.data.folder.report import describe_folder
from mixmatch.data.split import Split
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from mixmatch.runs.directory import RunDirectory
from mixmatch.training.build import make_trainer
from tests.factories import data_of_labels, split_of
from tests.helpers import CPU, SMALL, in_memory, signal_after
from tests.test_predict import make_image

CLASSES = ["cat", "dog"]
SETTINGS = ["data.dataset=folder", "data.num_labeled=all", "data.image_size=8", "data.num_validation=0", *SMALL[3:]]


@pytest.fixture
def photos(tmp_path):
    """6 images of each class to train on, 2 to test, 5 unlabeled."""
    root = tmp_path / "my photos"
    for part, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                make_image(number, 50 * number + i + count).save(root / part / name / f"{i}.png")
    (root / "unlabeled").mkdir()
    for i in range(5):
        make_image(i % 2, 900 + i).save(root / "unlabeled" / f"{i}.png")
    return root


@pytest.fixture
def flat(photos, tmp_path):
    """The same images without class folders: cat-0.png, ..., unlabeled-4.png, test/cat-0.png, ..."""
    root = tmp_path / "flat"
    (root / "test").mkdir(parents=True)
    for file in (*photos.glob("train/*/*"), *photos.glob("unlabeled/*")):
        shutil.copy(file, root / f"{file.parent.name}-{file.name}")
    for file in photos.glob("test/*/*"):
        shutil.copy(file, root / "test" / f"{file.parent.name}-{file.name}")
    return root


def load(root, text=None, **settings):
    """Load a folder, with a labels file of this text."""
    if text is not None:
        (root / "labels.csv").write_text(text, encoding="utf-8")
        settings["labels"] = "labels.csv"
    data = {"dataset": "folder", "root": str(root), "image_size": 8, **settings}
    return in_memory(load_data(build_config({"data": data}).data, CPU))


def train(root, path, *overrides):
    return main.main(["--run-dir", str(path), *SETTINGS, f"data.root={root}", *overrides])


@pytest.mark.slow
def test_a_moved_folder_is_remembered_and_training_pictures_are_no_test(photos, tmp_path, monkeypatch, capsys):
    signal_after(monkeypatch, 5, signal.SIGTERM)
    assert train(photos, tmp_path / "run") == 128 + signal.SIGTERM
    monkeypatch.undo()
    moved = photos.rename(tmp_path / "moved")
    assert train(moved, tmp_path / "run") == 0
    assert main.main(["--run-dir", str(tmp_path / "run"), "train.steps=13"]) == 0  # finds them without data.root
    moved = moved.rename(tmp_path / "again")
    assert train(moved, tmp_path / "run", "train.steps=13") == 0  # it is finished
    assert RunDirectory(tmp_path / "run").read_config().data.root == str(moved)
    command = ["--run-dir", str(tmp_path / "run"), "--output", str(tmp_path / "p.csv")]
    for images, expected in ((moved, 4), (moved / "test", 4), (moved / "train", 0)):
        capsys.readouterr()
        assert predict.main([*command, str(images)]) == 0
        printed = capsys.readouterr().out
        assert (f"of {expected} files whose class is known" in printed) == (expected > 0)
        assert ("because the network was trained on them: 12\n" in printed) == (images != moved / "test")
        assert "are training images" not in printed
    next(moved.glob("train/*/*")).unlink()
    assert predict.main([*command, str(moved)]) == 0
    printed = capsys.readouterr().out
    assert "was trained on them: 11\n" in printed and "are training images" in printed
    moved = moved.rename(tmp_path / "at last")
    assert predict.main([*command, str(moved / "test")]) == 0
    assert "whether some of these files are training images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_is_not_that_of_other_pictures(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    other = tmp_path / "other" / photos.name
    shutil.copytree(photos, other)
    next(other.glob("train/*/*")).unlink()
    assert train(other, tmp_path / "run") == 2
    assert "split.json: is of other images than the present ones (1 missing, such as " in capsys.readouterr().err


@pytest.mark.slow
def test_a_labels_file_can_move(flat, tmp_path, monkeypatch, capsys):
    table = tmp_path / "classes.csv"
    table.write_text(
        "file,class\n" + "".join(f"{path.name},{path.name[:3]}\n" for path in flat.glob("[cd]*-[0-5].png"))
    )
    assert train(flat, tmp_path / "run", f"data.labels={table}") == 0
    moved = table.rename(tmp_path / "moved.csv")
    assert train(flat, tmp_path / "run", f"data.labels={moved}") == 0
    assert RunDirectory(tmp_path / "run").read_config().data.labels == str(moved)
    moved.write_text(moved.read_text().replace("cat-0.png,cat", "cat-0.png,dog"))
    assert train(flat, tmp_path / "run", f"data.labels={moved}") == 0  # the run is finished
    assert train(flat, tmp_path / "run", f"data.labels={moved.rename(table)}") == 2
    assert "pixels or classes changed, perhaps by data.image_size or data.fit" in capsys.readouterr().err


# Labels files


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_labels_file_gives_the_same_data_as_folders(photos, flat, separator):
    names = [path.relative_to(flat).as_posix() for path in flat.rglob("*.png")]
    known = {name: next(c for c in CLASSES if c in name) for name in names if any(c in name for c in CLASSES)}
    lines = [separator.join(pair) for pair in [("File", " Class "), *known.items()]]
    data, by_folders = load(flat, "\ufeff" + "\r\n".join(lines)), load(photos)
    assert data.classes == CLASSES and sorted(data.test_labels.tolist()) == [0, 0, 1, 1]
    for file, label in zip(data.files, data.labels.tolist(), strict=True):
        assert known.get(file) == (None if label < 0 else CLASSES[label])

    def labeled(data):
        return sorted(
            (image.numpy().tobytes(), int(label)) for image, label in zip(data.images, data.labels, strict=True)
        )

    assert labeled(data) == labeled(by_folders)


def test_files_that_a_labels_file_does_not_list(flat):
    (flat / "notes.txt").write_text("not a picture")
    (flat / "sub").mkdir()
    (flat / "cat-1.png").rename(flat / "sub" / "a.png")
    rows = "file,class\ncat-0.png,cat\n./dog-0.png,dog\nsub\\a.png,cat\ntest/cat-0.png,cat\n"
    data = load(flat, rows + f"{flat / 'dog-1.png'},dog\n")
    assert (data.labels >= 0).sum() == 4 and len(data.images) == 17  # the others are unlabeled,
    assert data.test_labels.tolist() == [0]  # but not in test/
    assert data.notes == [f"ignored in {flat}: notes.txt; test/cat-1.png; test/dog-0.png; test/dog-1.png"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "first line must name the columns"),
        ("name,class\na,b", "first line must name the columns: file,class .* it is 'name,class'"),
        ("file,class,class\ncat-0.png,cat,dog", "first line must name the columns"),
        ("file,class\n", "lists no files"),
        ("file,class\ncat-0.png,cat\n", "needs at least two classes, has 1"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\nno.png,dog\n", "line 4: no.png does not exist"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\n../../x.png,dog\n", "../../x.png does not exist"),
        ("file,class\ncat-0.png,cat\ncat-0.png,dog\n", "cat-0.png has different values in lines 2 and 3"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\ntest/cat-0.png,owl\n", "class 'owl' appears only in test/"),
        ("file,class\ncat-0.png,cat, striped\n", "line 2: 3 cells, but 2 columns"),
        ("file,class\ncat-0.png,a/b\n", "line 2: class 'a/b' is not a valid folder name"),
        ('file,class\n"cat-0.png,cat\n', "not a CSV file"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\ntest,dog\n", "line 4: test is a folder, hidden"),
        ("file,class\ncat-0.png,cat\ndog-0.png,dog\n.h/a.png,dog\n", "line 4: .h/a.png is a folder, hidden"),
        ("file,class\ncat-0.png,cat\ndog-0.png,Unlabeled\n", "'Unlabeled' would be a class; .*leave the class empty"),
    ],
)
def test_invalid_labels_files(flat, text, message):
    (flat / ".h").mkdir()
    make_image(0, 1).save(flat / ".h" / "a.png")
    with pytest.raises(UserError, match=f"labels.csv: .*{message}"):
        load(flat, text)


def test_a_labels_file_with_paths_of_another_kind_is_taken_with_a_note(photos, tmp_path, monkeypatch):
    expected = load(photos, "file,class\ntrain/cat/0.png,cat\ntrain/dog/5.png,dog\nunlabeled/0.png,dog\n")
    monkeypatch.chdir(tmp_path)
    data = load(photos, f"path,class\n{photos.name}/train/cat/0.png,cat\ndog/5.png,dog\nunlabeled/0.png,dog\n")
    assert torch.equal(data.labels, expected.labels) and data.files == expected.files
    file = photos / "labels.csv"
    assert data.notes[:3] == [
        f"{file}: the column path is taken for the column file",
        f"{file}: 1 path is taken as relative to the working directory, not to {photos}",
        f"{file}: 1 path is taken as relative to folders below {photos}, not to {photos}",
    ]
    assert data.notes[3].startswith(f"{file}: 10 pictures in folders named like a class have no row and are unlabeled")
    with pytest.raises(UserError, match=r"line 2: 0.png exists 5 times in"):
        load(photos, "file,class\n0.png,cat\ntrain/dog/5.png,dog\n")
    with pytest.raises(UserError, match="has different values in lines 2 and 3"):
        load(photos, "file,class\ndog/5.png,dog\ntrain/dog/5.png,cat\n")


def test_spaces_around_a_path_may_belong_to_it(photos):
    (photos / "unlabeled" / "0.png").rename(photos / " lead.png")
    data = load(photos, "file,class\n train/cat/0.png ,cat\ntrain/dog/5.png,dog\n lead.png,dog\n")
    assert sorted(data.files[index] for index in (data.labels >= 0).nonzero()) == [
        " lead.png",
        "train/cat/0.png",
        "train/dog/5.png",
    ]


def test_many_rows_without_a_file_are_one_problem(photos):
    rows = "".join(f"no{i}.png,cat\n" for i in range(2000))
    with pytest.raises(
        UserError,
        match=r"line 3: no0.png does not exist .*1,999 more rows, such as line 4.*rows of files that are gone",
    ) as raised:
        load(photos, f"file,class\ntrain/dog/1.png,dog\n{rows}train/cat/1.png,cat\n")
    assert len(str(raised.value)) < 1000


def test_labels_files_that_cannot_be_read(photos):
    for name in ("nowhere.csv", "train"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read .*set data.labels to a CSV file"):
            load(photos, labels=name)
    (photos / "excel.csv").write_bytes("file,class\ncat-0.png,café\n".encode("cp1252"))
    with pytest.raises(UserError, match="not UTF-8; save it as CSV UTF-8"):
        load(photos, labels="excel.csv")
    (photos / "excel.csv").write_bytes("file,class\ntrain/cat/0.png,cat\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="not UTF-8; save it as CSV UTF-8"):
        load(photos, labels="excel.csv")


def test_labels_files_as_excel_and_other_systems_write_them(photos, tmp_path):
    rows = ["train/cat/0.png,cat", "train/dog/0.png,dog"]
    expected = load(photos, "\n".join(["file,class", *rows]))
    separated = load(photos, "\n".join(["sep=;", "file;class", *(row.replace(",", ";") for row in rows)]))
    assert torch.equal(separated.labels, expected.labels) and separated.files == expected.files
    with pytest.raises(UserError, match=r"line 4: no.png does not exist"):
        load(photos, "sep=,\nfile,class\ntrain/cat/0.png,cat\nno.png,dog\n")
    link = tmp_path / "link"
    link.symlink_to(photos)
    absolute = load(link, "\n".join(["file,class", *(f"{photos.resolve()}/{row}" for row in rows)]))
    assert torch.equal(absolute.labels, expected.labels)


def test_class_names_are_equal_in_all_unicode_forms(photos):
    for part, form in (("train", "NFD"), ("test", "NFC")):
        (photos / part / "cat").rename(photos / part / unicodedata.normalize(form, "Käse"))
    data = load(photos)
    assert data.classes == [unicodedata.normalize("NFC", "Käse"), "dog"] and data.test_labels.tolist() == [0, 0, 1, 1]
    rows = ["file,class", "train/dog/0.png,dog", *(f"train/dog/{i}.png,Ka\u0308se" for i in (1, 2))]
    assert load(photos, "\n".join(rows)).classes == ["K\u00e4se", "dog"]


# Groups and validation images


def test_a_labels_file_without_classes_adds_groups_to_folders(photos):
    rows = ["file,group", *(f"train/{name}/{i}.png,{name}-{i // 2}" for name in CLASSES for i in range(6))]
    data = load(photos, "\n".join(rows))
    assert data.groups[:6] == ["cat-0", "cat-0", "cat-1", "cat-1", "cat-2", "cat-2"] and data.groups[12:] == [""] * 5
    assert not data.notes  # the labels file itself is not among the ignored files
    for row in ("train/cat,cat-0", "extra/x.png,cat-0"):
        (photos / "extra").mkdir(exist_ok=True)
        make_image(0, 1).save(photos / "extra" / "x.png")
        with pytest.raises(
            UserError, match=f"line 14: {row.partition(',')[0]} is a folder, hidden, in a folder that is"
        ):
            load(photos, "\n".join([*rows, row]))


def test_a_file_as_folder_and_a_folder_with_an_underscore(photos, tmp_path):
    with pytest.raises(UserError, match=r"0.png: is a file; give a folder"):
        load(photos / "unlabeled" / "0.png")
    config = build_config({"data": {"dataset": "folder", "root": "_my photos_"}})
    assert config.run_name() == "my-photos-250-seed1"


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 30), st.booleans())
def test_groups_are_never_split_over_validation_and_training(seed, held_out, num_groups, some_without):
    random = np.random.RandomState(seed)
    labels = np.repeat([0, 1, -1], 60)
    groups = [f"g{number}" for number in random.randint(0, num_groups, 180)]
    if some_without:
        groups[::3] = [""] * 60
    data = data_of_labels(labels, CLASSES, groups=groups)
    try:
        split = split_of(data, seed, "all", 2 * held_out, True)
    except UserError as error:
        assert "of them for validation, but needs 1 for training" in str(error)  # one group has all of a class
        return
    in_validation = {groups[i] for i in split.validation} - {""}
    assert not in_validation & {groups[i] for i in (*split.labeled, *split.unlabeled)}
    counts = np.bincount(labels[split.validation], minlength=2)
    assert (counts >= held_out).all() and not set(split.validation) & set(split.labeled)
    assert split == split_of(data, seed, "all", 2 * held_out, True)


@pytest.mark.parametrize(
    "counts, labeled, expected",
    [
        ((100, 100), "all", 40),
        ((32, 100), "all", 12),
        ((30, 100), "all", 0),
        ((100, 100), 150, 36),
        ((100, 100), 200, 0),
    ],
)
def test_automatic_number_of_validation_images(counts, labeled, expected):
    labels = np.repeat([0, 1], counts)
    split = split_of(data_of_labels(labels, CLASSES), 1, labeled, "auto")
    assert len(split.validation) == expected
    assert len(split.labeled) == (sum(counts) - expected if labeled == "all" else labeled)


def test_large_groups_are_held_out_only_if_the_others_do_not_suffice():
    labels = np.repeat([0, 1], 100)
    for seed in range(30):
        split = split_of(data_of_labels(labels, CLASSES, groups=["large"] * 60 + [""] * 140), seed, "all", "auto")
        assert np.bincount(labels[split.validation]).tolist() == [20, 20]
    everything = data_of_labels(labels, CLASSES, groups=["one"] * 100 + [""] * 100)
    assert split_of(everything, 1, "all", "auto").validation == []


# Folders by name


def test_names_of_folders_are_found_in_any_case(photos):
    expected = load(photos)
    for name in ("train", "test", "unlabeled"):
        (photos / name).rename(photos / name.upper())
    data = load(photos)
    assert torch.equal(data.images, expected.images) and torch.equal(data.test_labels, expected.test_labels)
    assert data.files == [f"{name.split('/')[0].upper()}/{name.split('/', 1)[1]}" for name in expected.files]


def test_a_folder_of_validation_images_is_used_for_nothing_else(photos):
    for name in CLASSES:
        (photos / "Val" / name).mkdir(parents=True)
        (photos / "train" / name / "5.png").rename(photos / "Val" / name / "5.png")
    (photos / "unlabeled" / "0.png").write_text("not a picture")  # indices are those of the readable ones
    data = load(photos, skip_unreadable=True)
    for count, both in ((0, False), ("auto", True)):
        split = split_of(data, 1, "all", count, both)
        assert [data.files[i] for i in split.validation] == ["Val/cat/5.png", "Val/dog/5.png"]
        assert len(split.labeled) == 10 and len(split.unlabeled) == (14 if both else 4)
        assert not set(split.validation) & {*split.labeled, *split.unlabeled}
        assert (split.files, split.fingerprint) == (data.files, data.fingerprint())
    assert split_of(data, 1, 4).validation == split_of(data, 2, 10).validation == split.validation
    with pytest.raises(UserError, match=r"data.num_validation: .*set it to 0 or auto"):
        split_of(data, 1, "all", 2)


def test_groups_in_the_folder_of_validation_images_are_not_in_training(photos):
    (photos / "val" / "cat").mkdir(parents=True)
    (photos / "train" / "cat" / "5.png").rename(photos / "val" / "cat" / "5.png")
    with pytest.raises(UserError, match="group 'tom' is in validation and in training"):
        split_of(load(photos, "file,group\nval/cat/5.png,tom\ntrain/cat/0.png,tom\n"))


def test_a_labels_file_takes_validation_images_from_the_folder(flat):
    (flat / "val").mkdir()
    (flat / "cat-0.png").rename(flat / "val" / "a.png")
    data = load(flat, "file,class\nval/a.png,cat\ncat-1.png,cat\ndog-1.png,dog\n")
    assert [data.files[i] for i in data.validation] == ["val/a.png"]


def test_labels_that_look_like_a_mistake_give_notes(photos, flat):
    (photos / "labels.csv").write_text("")
    assert "to use labels.csv, set data.labels=labels.csv" in load(photos).notes
    data = load(flat, "file,class\ncat-0.png,cat\ncat-1.png,Cat\ndog-0.png,dog\ndog-1.png,dog\n")
    assert "classes 'Cat' and 'cat' differ only in case or spaces; rename one" in data.notes


def test_a_name_of_several_classes_gives_a_note(flat):
    data = load(flat, "file,class\ncat-0.png,cat\ndog-0.png,dog\ncat-1.png,cat|dog\ndog-1.png,cat; dog\n")
    assert data.notes[0] == "a picture has one class: 'cat; dog', 'cat|dog' are classes of their own"


# Decoding


def test_unreadable_files_can_be_skipped(photos):
    (photos / "unlabeled" / "bad.png").write_text("not a picture")
    for _ in range(2):  # decoded, then from the cache
        data = load(photos, skip_unreadable=True)
        assert len(data.images) == 17 and "skipped 1 file that cannot be read" in data.notes[0]
    make_image(0, 5).save(photos / "unlabeled" / "bad.png")
    assert len(load(photos, skip_unreadable=True).images) == 18


def test_the_cache_can_be_refreshed(photos, tmp_path):
    def cached():
        (file,) = (photos / ".mixmatch-cache").glob("*.pixels")
        return file.stat().st_mtime_ns

    load(photos)
    time = cached()
    assert train(photos, tmp_path / "run", "--check") == 0 and cached() == time
    assert train(photos, tmp_path / "run", "--check", "--refresh-cache") == 0 and cached() > time
    assert main.main(["--refresh-cache", "--run-dir", str(tmp_path / "run"), *SMALL]) == 2  # no folder


def test_heif_needs_a_plug_in(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    monkeypatch.setattr("mixmatch.data.folder.decode.HAS_HEIF", False)
    with pytest.raises(Unreadable, match="pip install pillow-heif"):
        decode(tmp_path / "x.heic", 8)
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "y.heic")
    assert np.abs(decode(tmp_path / "y.heic", 8).pixels.astype(int) - [200, 30, 30]).max() < 8


# --check


def test_check_describes_the_folder(photos, tmp_path, capsys):
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "again.png")
    shutil.copy(photos / "train" / "cat" / "1.png", photos / "train" / "dog" / "other.png")
    shutil.copy(photos / "unlabeled" / "1.png", photos / "unlabeled" / "copy.png")
    (photos / "more").mkdir(parents=True)
    make_image(0, 1).save(photos / "more" / "x.png")
    (photos / "valid" / "cat").mkdir(parents=True)
    make_image(0, 1).save(photos / "valid" / "cat" / "x.png")
    make_image(0, 2).save(photos / "train" / "x.png")
    make_image(0, 3, (40, 10)).convert("L").save(photos / "unlabeled" / "small.gif")
    frames = [make_image(0, i) for i in range(3)]
    frames[0].save(photos / "unlabeled" / "pages.tif", save_all=True, append_images=frames[1:])
    (photos / "train" / "cat" / "Thumbs.db").write_text("junk")
    rows = ["file,group", "train/cat/0.png,tom", "test/cat/1.png,tom"]
    (photos / "groups.csv").write_text("\n".join(rows))
    assert train(photos, tmp_path / "run", "--check", "data.image_size=16", "data.labels=groups.csv") == 0
    printed, error = capsys.readouterr()
    duplicate = "1 picture exists more than once"
    assert error.splitlines() == [
        "warning: groups in train and test, accuracy may be too high: tom",
        f"warning: {duplicate} with different classes, exactly or nearly; remove the wrong ones: "
        "train/cat/1.png = train/dog/other.png",
        f"warning: {duplicate} in train and test, exactly or nearly; accuracy will be too high: remove them from one: "
        "train/cat/0.png = test/cat/again.png",
    ]
    for line in (
        f"{photos}: 27 files",
        "class       train     val    test",
        "cat             6       1       3",
        "dog             7       0       2",
        "unlabeled       8",
        "formats: 25 PNG, RGB; 1 TIFF, RGB; 1 GIF, P",
        "sizes: 20x20 to 40x10 pixels, median 20x20",
        "1 file with a side below 16 pixels",
        f"{duplicate} in unlabeled, exactly or nearly: unlabeled/1.png = unlabeled/copy.png",
        f"decoded images: {photos / '.mixmatch-cache'}, ",
        f"ignored: {photos / 'train' / 'x.png'}",
        f"ignored: {photos / 'more'}/ (1 file)",
        f"only the first page is used of {photos / 'unlabeled' / 'pages.tif'}",
        "13 labeled, 8 unlabeled, 1 validation",
        "12 steps of",
        "memory at its peak: ",
        "check passed, but with 3 warnings, see above",
    ):
        assert line in printed, f"{line}\n{printed}"
    assert {path.name for path in tmp_path.iterdir()} == {"my photos", "run-check.png"}


def describe(root, **settings):
    settings = build_config({"data": {"dataset": "folder", "root": str(root), "image_size": 16, **settings}}).data
    return describe_folder(settings, CPU, True)


def scene(seed, size=(60, 40)):
    """A picture with large shapes, as photographs have."""
    values = np.random.RandomState(seed).randint(0, 256, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_near_duplicates_are_found_in_every_part(photos, image_size, fit):
    shutil.rmtree(photos)
    for number, (part, count) in enumerate(
        {"train/cat": 3, "train/dog": 3, "test/cat": 2, "unlabeled": 20, "val/cat": 0}.items()
    ):
        (photos / part).mkdir(parents=True)
        for i in range(count):
            scene(100 * number + i).save(photos / part / f"{i}.png")
    scene(300).save(photos / "test" / "cat" / "again.jpg", quality=60)
    scene(301).resize((30, 20)).save(photos / "train" / "cat" / "small.webp")
    scene(100).save(photos / "test" / "cat" / "palette.gif")
    scene(1).save(photos / "val" / "cat" / "0.png")
    lines, warnings, _ = describe(photos, image_size=image_size, fit=fit)
    assert [line for line in lines if "more than once" in line] == [
        "1 picture exists more than once in train and unlabeled, exactly or nearly: "
        "train/cat/small.webp = unlabeled/1.png"
    ]
    advice = "exactly or nearly; accuracy will be too high: remove them from one"
    assert warnings == [
        f"1 picture exists more than once in unlabeled and test, {advice}: unlabeled/0.png = test/cat/again.jpg",
        f"1 picture exists more than once in train and val, {advice}: train/cat/1.png = val/cat/0.png",
        f"1 picture exists more than once in train and test, {advice}: train/dog/0.png = test/cat/palette.gif",
    ]


def test_transparent_and_flat_pictures_are_reported(photos):
    shape = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    shape.paste((0, 0, 0, 255), (5, 5, 15, 15))
    shape.save(photos / "unlabeled" / "shape.png")
    lines, warnings, _ = describe(photos)
    assert "1 file with transparency over white (data.background)" in lines and not warnings
    _, warnings, _ = describe(photos, background="black")
    assert warnings == ["1 file of one flat color; look at them, or set data.background: unlabeled/shape.png"]


def test_warnings_of_pillow_name_the_photograph(photos, recwarn):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "maker", "a camera with a long name"
    scene(1).save(photos / "unlabeled" / "short.jpg", exif=exif.tobytes()[:-14])
    note = f"{photos / 'unlabeled' / 'short.jpg'}: Pillow warns: Truncated File Read"
    for _ in range(2):  # decoded, then from the cache
        assert load(photos, image_size=16).notes == [note]
    assert not recwarn.list


@pytest.mark.parametrize("setting", [{"background": "black"}, {"white": 0.5}, {"max_pixels": 500}])
def test_settings_of_decoding_make_the_cache_stale(photos, setting):
    shape = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    shape.save(photos / "unlabeled" / "shape.png")
    Image.fromarray(np.full((20, 20), 0.25, np.float32)).save(photos / "unlabeled" / "float.tif")
    Image.new("RGB", (30, 20)).save(photos / "unlabeled" / "large.png")
    before = load(photos, skip_unreadable=True, white=1.0)
    after = load(photos, skip_unreadable=True, **{"white": 1.0, **setting})
    assert before.fingerprint() != after.fingerprint() and after.spec() != before.spec()


def test_predictions_decode_as_training_did(photos, capsys):
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(photos / "train" / "cat" / "shape.png")
    Image.fromarray(np.full((20, 20), 0.25, np.float32)).save(photos / "train" / "cat" / "value.tif")
    data = load(photos, background="#102030", white=0.5, fit="stretch", max_pixels=500)
    spec = TypeAdapter(ImageSpec).validate_python(json.loads(json.dumps(asdict(data.spec()))))
    assert spec == data.spec()
    seen = []

    def predict(images):
        seen.append(torch.from_numpy(images))
        return torch.full((len(images), 2), 0.5)

    model = SimpleNamespace(spec=spec, predict_probabilities=predict)
    predict_batch(model, [ListedFile(str(photos / name), None, name) for name in data.files])
    assert torch.equal(seen[0], data.images) and data.images[6, 0, 0].tolist() == [16, 32, 48]


@pytest.mark.parametrize(
    "num_classes, size, method", [(2, 8, "mixmatch"), (10, 64, "fixmatch"), (10, 64, "mixmatch"), (40, 32, "softmatch")]
)
def test_the_picture_of_inputs_fits_on_a_screen_and_has_strong_views(num_classes, size, method):
    labels = np.repeat(np.arange(num_classes), 40)
    data = data_of_labels(labels, [f"class {number}" for number in range(num_classes)])
    data = replace(data, images=torch.zeros(len(labels), size, size, 3, dtype=torch.uint8))
    config = {"method": method, "model": {"depth": 10, "width": 1}, "data": {"num_labeled": 4 * num_classes}}
    trainer = make_trainer(build_config(config), data, split_of(data, 1, 4 * num_classes, 0), CPU)
    with Image.open(io.BytesIO(plot_inputs(trainer, data.classes))) as page:
        assert 1200 <= page.width <= 1920 and 700 <= page.height <= 1080
        gray = page.convert("L").histogram()[127:129]  # Cutout's squares in black images
        assert (sum(gray) > 1000) == (method != "mixmatch")


def test_check_refuses_a_disk_that_is_too_small(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert train(photos, tmp_path / "run", "--check") == 2
    assert "not enough disk space for the checkpoints; free some" in capsys.readouterr().err


def test_check_lists_every_problem(photos, tmp_path, capsys):
    for i in range(7):
        (photos / "unlabeled" / f"bad{i}.jpg").write_text("not a picture")
    (photos / "test" / "bird").mkdir()
    make_image(0, 1).save(photos / "test" / "bird" / "x.png")
    assert train(photos, tmp_path / "run", "--check") == 2
    error = capsys.readouterr().err
    assert error.count("cannot be read: ") == 7
    assert "class 'bird' appears only in test/" in error
    assert error.splitlines()[-1] == "error: check failed: 8 problems, see above"
    assert train(photos, tmp_path / "run") == 2
    assert "class 'bird' appears only in test/" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override, message, code",
    [
        ("data.num_validation=8", "data.num_labeled: class 'cat' has 6 images, 4 of them for validation", 2),
        ("data.crop_padding=9", "data.crop_padding: must be less than", 2),
        ("train.lr=1e5", "the loss is not finite", 1),
        ("init_from=nowhere", "nowhere: ", 2),
    ],
)
def test_check_finds_what_training_would_fail_with(photos, tmp_path, capsys, override, message, code):
    assert train(photos, tmp_path / "run", "--check", override, "data.num_labeled=6") == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_check_of_an_existing_run(tmp_path, capsys):
    assert main.main(["--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    capsys.readouterr()
    assert main.main(["--run-dir", str(tmp_path / "run"), "--check", "train.steps=100"]) == 0
    printed = capsys.readouterr().out
    assert "at step 12 of 100" in printed and "88 steps of" in printed
    assert main.main(["--run-dir", str(tmp_path / "run"), "--check", "seed=2"]) == 2
    assert "seed" in capsys.readouterr().err


def test_a_test_set_is_sampled_and_the_same_for_every_seed(photos, tmp_path, capsys):
    shutil.rmtree(photos / "test")
    for seed in (1, 2):
        assert train(photos, tmp_path / f"{seed}", "data.num_test=0.34", f"seed={seed}", "train.steps=1") == 0
        assert "8 labeled, 5 unlabeled, 0 validation, 4 test images" in capsys.readouterr().out
    first, second = (json.loads((tmp_path / f"{seed}" / "split.json").read_text()) for seed in (1, 2))
    assert first["test_files"] == second["test_files"] and len(first["test_files"]) == 4
    assert not {*first["files"]} & {*first["test_files"]}
    assert first["test_fingerprint"] == second["test_fingerprint"]
    assert json.loads((tmp_path / "2" / "results.json").read_text())["test"]["images"] == 4
    # Without it nothing shows the accuracy, and a line names the override that would.
    assert train(photos, tmp_path / "3", "train.steps=1") == 0
    assert "accuracy will be unknown" in (out := capsys.readouterr().out) and "data.num_test=0.2" in out
    assert json.loads((tmp_path / "3" / "results.json").read_text())["test_accuracy"] is None


# Changed photographs and init_from


@pytest.mark.slow
def test_a_run_refuses_changed_photographs(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["files"][:7] == [*(f"train/cat/{i}.png" for i in range(6)), "train/dog/0.png"]
    make_image(0, 78).save(photos / "train" / "cat" / "0.png")
    assert train(photos, tmp_path / "run", "train.steps=14") == 2
    assert "pixels or classes changed, perhaps by data.image_size or data.fit" in capsys.readouterr().err
    make_image(0, 77).save(photos / "train" / "cat" / "new.png")
    (photos / "unlabeled" / "0.png").unlink()
    (photos / "unlabeled" / "1.png").unlink()
    assert train(photos, tmp_path / "run", "train.steps=14") == 2
    error = capsys.readouterr().err
    assert "1 new, such as 'train/cat/new.png', 2 missing, such as 'unlabeled/0.png'" in error
    assert "init_from=RUN" in error


@pytest.mark.slow
def test_a_run_and_its_stage_refuse_a_renamed_class(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    (photos / "test" / "dog").rename(photos / "test" / "wolf")
    (photos / "train" / "dog").rename(photos / "train" / "wolf")
    message = "split.json: is of other classes than the present ones ('dog' is now 'wolf'); restore them"
    capsys.readouterr()
    assert train(photos, tmp_path / "run", "train.steps=14") == 2
    assert message in capsys.readouterr().err
    assert pseudo_label.main(["--run-dir", str(tmp_path / "run"), "pseudo_label.steps=2"]) == 2
    assert message in capsys.readouterr().err
    assert train(photos, tmp_path / "other", f"data.split_file={tmp_path / 'run' / 'split.json'}") == 2
    assert message in capsys.readouterr().err
    assert train(photos, tmp_path / "next", f"init_from={tmp_path / 'run'}") == 0
    assert "except dense.weight, dense.bias, which were of the classes cat, dog" in capsys.readouterr().out


def test_runs_may_have_started_from_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        split = Split("toy", "", [0], [1], [], files=[f"{name}.png", "u.png"])
        RunDirectory(tmp_path / name).path.mkdir()
        (tmp_path / name / "split.json").write_text(split.to_json())
        config = build_config({"data": {"dataset": "folder", "root": "x"}, "init_from": str(tmp_path / other)})
        (tmp_path / name / "config.yml").write_text(to_yaml(config))
    assert {path[-5:] for path in predict.labeled_files(tmp_path / "a")[0]} == {"a.png", "b.png"}


@pytest.mark.slow
def test_pictures_that_the_weights_before_were_trained_on_do_not_count(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    other = shutil.copytree(photos, tmp_path / "other")
    assert train(other, tmp_path / "next", f"init_from={tmp_path / 'run'}") == 0
    command = ["--run-dir", str(tmp_path / "next"), "--output", str(tmp_path / "p.csv")]
    for folder in (photos, other):
        capsys.readouterr()
        assert predict.main([*command, str(folder)]) == 0
        printed = capsys.readouterr().out
        assert "was trained on them: 12\n" in printed and "are training images" not in printed
    # Of a data set that is downloaded, no file is known.
    digits = [*SMALL, "data.dataset=digits"]
    assert main.main(["--run-dir", str(tmp_path / "digits"), *digits]) == 0
    folder = tmp_path / "pictures" / "3"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "a.png")
    assert predict.main(["--run-dir", str(tmp_path / "digits"), *command[2:], str(folder)]) == 0
    assert "whether some of these files are training images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("source", [".", "model.safetensors"])
def test_init_from_starts_with_the_saved_weights(photos, tmp_path, source):
    assert train(photos, tmp_path / "run") == 0
    start = f"init_from={tmp_path / 'run' / source}"
    assert train(photos, tmp_path / "next", start, "train.lr=1e-12", "train.steps=1", "seed=2") == 0
    networks = [load_model(tmp_path / name).network for name in ("run", "next")]
    for old, new in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(old, new, atol=1e-6)


@pytest.mark.slow
def test_init_from_with_another_class_replaces_the_last_layer(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run") == 0
    (photos / "train" / "owl").mkdir()
    for i in range(4):
        make_image(2, 300 + i).save(photos / "train" / "owl" / f"{i}.png")
    start = f"init_from={tmp_path / 'run'}"
    assert train(photos, tmp_path / "next", start) == 0
    assert f"initial weights from {tmp_path / 'run'}, except dense.weight, dense.bias" in capsys.readouterr().out
    assert train(photos, tmp_path / "frozen", start, "model.freeze_layers=2") == 0  # the last layer never is
    shutil.rmtree(tmp_path / "run")
    assert train(photos, tmp_path / "next", start, "train.steps=14") == 0  # resumes without the first run


@pytest.mark.slow
@pytest.mark.parametrize("override", ["model.depth=16", "model.width=1", "model.stem_stride=2"])
def test_init_from_another_network_is_refused(photos, tmp_path, capsys, override):
    settings = [*SETTINGS, f"data.root={photos}"]
    if "stem" in override:  # the weights have the same shapes
        settings = [setting for setting in settings if not setting.startswith("model.")]
        settings += ["model.network=resnet", "model.channels=8", "model.blocks=[1]", "model.stem_stride=1"]
    assert main.main(["--run-dir", str(tmp_path / "run"), *settings]) == 0
    start = f"init_from={tmp_path / 'run'}"
    assert main.main(["--run-dir", str(tmp_path / "next"), *settings, start, override]) == 2
    assert "is of another network; use the same model.* settings" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


@pytest.mark.slow
def test_layers_without_initial_weights_are_not_frozen(photos, tmp_path, capsys):
    assert main.main(["--run-dir", str(tmp_path / "gray"), *SMALL]) == 0
    start = [f"init_from={tmp_path / 'gray'}", "model.freeze_layers=1"]
    assert train(photos, tmp_path / "run", *start) == 2
    assert "model.freeze_layers: freezes stem.weight, which init_from does not have" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_by_another_method_needs_no_image_without_a_label(photos, tmp_path):
    shutil.rmtree(photos / "unlabeled")
    stage = ["method=fixmatch", "pseudo_label.enabled=true", "pseudo_label.method=softmatch", "pseudo_label.steps=2"]
    assert train(photos, tmp_path / "run", "data.keep_on=disk", *stage) == 0


# Names, rotations, and runs without held-out images


def test_runs_are_named_after_folder_and_method():
    data = {"dataset": "folder", "root": "/some where/My photos (2)!", "num_labeled": "all"}
    assert build_config({"data": data}).run_name() == "My-photos-2-all-seed1"
    data["image_size"] = 64
    assert build_config({"data": data, "seed": 7}).run_name() == "My-photos-2-64px-all-seed7"
    assert build_config({"name": "x", "method": "supervised"}).run_name() == "x-supervised-seed1"
    assert build_config({"data": data | {"root": "猫"}}).run_name() == "folder-64px-all-seed1"


@pytest.mark.slow
def test_rotations_are_for_methods_that_do_not_learn_them(photos, tmp_path, capsys):
    (photos / "notes.txt").write_text("by me")
    assert train(photos, tmp_path / "run", "data.rotate=true") == 0
    assert f"note: ignored in {photos}: notes.txt" in capsys.readouterr().out
    learned = ["method=remixmatch", "remixmatch.num_strong_views=1", "remixmatch.lambda_rotation=0.5"]
    assert train(photos, tmp_path / "learned", *learned) == 0
    for key, value in (("rotate", "true"), ("degrees", "45")):
        assert train(photos, tmp_path / key, f"data.{key}={value}", *learned) == 2
        assert f"data.{key}: remixmatch" in capsys.readouterr().err
