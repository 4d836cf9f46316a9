"""The trained network on files: predict.py as a user runs it, on whatever people and cameras leave in folders."""

import csv
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import main
import predict
from mixmatch.cli.predictions import sort_into
from mixmatch.data.folder.decode import Unreadable, decode, find_images
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from tests.helpers import ROOT, SMALL

FOLDER = [
    "data.dataset=folder",
    "data.num_labeled=all",
    "data.image_size=16",
    "data.num_validation=3",
    *SMALL[3:],
    "model.bn_momentum=0.2",
    "train.ema_decay=0.5",
]
CLASSES = ["lying", "=cmd()", "<b>ß 猫"]


def pattern(number, seed, size=(20, 20)):
    draw = np.random.RandomState(seed)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., number] = draw.randint(120, 255)
    return Image.fromarray((pixels + draw.randint(0, 60, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 8), ("test", 6)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pattern(number, 100 * number + i + count, (24, 20)).save(root / part / name / f"{i}.png")
    (root / "unlabeled").mkdir()
    for i in range(20):
        pattern(i % 3, 900 + i).save(root / "unlabeled" / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    settings = [f"data.root={photos}", "data.fit=pad", "train.steps=40", "train.precision=bfloat16"]
    assert main.main(["--run-dir", str(path), *FOLDER, *settings]) == 0
    return path


def command(*arguments):
    return predict.main([str(argument) for argument in arguments])


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_on_the_test_set_is_the_runs_and_rows_say_it_all(photos, trained, tmp_path, capsys):
    assert command("--run-dir", trained, photos / "test", "--output", tmp_path / "p.csv") == 0
    printed = capsys.readouterr().out
    accuracy = json.loads((trained / "results.json").read_text())["test_accuracy_last"]
    assert f"accuracy {accuracy:.2f}% of 18 files whose class is known, balanced accuracy {accuracy:.2f}%" in printed
    found = rows(tmp_path / "p.csv")
    assert len(found) == 18 and "pictures predicted" in printed
    names = ["'=cmd()", "<b>ß 猫", "lying"]  # what a spreadsheet would compute is text
    for row in found:
        chances = {name: float(row[name]) for name in names}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(chances, key=chances.get) and float(row["confidence"]) == max(chances.values())
        assert row["true_class"].strip("'") == row["path"].split("/")[-2]
    right = [row["class"] == row["true_class"] for row in found]
    assert 100 * sum(right) / 18 == pytest.approx(accuracy)


def test_the_model_file_needs_no_run_and_says_the_same(photos, trained, tmp_path):
    shutil.copy(trained / "model.safetensors", tmp_path / "moved.safetensors")
    assert command("--run-dir", trained, photos / "test", "--output", tmp_path / "a.csv") == 0
    assert command("--model", tmp_path / "moved.safetensors", photos / "test", "--output", tmp_path / "b.csv") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert load_model(tmp_path / "moved.safetensors").classes == sorted(CLASSES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(path.read_bytes()[:3000] + b"\x00\x01" + path.read_bytes()[3002:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: shutil.copy(sorted((path.parent / "checkpoints").iterdir())[-1], path),
    ],
    ids=["cut", "altered", "empty", "gone", "a checkpoint"],
)
def test_a_model_file_that_is_none_is_one_line(photos, trained, tmp_path, capsys, spoil):
    shutil.copytree(trained, tmp_path / "run")
    spoil(tmp_path / "run" / "model.safetensors")
    assert (
        command("--model", tmp_path / "run" / "model.safetensors", photos / "test", "--output", tmp_path / "p.csv") == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "model.safetensors" in error
    assert not (tmp_path / "p.csv").exists()


def test_best_is_the_best_by_validation(trained, tmp_path, photos, capsys):
    results = json.loads((trained / "results.json").read_text())
    step = results["best_validation"]["step"]
    best = load_model(trained, best=True)
    from mixmatch.files import load_tensors

    tensors, _ = load_tensors(trained / "checkpoints" / f"step-{step:08d}.safetensors")
    assert torch.equal(best.network.dense.weight, tensors["ema.dense.weight"])
    assert command("--run-dir", trained, photos / "test", "--best", "--output", tmp_path / "p.csv") == 0
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / f"step-{step:08d}.safetensors").write_bytes(b"")
    if step != 40:
        assert command("--run-dir", tmp_path / "run", photos / "test", "--best", "--output", tmp_path / "q.csv") == 2
        assert "cannot be read" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_rows_and_the_others_are_done(photos, trained, tmp_path, capsys):
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    pattern(0, 1).save(new / "good.png")
    (new / "sub" / "bad.png").write_text("no picture")
    (new / "sub" / "Thumbs.db").write_text("litter")
    os.mkfifo(new / "pipe.png")
    os.symlink(new / "nowhere", new / "dangling.png")
    os.symlink(new, new / "sub" / "circle")
    odd = os.fsencode(new) + b"/\xff=cmd().png"
    pattern(1, 2).save(new / "x.png")
    os.rename(os.fsencode(new / "x.png"), odd)
    pattern(1, 2).save(new / "line\nbreak.png", "TIFF", save_all=True, append_images=[pattern(2, 2)])
    os.chdir(new)
    try:
        pattern(2, 3).save("=1+1.png")
        assert command("--run-dir", trained, new, "=1+1.png", "--output", tmp_path / "p.csv") == 0
    finally:
        os.chdir(ROOT)
    found = rows(tmp_path / "p.csv")
    problems = {row["path"].split("/")[-1]: row["problem"] for row in found if row["problem"]}
    assert set(problems) == {"bad.png", "pipe.png", "dangling.png"} and "is no file" in problems["pipe.png"]
    assert len(found) == 8 and [row["path"] for row in found][-1] == "./=1+1.png"
    assert any("\\udcff=cmd().png" in row["path"] for row in found)
    printed = capsys.readouterr().out
    assert "3 of 8 files could not be read" in printed and "of which the first was used: 1" in printed
    (new / "sub" / "circle").unlink()
    assert command("--run-dir", trained, new / "sub", "--output", tmp_path / "q.csv") == 2
    assert "no picture could be read" in capsys.readouterr().err
    assert rows(tmp_path / "q.csv")[0]["problem"]


def test_a_class_is_read_from_folders_below_the_one_given_not_above_it(photos, trained, tmp_path, capsys):
    assert command("--run-dir", trained, photos / "test" / "lying", "--output", tmp_path / "p.csv") == 0
    assert {row["true_class"] for row in rows(tmp_path / "p.csv")} == {""}
    assert "accuracy" not in capsys.readouterr().out


def test_the_sheet_is_one_page_least_certain_first_and_runs_nothing(photos, trained, tmp_path):
    shutil.copytree(photos / "test", tmp_path / "test")
    (tmp_path / "test" / "lying" / '"><script>alert(1)<').mkdir()
    pattern(0, 1).save(tmp_path / "test" / "lying" / '"><script>alert(1)<' / "x.png")
    arguments = [
        "--run-dir",
        trained,
        tmp_path / "test",
        "--output",
        tmp_path / "p.csv",
        "--html",
        tmp_path / "sheet.html",
    ]
    assert command(*arguments) == 0
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "The 19 least certain of 19 pictures" in page and page.count("data:image/png;base64,") == 19
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;ß 猫" in page and "http" not in page
    order = sorted(rows(tmp_path / "p.csv"), key=lambda row: float(row["confidence"]))
    places = [
        page.index(f'title="{row["path"]}"') for row in order if "script" not in row["path"] and "<" not in row["path"]
    ]
    assert places == sorted(places)
    assert command(*arguments, "--html-size", 5) == 0
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "The 5 least certain of 19" in page and page.count("<figure") == 5


def test_sorting_copies_and_never_overwrites(photos, trained, tmp_path):
    source = photos / "unlabeled"
    for _ in range(2):
        assert (
            command(
                "--run-dir", trained, source, "--output", tmp_path / "p.csv", "--copy-by-class", tmp_path / "sorted"
            )
            == 0
        )
    copies = [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    assert len(copies) == 40 and len(list(source.iterdir())) == 20
    for row in rows(tmp_path / "p.csv"):
        folder = tmp_path / "sorted" / row["class"].strip("'")
        name = row["path"].split("/")[-1]
        twice = [folder / name, folder / name.replace(".jpg", "-2.jpg")]
        assert [path.read_bytes() for path in twice] == [(source / name).read_bytes()] * 2


def test_onnx_computes_what_the_network_does(trained, photos, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert command("--run-dir", trained, "--export", tmp_path / "m.onnx") == 0
    model = load_model(trained)
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of the arguments --run-dir --model is required"),
        (["--run-dir", "nowhere", "PHOTOS"], "nowhere: is no run directory"),
        (["--run-dir", "RUN"], "no pictures are given"),
        (["--run-dir", "RUN", "nowhere.png"], "nowhere.png: is not there"),
        (["--run-dir", "RUN", "--device", "mps", "PHOTOS"], "device: must be auto, cpu, cuda or cuda:N, got 'mps'"),
        (["--model", "RUN/model.safetensors", "--best", "x"], "--best: is of a run"),
        (["--run-dir", "RUN", "x", "--html-size", "0"], "--html-size: must be 1 or more"),
        (["--run-dir", "RUN", "PHOTOS", "--output", "/nowhere/p.csv"], "/nowhere/p.csv: cannot be written"),
        (["--run-dir", "RUN", "PHOTOS", "--html", "/nowhere/s.html"], "s.html: cannot be written"),
        (["--run-dir", "RUN", "--export", "/nowhere/m.onnx"], "m.onnx: cannot be written"),
        (["--run-dir", "RUN", "PHOTOS", "--output", "x.jpg"], "--output: x.jpg is a picture"),
        (["--run-dir", "RUN", "PHOTOS", "--copy-by-class", "PHOTOS/sorted"], "is inside"),
        (["--run-dir", "RUN", "PHOTOS", "--html", "/dev/null"], "is no regular file; give another name"),
    ],
)
def test_bad_input_is_one_line(trained, photos, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(trained), "PHOTOS": str(photos / "unlabeled")}
    given = [
        names.get(argument, argument.replace("RUN", str(trained)).replace("PHOTOS", names["PHOTOS"]))
        for argument in arguments
    ]
    assert predict.main(given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def as_file(tmp_path, image, name="x.tif", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def gray(values, kind):
    return Image.fromarray(np.array([values] * 4, kind))


@pytest.mark.parametrize(
    "name, image, options, expected",
    [
        ("x.png", gray([0, 30000, 60000, 65535], np.uint16), {}, [0, 117, 233, 255]),
        ("x.tif", gray([0, 30000, 60000, 65535], np.uint16), {}, [0, 117, 233, 255]),
        ("x.tif", gray([0, 1000, 2000, 4095], np.uint16), {"tiffinfo": {281: 4095}}, [0, 62, 125, 255]),
        ("x.tif", gray([0, 0.25, 0.5, 1], np.float32), {}, [0, 64, 128, 255]),
        ("x.tif", gray([0, 100, 200, 255], np.float32), {}, [0, 100, 200, 255]),
        ("x.tif", gray([0, 100, 200, 255], np.int32), {}, [0, 100, 200, 255]),
        ("x.png", gray([0, 100, 200, 255], np.uint8), {}, [0, 100, 200, 255]),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "12 of 16 bits, said", "floats to 1", "floats to 255", "32-bit to 255", "8-bit"],
)
def test_gray_of_any_depth_comes_out_as_bright_as_it_is(tmp_path, name, image, options, expected):
    pixels = decode(as_file(tmp_path, image, name, **options), 4, channels=1).pixels
    assert (pixels[2, :, 0].astype(int) - np.array(expected)).__abs__().max() <= 1


@pytest.mark.parametrize(
    "image",
    [
        gray([0, 1000, 2000, 4095], np.uint16),
        gray([0, 1, 2, 100000], np.int32),
        gray([-1, 0, 0.5, 1], np.float32),
        gray([0, 1, 2, 1e6], np.float32),
        gray([0, 1, 2, np.nan], np.float32),
    ],
    ids=["12 of 16 bits", "32-bit", "negative floats", "large floats", "not a number"],
)
def test_a_range_that_cannot_be_told_is_refused_not_turned_black(tmp_path, image):
    with pytest.raises(Unreadable, match=r"convert it to 8 bits|not finite"):
        decode(as_file(tmp_path, image), 4)


@pytest.mark.parametrize(
    "name, kind, white", [("x.png", np.uint16, 65535), ("x.tif", np.uint16, 65535), ("x.png", np.uint8, 255)]
)
def test_gray_of_any_depth_is_turned_as_its_file_says(tmp_path, name, kind, white):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    pixels = decode(as_file(tmp_path, gray([0, 0, 0, white], kind), name, exif=exif), 4, channels=1).pixels
    assert pixels[2, 0, 0] == 255 and pixels[2, 3, 0] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "HSV"])
def test_every_mode_comes_out_as_pillows_own_conversion(tmp_path, mode, monkeypatch):
    picture = pattern(1, 5, (16, 16)).convert("RGB")
    image = picture.convert("L").convert(mode) if mode in ("LA",) else picture.convert("P" if mode == "PA" else mode)
    if mode == "PA":
        image = image.convert("PA")
    name = {"CMYK": "x.tif", "YCbCr": "x.tif", "HSV": None, "PA": None}.get(mode, "x.png")
    if name is None:
        pytest.skip(f"no format keeps {mode}")
    file = as_file(tmp_path, image, name)
    with Image.open(file) as saved:
        expected = np.asarray(saved.convert("RGB"))
    assert np.array_equal(decode(file, 16).pixels, expected)


def test_shapes_are_cropped_padded_or_stretched(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))
    file = as_file(tmp_path, wide, "wide.png")
    crop, pad, stretch = (decode(file, 30, fit=fit).pixels for fit in ("crop", "pad", "stretch"))
    assert (crop[15, 2:-2] == [255, 0, 0]).all()
    assert (pad[2] == 0).all() and tuple(pad[15, 15]) == (255, 0, 0) and tuple(pad[15, 2]) == (0, 0, 255)
    assert tuple(stretch[1, 15]) == (255, 0, 0) and tuple(stretch[15, 2]) == (0, 0, 255)


def test_a_picture_of_a_billion_pixels_is_refused(tmp_path):
    Image.new("1", (30000, 30000)).save(tmp_path / "x.png")
    with pytest.raises(Unreadable, match=r"too many|exceeds"):
        decode(tmp_path / "x.png", 8)


def test_all_unreadable_files_are_named_at_once_or_left_out(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    for i in range(7):
        (tmp_path / "photos" / "unlabeled" / f"bad{i}.png").write_text("x")
    (tmp_path / "photos" / "test" / "lying" / "bad.jpg").write_text("x")
    (tmp_path / "photos" / "unlabeled" / "Thumbs.db").write_text("x")
    (tmp_path / "photos" / "unlabeled").rename(tmp_path / "photos" / "unlabeled")
    arguments = ["--run-dir", str(tmp_path / "run"), *FOLDER, f"data.root={tmp_path / 'photos'}"]
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert "8 files cannot be read as pictures: " in error and "and 3 more" in error and "Thumbs" not in error
    assert "data.skip_unreadable=true" in error and error.count("\n") == 1
    assert main.main([*arguments, "data.skip_unreadable=true"]) == 0
    printed = capsys.readouterr().out
    assert "note: left out 8 files" in printed and "20 unlabeled" in printed and "18 test images" in printed
    (tmp_path / "photos" / "unlabeled").mkdir()
    assert main.main([*arguments, "--run-dir", str(tmp_path / "other")]) == 2
    assert "put all unlabeled images into one" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_does_not_vanish(tmp_path):
    """Root may read everything, so another user looks, in a child process."""
    folder = tmp_path / "photos" / "closed"
    folder.mkdir(parents=True)
    for place in [tmp_path, *tmp_path.parents][:-2]:
        place.chmod(place.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    folder.chmod(0)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            list(find_images(tmp_path / "photos"))
        except UserError as error:
            code = 0 if "closed: cannot be read (Permission denied)" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    folder.chmod(0o755)


def test_a_million_files_would_be_read_in_bounded_memory(trained, photos, tmp_path):
    """Twenty thousand names of one picture: as much memory as two thousand need."""
    peaks = []
    for count in (2000, 20000):
        folder = tmp_path / str(count)
        folder.mkdir()
        source = next((photos / "unlabeled").iterdir())
        for i in range(count):
            os.link(source, folder / f"{i}.jpg")
        script = "import resource, sys, predict; code = predict.main(sys.argv[1:]); "
        script += "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        arguments = ["--run-dir", str(trained), str(folder), "--output", str(tmp_path / "p.csv")]
        done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
        code, peak = map(int, done.stdout.split("\n")[-2].split())
        assert code == 0
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.2


def test_a_table_that_was_there_stays_until_the_new_one_is_whole(trained, photos, tmp_path, monkeypatch, capsys):
    table = tmp_path / "p.csv"
    table.write_text("mine")
    assert command("--run-dir", trained, tmp_path / "mistyped", "--output", table) == 2
    assert table.read_text() == "mine"

    def interrupted(files, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mixmatch.cli.predictions.predict_files", interrupted)
    assert command("--run-dir", trained, photos / "test", "--output", table) == 130
    assert table.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    monkeypatch.undo()
    os.symlink(table, tmp_path / "link.csv")
    assert (
        command("--run-dir", trained, photos / "test", "--output", tmp_path / "link.csv", "--html", tmp_path / "s.html")
        == 0
    )
    assert (tmp_path / "link.csv").is_symlink() and len(rows(table)) == 18
    done = subprocess.run(
        [sys.executable, "predict.py", "--run-dir", trained, photos / "test", "--output", "/dev/stdout"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().count("/test/") >= 18


def test_a_file_that_vanishes_before_it_is_sorted_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        sort_into(tmp_path / "sorted", "cat", tmp_path / "gone.png")
    assert not list((tmp_path / "sorted" / "cat").iterdir())


def test_predictions_into_a_pipe_that_nobody_reads_any_more_end_silently(trained, photos):
    arguments = [sys.executable, "predict.py", "--run-dir", trained, photos / "test", "--output", "/dev/stdout"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "error" not in process.stderr.read()
    assert process.returncode == 141
