"""What people, other programs and damaged files do to runs: an error is one line, and no result is silently wrong."""

import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from mixmatch.cli import pseudo_label
from mixmatch.cli import train as train_command
from mixmatch.cli.predictions import copy_to_class_folder
from mixmatch.errors import UserError
from mixmatch.files import load_tensors, save_tensors
from tests.helpers import ROOT, SMALL, assert_same_run, run, signal_after
from tests.test_photographs import SETTINGS
from tests.test_photographs import photos as photos
from tests.test_photographs import train as train_photos
from tests.test_predict import make_image

pytestmark = pytest.mark.hostile
STAGE = ["pseudo_label.steps=6", "pseudo_label.select=top"]


def error_line(capsys):
    """The one line on standard error."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(path, "data.num_validation=20") == 0
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def again(copy, *overrides):
    return run(copy, "data.num_validation=20", *overrides)


# Files of a run.


@pytest.mark.parametrize("content", ["", "\xff", '{"test_accuracy": "x"}'])
def test_damaged_results_are_reported_and_can_be_deleted(copy, capsys, content):
    (copy / "results.json").write_bytes(content.encode("latin-1"))
    for command in (lambda: again(copy), lambda: pseudo_label.main(["--run-dir", str(copy), *STAGE])):
        assert command() == 2
        assert "results.json: cannot be read" in error_line(capsys)
    (copy / "results.json").unlink()
    assert again(copy) == 0


@pytest.mark.parametrize("change", [{"step": 11}, {"key_of_another_version": 1}])
def test_a_checkpoint_with_altered_metadata_is_skipped(copy, capsys, change):
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(newest)
    save_tensors(newest, tensors, meta | change)
    (copy / "results.json").unlink()
    assert again(copy) == 0
    assert "using step" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, change",
    [
        ("ema.stem.weight", lambda value: value[:1]),
        ("model.stem.weight", None),
        ("unknown", lambda value: torch.zeros(2)),
        ("optimizer.stem.weight.exp_avg", lambda value: torch.zeros(2)),
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(copy, capsys, name, change):
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(newest)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    save_tensors(newest, tensors, meta)
    (copy / "results.json").unlink()
    assert again(copy) == 2
    assert "the checkpoint at step 12 does not fit" in error_line(capsys)


def test_other_files_among_the_checkpoints_are_ignored(copy):
    shutil.copy(copy / "checkpoints" / "step-00000012.safetensors", copy / "checkpoints" / "step-9999.safetensors")
    (copy / "checkpoints" / "step-00000099").write_text("x")
    assert again(copy, "train.steps=14") == 0


def test_a_finished_run_without_checkpoints_does_not_start_again(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "results.json").read_bytes()
    assert again(copy, "train.steps=20") == 2
    assert "is finished, but has no checkpoint to continue" in error_line(capsys)
    assert (copy / "results.json").read_bytes() == before


# Commands in another order, or with other settings.


def test_a_pseudo_label_stage_keeps_its_length(copy, capsys):
    assert pseudo_label.main(["--run-dir", str(copy), *STAGE]) == 0
    capsys.readouterr()
    assert train_command.main(["--run-dir", str(copy.with_name("run-top-0.1")), "train.steps=30"]) == 2
    assert "of a pseudo-label stage cannot be changed" in error_line(capsys)


def test_a_start_that_failed_does_not_block_the_corrected_command(tmp_path):
    assert run(tmp_path / "run", "train.lr=1e5") == 1
    assert run(tmp_path / "run", "train.lr=0.002") == 0
    assert run(tmp_path / "other") == 0
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_the_run_directory_alone_restarts_a_run_killed_before_its_first_checkpoint(tmp_path):
    path, script = (
        tmp_path / "run",
        (
            "import os, signal\nfrom mixmatch.cli.train import main\nfrom mixmatch.training.trainer import Trainer\n"
            "Trainer.train_step = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"main(['--run-dir', {str(tmp_path / 'run')!r}, *{SMALL!r}, 'seed=3'])"
        ),
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    before = {name: (path / name).read_bytes() for name in ("config.yml", "split.json", "images.json")}
    for refused in (["--check", "seed=4"], ["seed=4", "data.num_labeled=7"]):  # neither writes to the run
        train_command.main(["--run-dir", str(path), *SMALL, *refused])
        assert {name: (path / name).read_bytes() for name in before} == before
    assert train_command.main(["--run-dir", str(path)]) == 0
    assert run(tmp_path / "other", "seed=3") == 0
    assert_same_run(path, tmp_path / "other")


def test_a_run_that_was_to_be_longer_is_finished_at_its_old_length(copy):
    config = (copy / "config.yml").read_text()
    longer = config.replace("steps: 12\n", "steps: 24\n", 1).replace("eval_every: 6\n", "eval_every: 7\n", 1)
    assert longer.count("7\n") > config.count("7\n")
    (copy / "config.yml").write_text(longer)
    assert again(copy) == 0
    assert (copy / "config.yml").read_text() == config


def test_a_finished_run_keeps_the_settings_that_it_was_trained_with(copy, capsys):
    config = (copy / "config.yml").read_text()
    assert again(copy, "train.eval_every=3", "train.checkpoint_every=4", "train.patience=9") == 0
    assert (copy / "config.yml").read_text() == config


@pytest.mark.slow
def test_a_run_without_output_trains(tmp_path):
    command = [sys.executable, "main.py", "--run-dir", str(tmp_path / "run"), *SMALL]
    shell = f"exec {shlex.join(command)} <&- >&- 2>&-"  # as a daemon
    assert subprocess.run(["sh", "-c", shell], cwd=ROOT).returncode == 0
    assert (tmp_path / "run" / "results.json").exists()


# Signals.


def test_an_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal_after(monkeypatch, 5, signal.SIGINT)
        assert run(tmp_path / "run") == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("program", ["main.py", "predict.py"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, program):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    command = [sys.executable, program, "--import", str(tmp_path / "slow.py"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 130 and not done.stdout
    assert done.stderr.startswith(b"interrupted; ") and done.stderr.count(b"\n") == 1


# Images.


def test_changed_test_images_are_not_mixed_with_the_former_ones(photos, tmp_path, capsys):
    assert train_photos(photos, tmp_path / "run") == 0
    make_image(0, 99).save(photos / "test" / "cat" / "more.png")
    assert train_photos(photos, tmp_path / "run", "train.steps=14") == 2
    assert "its test images have changed" in error_line(capsys)
    split = f"data.split_file={tmp_path / 'run' / 'split.json'}"  # of which another run may use the training images
    assert train_photos(photos, tmp_path / "next", split) == 0


def test_a_split_file_that_separates_groups_is_refused(photos, tmp_path, capsys):
    assert train_photos(photos, tmp_path / "run", "data.num_validation=4") == 0
    rows = ["file,group", *(f"train/{name}/{i}.png,all" for name in ("cat", "dog") for i in range(6))]
    (photos / "groups.csv").write_text("\n".join(rows))
    split = f"data.split_file={tmp_path / 'run' / 'split.json'}"
    capsys.readouterr()
    assert train_photos(photos, tmp_path / "next", split, "data.labels=groups.csv") == 2
    assert "1 groups, such as 'all'" in error_line(capsys)


def test_a_broken_link_among_photographs_is_ignored(photos, tmp_path):
    os.symlink("/nowhere", photos / "notes.txt")
    assert train_photos(photos, tmp_path / "run") == 0


@pytest.mark.skipif(os.getuid() == 0, reason="root can read everything")
def test_an_unreadable_folder_is_one_line(photos, tmp_path, capsys):
    (photos / "train").chmod(0)
    code = train_photos(photos, tmp_path / "run")
    (photos / "train").chmod(0o755)
    assert code == 2 and "Permission denied" in error_line(capsys)


def test_class_and_file_names_of_any_kind_from_training_to_prediction(tmp_path):
    root, path = tmp_path / "\udcff odd", tmp_path / "run é"
    for number, name in enumerate(["a\nb", "\udce9", "=cmd()", "<script>", "c" * 200, "\x1b[31m"]):
        (root / "train" / name).mkdir(parents=True)
        for i in range(3):
            make_image(number % 3, 10 * number + i).save(root / "train" / name / f"{i}{chr(0xDCE8)}.png")
    shutil.copytree(root / "train", root / "test")
    shutil.copytree(root / "train" / "=cmd()", root / "unlabeled")
    os.symlink(root, tmp_path / "root")

    settings = [*SETTINGS, f"data.root={tmp_path / 'root'}"]
    output = ["--output", tmp_path / "p.csv", "--copy-by-class", tmp_path / "sorted"]
    commands = [
        ("train", [*settings, "--check"]),
        ("train", settings),
        ("pseudo_label", ["pseudo_label.steps=4", "pseudo_label.select=top"]),
        ("predict", [root / "test", *output]),
    ]
    script = "import sys\nfrom mixmatch.cli import predict, pseudo_label, train\n" + "".join(
        f"assert {command}.main({['--run-dir', *map(str, (path, *arguments))]!a}) == 0\n"
        for command, arguments in commands
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.stdout.decode("ascii").replace("\n", "").isprintable()
    assert (path / "results.json").exists() and (tmp_path / "sorted").exists()


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a\\b", ""])
def test_a_class_name_never_leads_out_of_the_folder(tmp_path, name):
    picture = tmp_path / "x.png"
    make_image(0, 1).save(picture)
    with pytest.raises(UserError, match="cannot be a folder name"):
        copy_to_class_folder(tmp_path / "sorted", name, picture)
    assert [path.name for path in tmp_path.rglob("*")] == ["x.png"]


# --check.


def test_check_fails_where_training_would(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    assert train_photos(photos, tmp_path / "file" / "run", "--check") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert train_photos(photos, tmp_path / "run") == 0
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(b"x")
    assert train_photos(photos, tmp_path / "run", "--check") == 2
    assert "all checkpoints are corrupt" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_photos(photos, tmp_path / "run", "--check") == 2
    assert "start it without torchrun" in error_line(capsys)
