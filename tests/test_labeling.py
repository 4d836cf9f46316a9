"""Labeling by hand: which pictures are chosen, the page, and the round trip in a real browser."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mixmatch.cli import label, pseudo_label, train
from mixmatch.config import load_config
from mixmatch.data.folder.index import FolderIndex, index_folder
from mixmatch.labeling.choose import CANDIDATES, CHOICES, choose
from mixmatch.labeling.selection import index_pictures, select_pictures
from mixmatch.labeling.wrong_labels import predict_out_of_fold
from tests.helpers import FUZZ, ROOT, SMALL

CLASSES = ('<b>&"ß', "=1", "猫")
COLORS = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]
SETTINGS = [setting for setting in SMALL if not setting.startswith("data.")]
SETTINGS += ["data.dataset=folder", "data.num_labeled=all", "data.image_size=12"]


def make_photos(root, num_unlabeled=60):
    """Photographs of three plain colors: 3 labeled, 1 for validation and 2 for testing of each class."""
    rng = np.random.default_rng(0)

    def save(file, number):
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.array(COLORS[number]) + rng.normal(0, 25, (20, 30, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(file)

    for number, name in enumerate(CLASSES):
        for part, count in (("train", 3), ("val", 1), ("test", 2)):
            for i in range(count):
                save(root / part / name / f"{part}{i}.png", number)
    for i in range(num_unlabeled):
        name = {0: "=cmd().png", 1: 'a,"b".png', 2: "</script><script>alert(1).png"}.get(i, f"{i}.png")
        save(root / "unlabeled" / name.replace("/", "") / f"{i % 3}-{name.replace('/', '')}", i % 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labeling")
    make_photos(folder / "photos")
    run, root = folder / "runs" / "first", folder / "photos"
    assert train.main(["--run-dir", str(run), *SETTINGS, f"data.root={root}", "train.steps=60", "train.lr=0.01"]) == 0
    return folder


def write_page(trained, page, *arguments):
    assert label.main([str(trained / "runs" / "first"), "--output", str(page), *map(str, arguments)]) == 0
    return read_page(page)


def read_page(page):
    text = page.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert text.count("<script") == 2 and "http" not in text
    return json.loads(data)


def write_page_of(run, root, page, count):
    """The page of a copy of the run's photographs."""
    config = (run / "config.yml").read_text()
    copy = page.with_name("run")
    if not copy.exists():
        shutil.copytree(run, copy)
        (copy / "config.yml").write_text(re.sub(r"root: .*", f"root: {root}", config))
    assert label.main([str(copy), "--output", str(page), "--count", str(count)]) == 0


@FUZZ
@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 12), st.sampled_from(CHOICES), st.integers(0, 99))
def test_any_choice_is_of_distinct_pictures(n, num_classes, count, how, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_classes), n)
    chosen = choose(probabilities, rng.normal(size=(n, 4)), count, how).tolist()
    assert len(chosen) == len({*chosen}) == min(n, count) and {*chosen} <= {*range(n)}
    top = np.sort(probabilities, axis=1)[:, ::-1]
    margins, confidences = top[:, 0] - top[:, 1], top[:, 0]
    if how == "uncertain":
        assert confidences[chosen].tolist() == sorted(confidences)[: len(chosen)]
    if how == "margin":
        assert margins[chosen].tolist() == sorted(margins)[: len(chosen)]
    if how == "mixed":
        assert {*margins[chosen]} <= {*sorted(margins)[: CANDIDATES * count]}


def test_diverse_pictures_are_from_each_cluster():
    rng = np.random.default_rng(0)
    centers = np.eye(4) * 50
    features = np.concatenate([center + rng.normal(size=(30, 4)) for center in centers])
    probabilities = rng.dirichlet(np.ones(3), 120)
    assert sorted(choose(probabilities, features, 4, "diverse") // 30) == [0, 1, 2, 3]
    random = [tuple(choose(probabilities, features, 20, "random", seed)) for seed in (1, 1, 2)]
    assert random[0] == random[1] != random[2]


def test_wrong_labels_are_contradicted_by_the_others():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 20)
    features = np.eye(3)[truth] * 4 + rng.normal(size=(60, 3))
    labels, flipped = truth.copy() * 10, [3, 25, 47]
    labels[flipped] = (labels[flipped] + 10) % 30
    probabilities = predict_out_of_fold(features, labels)
    doubts = probabilities[np.arange(60), labels // 10]
    assert {*np.argsort(doubts)[:3]} == {*flipped}
    assert predict_out_of_fold(features[:3], np.array([0, 0, 1])) is None
    assert predict_out_of_fold(features[:3], np.array([0, 0, 0])) is None


def test_the_most_contradicted_labels_come_first():
    rng, truth, flipped = np.random.default_rng(0), np.repeat(np.arange(3), 20), [3, 25, 47]
    features = np.eye(3)[truth] * 4 + rng.normal(size=(60, 3))
    labels = truth.copy()
    labels[flipped] = (labels[flipped] + 1) % 3
    points = torch.from_numpy(np.concatenate([features, 9 * np.eye(3)]))
    dense = torch.nn.Linear(3, 3, bias=False).double().requires_grad_(False)
    dense.weight.copy_(torch.eye(3))
    model = SimpleNamespace(classes=["a", "b", "c"], embed=lambda images: points, network=SimpleNamespace(dense=dense))
    names = [f"{number}.png" for number in range(63)]  # the last three are unlabeled
    labels_of_all = [*labels.tolist(), -1, -1, -1]
    index = FolderIndex(Path(), model.classes, [*map(Path, names)], names, labels_of_all, [""] * 63, 63)
    selection = select_pictures(model, index, range(63), None, 60, "margin")
    asked, review = selection.items[:3], selection.items[3:]
    assert {item.path: item.guess for item in asked} == {"60.png": 0, "61.png": 1, "62.png": 2}
    assert {item.path for item in review[:3]} == {f"{number}.png" for number in flipped}
    assert selection.num_contradicted == sum(item.guess != item.label for item in review)


@pytest.mark.slow
def test_the_page_has_what_is_to_be_labeled_and_all_labels(trained, tmp_path, capsys):
    data = write_page(trained, tmp_path / "label.html", "--count", 20)
    root, run = trained / "photos", trained / "runs" / "first"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{tmp_path / 'label.html'}: 20 of 60 unlabeled pictures, 9 labeled ones to review (")
    assert printed[2] == f"2. Move labels.csv to {root}."
    assert f"--config {run / 'config.yml'} data.root={root} data.labels=labels.csv init_from={run} " in printed[3]
    assert data["classes"] == sorted(CLASSES)
    asked = [item for item in data["items"] if item["label"] is None]
    assert len(asked) == 20 and all(item["file"].startswith("unlabeled/") for item in asked)
    labeled = {item["file"]: data["classes"][item["label"]] for item in data["items"] if item["label"] is not None}
    labels = labeled | {path: name for path, name, _ in data["rows"]}
    assert labels == {f"{part}/{name}/{part}{i}.png": name for part, count in (("train", 3), ("val", 1), ("test", 2))
                      for name in CLASSES for i in range(count)}  # fmt: skip
    for item in data["items"]:
        assert 0 <= item["guess"] < 3 and 0 < item["confidence"] <= 1
    # The next page has what was labeled as labels.
    rows = [["file", "class"], *labels.items(), *([item["file"], "猫"] for item in asked)]
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    try:
        again = write_page(trained, tmp_path / "again.html", "--count", 100, "--choose", "margin")
        assert sum(item["label"] is None for item in again["items"]) == 40 and again["page"] != data["page"]
        assert "it replaces the one there, whose labels it has" in capsys.readouterr().out
    finally:
        (root / "labels.csv").unlink()


@pytest.mark.parametrize(
    ("settings", "num_validation", "num_test", "here", "elsewhere"),
    [
        ([], 0, 0, "init_from=RUN", "init_from=RUN"),
        ([], 2, 5, "init_from=RUN", "init_from=RUN"),
        (["data.num_labeled=30", "init_from=OLD"], 0, 0, "data.num_labeled=all init_from=RUN", None),
        (["data.split_file=split.json"], 0, 0, "data.split_file=null init_from=RUN", None),
        # With more labels, images are sampled for validation on which the run may have trained.
        (["data.num_validation=auto"], 0, 0, "", ""),
        (["data.num_validation=auto"], 2, 0, "init_from=RUN", "init_from=RUN"),
        (["data.num_validation=auto", "init_from=OLD"], 0, 0, "init_from=null", "init_from=null"),
        (["data.num_test=0.2"], 0, 0, "", ""),
        # A folder that has what the run sampled, or not so many.
        (["data.num_test=0.2"], 0, 5, "data.num_test=0", "data.num_test=0"),
        (["data.num_validation=3"], 0, 0, "", "data.num_validation=auto"),
        (["data.num_validation=3"], 2, 0, *["data.num_validation=auto init_from=RUN"] * 2),
        (["data.num_validation=3", "train.patience=9"], 0, 0, "", "data.num_validation=auto train.patience=null"),
    ],
)
def test_the_next_run_changes_what_no_longer_fits(tmp_path, settings, num_validation, num_test, here, elsewhere):
    settings = ["data.dataset=folder", f"data.root={tmp_path}", "data.num_labeled=all", *settings]
    files = [Path("x")] * (10 + num_validation + num_test)
    index = FolderIndex(tmp_path, files=files, num_train=10 + num_validation, num_validation=num_validation)
    for root, expected in ((tmp_path, here), (tmp_path / "other", elsewhere)):
        found = label.next_settings(load_config(None, settings), Path("RUN"), 12, root, index)
        assert found[:2] == [f"data.root={root}", "data.labels=labels.csv"]
        assert expected is None or found[2:] == expected.split()


def test_the_run_after_one_on_another_data_set(tmp_path):
    config = load_config("digits", ["data.num_labeled=20"])
    found = label.next_settings(config, Path("RUN"), 8, tmp_path, FolderIndex(tmp_path))
    changed = ["data.dataset=folder", "data.image_size=8", "data.num_labeled=all", "data.num_validation=auto"]
    assert found[2:] == [*changed, "init_from=RUN"]


@pytest.mark.slow
def test_the_printed_command_names_the_run_and_what_it_needs(trained, tmp_path, capsys):
    run, root = trained / "runs" / "first", trained / "photos"

    def command_of(run, *arguments):
        assert label.main([str(run), "--output", str(tmp_path / "label.html"), *arguments]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("3. "))

    plugin, damaged = tmp_path / "plugin.py", tmp_path / "photos"
    plugin.write_text("")
    assert command_of(run, "--import", str(plugin)).endswith(f"name=first-labeled --import {plugin}")
    shutil.copytree(root, damaged)
    (damaged / "unlabeled" / "broken.png").write_text("")
    assert "data.skip_unreadable=true" in command_of(run, str(damaged))
    stage = tmp_path / "stage"
    assert pseudo_label.main(["--run-dir", str(run), "--output-dir", str(stage), "pseudo_label.steps=2"]) == 0
    assert command_of(stage).startswith(f"3. Train the run that {stage} continued, with data.root={root} ")


def test_a_run_that_is_labeled_again_gets_another_name(tmp_path):
    config, newest = load_config(None, ["method=softmatch", "name=x"]), tmp_path / "x-softmatch-seed1"
    for expected in ("x-labeled", "x-labeled-2", "x-labeled-3"):
        assert label.free_name(config, newest) == expected
        config = config.model_copy(update={"name": expected})
        newest = tmp_path / config.run_name()
        newest.mkdir()
    assert label.free_name(config.model_copy(update={"name": None}), tmp_path / "grün 1-seed1") == "gr-n-1-labeled"


@pytest.mark.slow
def test_groups_and_single_labels_are_kept(trained, tmp_path):
    folder = tmp_path / "new"
    shutil.copytree(trained / "photos" / "unlabeled", folder)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png") if path.is_file())
    classes = {5: "x", 7: "x", 8: "y", 9: "z", 10: "z"}
    rows = [["file", "class", "group"], [paths[6], "", "a"]]
    rows += [[paths[number], name, "a" if number == 5 else ""] for number, name in classes.items()]
    # One class alone, one label alone: these cannot be predicted from others, and are not on the page.
    for count, expected in ((4, {5: "x", 7: "x"}), (5, {5: "x", 7: "x", 8: "y"}), (7, {8: "y"})):
        with open(folder / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows[:count])
        data = write_page(trained, tmp_path / "label.html", folder, "--count", 5)
        groups = {item["file"]: item["group"] for item in data["items"]} | {
            path: group for path, _, group in data["rows"]
        }
        assert groups[paths[5]] == groups[paths[6]] == "a"
        off_page = {path: name for path, name, _ in data["rows"] if name}
        assert off_page == {paths[number]: name for number, name in expected.items()}


def test_a_newer_labels_file_is_used_with_a_note(trained, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(trained / "photos", root)
    (root / "corrected.csv").write_text("file,class\ntrain/=1/train0.png,a\ntrain/=1/train1.png,b\n")
    assert index_pictures(root, "corrected.csv").classes == ["a", "b"]
    shutil.copy(root / "corrected.csv", root / "labels.csv")
    assert not index_pictures(root, "labels.csv").notes and not index_pictures(root).notes
    (note,) = index_pictures(root, "corrected.csv").notes
    assert "is used, not data.labels=corrected.csv; move it away" in note


@pytest.mark.slow
def test_pictures_of_another_folder(trained, tmp_path):
    folder = tmp_path / "new"
    shutil.copytree(trained / "photos" / "unlabeled", folder / "a")
    (folder / "a" / "broken.png").write_text("no picture")
    data = write_page(trained, tmp_path / "label.html", folder)
    assert len(data["items"]) == 60 and not data["rows"]
    assert all((tmp_path / unquote(item["url"])).exists() for item in data["items"])
    # A folder that is laid out for training keeps its labels, and its test images are not labeled.
    data = write_page(trained, tmp_path / "label.html", trained / "photos", "--count", 100)
    asked = [item["file"] for item in data["items"] if item["label"] is None]
    assert len(asked) == 60 and all(path.startswith("unlabeled/") for path in asked)
    assert len(data["rows"]) + len(data["items"]) == 60 + 3 * (3 + 1 + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ("RUN --count 0", "--count: must be 1 or more, got 0"),
        ("RUN --output page.txt", "--output: writes an HTML file, page.txt must end in .html"),
        ("RUN --choose best", "argument --choose: invalid choice: 'best'"),
        ("RUN --output /nowhere/p.html", "--output: the folder of /nowhere/p.html does not exist"),
        ("RUN nowhere", "nowhere: does not exist"),
        ("RUN UNLABELED", "unlabeled: is part of"),
        ("nowhere", "nowhere: not a run directory"),
        ("DIGITS", "was not trained on a folder of pictures; give a FOLDER"),
        ("MOVED", "gone: the run's pictures are not there; start where it was trained, or give a FOLDER"),
        ("RUN full", "full: has no pictures to label; give another folder"),
        ("RUN surrogate", "its name is not UTF-8, as a labels file must be; rename it"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "surrogate").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "surrogate" / f"{chr(0xDCE8)}.png")
    moved = tmp_path / "moved"
    shutil.copytree(trained / "runs" / "first", moved)
    (moved / "config.yml").write_text(re.sub(r"root: .*", "root: gone", (moved / "config.yml").read_text()))
    digits = tmp_path / "digits"
    digits.mkdir()
    (digits / "config.yml").write_text("data: {dataset: digits}")
    arguments = (
        arguments.replace("MOVED", str(moved))
        .replace("DIGITS", str(digits))
        .replace("UNLABELED", str(trained / "photos" / "unlabeled"))
        .replace("RUN", str(trained / "runs" / "first"))
    )
    assert label.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_pictures_are_known_by_their_names_from_the_first_call_on():
    script = "from mixmatch.data.folder.index import picture_suffixes as f; print(*sorted(f())); print(*sorted(f()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first == second and {".jpg", ".mpo", ".png", ".tif", ".webp"} <= {*first} and ".pdf" not in first


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if None in paths:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    try:
        driver.set_window_size(1280, 900)
        yield driver
        assert not [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]]
    finally:
        driver.quit()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_pictures_are_labeled_by_keyboard_in_a_browser_and_trained_with(trained, tmp_path, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    root, run = tmp_path / "photos", trained / "runs" / "first"
    shutil.copytree(trained / "photos", root)
    write_page_of(run, root, tmp_path / "label.html", 55)
    browser.get((tmp_path / "label.html").as_uri())

    def press(*keys):
        for key in keys:
            ActionChains(browser).send_keys(key).perform()

    def text(element):
        return browser.find_element("id", element).text

    def name():
        return text("name")

    names = json.loads(browser.execute_script("return JSON.stringify(classes())"))
    keys = dict(zip(names, browser.execute_script("return keys()"), strict=True))
    assert keys["=1"] == "2" and [*keys.values()] == ["1", "2", "3"]
    given = {}
    for _ in range(50):
        true = CLASSES[int(name().split("/")[-1][0])]
        given[name()] = true
        press(Keys.ENTER if text("guess").startswith(true) else keys[true])
    assert text("counts") == "50 of 55 done"
    browser.refresh()
    assert text("counts") == "50 of 55 done"  # kept by the browser
    write_page_of(run, root, tmp_path / "label.html", 60)
    browser.refresh()
    assert text("counts") == "50 of 60 done"  # also if the page is written again
    write_page_of(run, root, tmp_path / "label.html", 55)
    browser.refresh()
    repeated = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true, bubbles: true}))"
    browser.execute_script(repeated)  # a key that is held
    assert text("counts") == "50 of 55 done"
    press("/", "=", Keys.ESCAPE, "/", Keys.ENTER)  # nothing was searched: nothing is labeled
    assert text("counts") == "50 of 55 done"
    browser.execute_script(f"state.history.push(['{[*given][-1]}', null, false])")
    last = [*given][-1]
    press(Keys.BACKSPACE)
    assert name() == last and text("counts") == "49 of 55 done"
    press(keys[given[last]])
    skipped = name()
    press(Keys.ARROW_RIGHT)
    assert name() != skipped and text("counts") == "50 of 55 done, 1 skipped"
    none = name()
    press("-")
    other = name()
    press("+")
    prompt = browser.switch_to.alert
    prompt.send_keys("dog, small")
    prompt.accept()
    press("+")
    prompt = browser.switch_to.alert
    prompt.send_keys("Unlabeled")  # would be read as no class
    prompt.accept()
    browser.switch_to.alert.accept()
    assert text("counts") == "52 of 55 done, 1 skipped"
    press(" ")
    assert browser.find_element("id", "full").is_displayed()
    assert browser.execute_script("return document.getElementById('full-image').naturalWidth") == 30  # the original
    press(Keys.ESCAPE)

    # Review: a class at a time. An existing label is changed there.
    browser.find_element("id", "view").click()
    tiles = browser.find_elements("css selector", "#grid button")
    assert len(tiles) == 9 + 51 and text("review-count").startswith("60 pictures")
    first = next(
        tile for tile in tiles if tile.find_element("tag name", "img").get_attribute("alt").startswith("train/=1")
    )
    changed = first.find_element("tag name", "img").get_attribute("alt")
    first.click()
    assert name() == changed
    press(keys["猫"])
    assert browser.find_element("id", "grid").is_displayed()  # back in the review
    write_page_of(run, root, tmp_path / "label.html", 60)
    browser.refresh()
    write_page_of(run, root, tmp_path / "label.html", 55)
    browser.refresh()
    assert browser.execute_script("return state.labels[arguments[0]]", changed) == "猫"  # not saved yet

    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    saved = tmp_path / "downloads" / "labels.csv"
    for _ in range(100):
        if saved.exists():
            break
        time.sleep(0.1)
    shutil.copy(saved, root / "labels.csv")
    index = index_folder(root, "labels.csv")
    assert not index.problems and index.classes == sorted([*CLASSES, "dog, small"])
    read = {path: index.classes[number] for path, number in zip(index.paths, index.labels, strict=True) if number >= 0}
    assert {path: read[path] for path in given} == given
    assert read[changed] == "猫" and read[other] == "dog, small" and not {skipped, none} & read.keys()
    assert len(read) == 50 + 1 + 18 and index.num_validation == 3
    command = ["--config", run / "config.yml", "--run-dir", tmp_path / "second", f"data.root={root}"]
    command += ["data.labels=labels.csv", f"init_from={run}"]
    assert train.main([*map(str, command)]) == 0

    # A second file that was not moved: its labels are kept.
    kept = json.loads(browser.execute_script("return JSON.stringify(state)"))
    extra = next(item for item in browser.execute_script("return asked.map((i) => items[i].file)") if item not in given)
    browser.execute_script("state.labels[arguments[0]] = arguments[1]; save()", extra, "=1")
    write_page_of(run, root, tmp_path / "label.html", 55)
    browser.refresh()
    assert browser.execute_script("return state.labels[arguments[0]]", extra) == "=1"
    browser.execute_script("state = arguments[0]; keep()", kept)

    # The labels file is in its folder: for what was saved, it counts from now on.
    lines = saved.read_text().splitlines()
    corrected, removed, last = [*given][:3]
    lines = [line for line in lines if not line.startswith((corrected, removed))]
    (root / "labels.csv").write_text("\n".join([*lines, f"{corrected},{'猫' if given[corrected] == '=1' else '=1'}"]))
    other_label = next(name for name in CLASSES if name != given[last])
    browser.execute_script("state.labels[arguments[0]] = arguments[1]; keep()", last, other_label)
    write_page_of(run, root, tmp_path / "label.html", 55)
    browser.refresh()
    assert browser.execute_script("return state.labels") == {last: other_label, none: ""}  # not saved; none of these

    # Two tabs, and a filter without a number.
    first_tab = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get((tmp_path / "label.html").as_uri())
    press(keys["猫"])
    browser.switch_to.window(first_tab)
    press("-")
    browser.refresh()
    assert browser.execute_script("return Object.keys(state.labels).length") == 2 + 2
    page, older = tmp_path / "label.html", tmp_path / "older.html"
    shutil.copy(page, older)  # a tab with the page from before
    browser.switch_to.new_window("tab")
    browser.get(older.as_uri())
    browser.switch_to.window(first_tab)
    write_page_of(run, root, page, 55)
    browser.refresh()
    browser.execute_script("state.labels['new'] = '=1'; keep()")
    browser.switch_to.window(browser.window_handles[-1])
    browser.execute_script("keep()")
    browser.switch_to.window(first_tab)
    browser.refresh()
    assert browser.execute_script("return state.labels['new']") == "=1"
    browser.execute_script("delete state.labels['new']; keep()")
    # Another picture under the name of one that was labeled.
    labels = browser.execute_script("keep(); return state.labels")
    replaced = next(file for file in labels if (root / file).exists())
    Image.new("RGB", (31, 29)).save(root / replaced)
    write_page_of(run, root, page, 55)
    browser.refresh()
    others = {file: name for file, name in labels.items() if file != replaced}
    assert browser.execute_script("return [state.labels, state.history]") == [others, []]
    browser.switch_to.window(browser.window_handles[-1])  # whose page has the former picture
    assert replaced in browser.execute_script("keep(); return state.labels")
    browser.switch_to.window(first_tab)
    assert replaced not in browser.execute_script("return state.labels")
    browser.refresh()
    assert replaced not in browser.execute_script("return state.labels")
    browser.execute_script("document.getElementById('by-confidence').value = ''")
    assert browser.execute_script("return matches(0)")

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
