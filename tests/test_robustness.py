"""What people, other programs and hostile files do to runs: nothing silently wrong, no traceback, no hang."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import torch

import main
import predict
import pseudo_label
import reproduce.command
from mixmatch.cli.predictions import sort_into
from mixmatch.data import load_data
from mixmatch.errors import UserError
from mixmatch.files import load_tensors, save_tensors
from mixmatch.training.trainer import Trainer
from tests.helpers import ROOT, SMALL, assert_same_run, at_step, final, run, signal_after
from tests.test_photographs import SETTINGS, pattern
from tests.test_photographs import photos as photos
from tests.test_photographs import train as train_photos

ROUND = ["pseudo_label.steps=6", "pseudo_label.select=top"]


def single_line(capsys):
    """What was said on standard error: one line, without a traceback."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    return lines[0]


def remove(folder):
    """Remove `folder`; again where the run's own threads wrote to it meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_run_writes_nothing_to_another_at_its_former_path(tmp_path, monkeypatch, capsys, how):
    path, former = tmp_path / "run", tmp_path / "former"
    assert run(tmp_path / "other", "seed=2") == 0

    def take_over():
        path.rename(former) if how == "moved" else remove(path)
        shutil.copytree(tmp_path / "other", path)

    at_step(monkeypatch, 9, take_over)
    assert run(path) == 2
    said = single_line(capsys)
    # A checkpoint may be in writing while the folder is removed under it, before the run looks whose folder it is.
    in_writing = how == "removed" and "cannot be written (No such file or directory)" in said
    assert "is no longer the folder of this run" in said or in_writing
    monkeypatch.undo()
    assert_same_run(path, tmp_path / "other")
    if how == "moved":  # and what was moved goes on as if nothing had been
        assert run(former) == 0
        assert run(tmp_path / "whole") == 0
        assert_same_run(former, tmp_path / "whole")


def test_a_run_whose_folder_is_gone_ends_in_a_line(tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, 9, lambda: remove(tmp_path / "run"))
    assert run(tmp_path / "run") == 2
    single_line(capsys)
    assert not (tmp_path / "run").exists()


RESULTS = [
    "[]",
    "null",
    "{}",
    "[" * 100000,
    "\xff",
    '{"test_accuracy": "x"}',
    lambda good: json.dumps(good | {"pseudo_label": 3}),
    lambda good: json.dumps(good | {"pseudo_label": None}),
    lambda good: json.dumps(good | {"test_accuracy_last": None}),
    lambda good: json.dumps(good | {"steps": "12"}),
    lambda good: json.dumps(good | {"best_validation": {"step": 6}}),
    lambda good: json.dumps(good | {"seconds": float("nan")}),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(path, "data.num_validation=20") == 0
    return path


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("content", RESULTS)
def test_results_of_any_shape(copy, capsys, content):
    file = copy / "results.json"
    text = content if isinstance(content, str) else content(json.loads(file.read_text()))
    file.write_bytes(text.encode("latin-1"))
    for command in (
        lambda: run(copy, "data.num_validation=20"),
        lambda: pseudo_label.main(["--run-dir", str(copy), *ROUND]),
        lambda: reproduce.command.main(["--compare", str(copy)]),
    ):
        assert command() == 2
        single_line(capsys)
    file.unlink()
    assert run(copy, "data.num_validation=20") == 0


METAS = [
    {},
    {"step": -5},
    {"step": 60.5},
    {"step": 2**63},
    {"step": "12"},
    {"step": 11},
    {"start": 13},
    {"history": 3},
    {"history": [3]},
    {"history": [{"step": 6}]},
    {"history": [{"step": 6, "validation_accuracy": "x", "test_accuracy": None}]},
    {"history": [{"step": 6, "validation_accuracy": 1e9, "test_accuracy": None}]},
    {"seconds": "x"},
    {"events_size": -1},
    {"hooks": 3},
    {"selections": 5},
]


@pytest.mark.parametrize("change", METAS)
def test_a_checkpoint_whose_meta_was_altered_is_passed_over(copy, capsys, change):
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(newest)
    save_tensors(newest, tensors, meta | change if change else {})
    (copy / "results.json").unlink()
    code = run(copy, "data.num_validation=20")
    printed = capsys.readouterr()
    assert code == 0 and "going on from step" in printed.out and "Traceback" not in printed.err


@pytest.mark.parametrize("meta", ["null", "[]", "3", '"x"', "{" * 5000, "nonsense"])
def test_a_checkpoint_whose_meta_is_none_is_passed_over(copy, capsys, meta):
    from safetensors.torch import save_file

    from mixmatch.files import _checksum

    newest = sorted((copy / "checkpoints").iterdir())[-1]
    tensors, _ = load_tensors(newest)
    save_file(tensors, newest, {"version": "1", "meta": meta, "sha256": _checksum(tensors, meta)})
    (copy / "results.json").unlink()
    assert run(copy, "data.num_validation=20") == 0
    assert "going on from step" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, change",
    [
        ("optimizer.0.exp_avg", lambda value: value[:1]),
        ("optimizer.0.exp_avg", lambda value: value.long()),
        ("optimizer.0.step", lambda value: torch.zeros(3)),
        ("optimizer.0.exp_avg", None),
        ("optimizer.99999.step", lambda value: torch.zeros(())),
        ("optimizer.x.step", lambda value: torch.zeros(())),
        ("optimizer.0.more", lambda value: torch.zeros(())),
        ("ema.stem.weight", lambda value: value[:1]),
        ("ema.stem.weight", None),
        ("model.stem.weight", lambda value: value[:1]),
        ("totals", lambda value: value[:2]),
        ("totals", None),
        ("pseudo.index", lambda value: torch.tensor([10**6])),
        ("pseudo.index", lambda value: torch.tensor([-1])),
        ("pseudo.labels", lambda value: torch.tensor([99])),
        ("pseudo.labels", None),
        ("head.weight", lambda value: torch.zeros(4, 32)),
        ("nonsense", lambda value: torch.zeros(2)),
    ],
)
def test_a_checkpoint_whose_tensors_were_altered_does_not_fit(copy, capsys, name, change):
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(newest)
    if name.startswith("pseudo"):
        tensors |= {"pseudo.index": torch.tensor([5]), "pseudo.labels": torch.tensor([1])}
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    save_tensors(newest, tensors, meta)
    (copy / "results.json").unlink()
    assert run(copy, "data.num_validation=20") == 2
    assert "the checkpoint at step 12 does not fit" in single_line(capsys)


@pytest.mark.parametrize(
    "name", ["config.yml", "split.json", "images.json", "results.json", "checkpoints/step-00000012.safetensors"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_pipes_and_folders_in_place_of_a_runs_files_do_not_hang(copy, capsys, name, kind):
    (copy / name).unlink()
    os.mkfifo(copy / name) if kind == "pipe" else (copy / name).mkdir()
    if name != "results.json":
        (copy / "results.json").unlink()
    code = run(copy, "data.num_validation=20")
    if code:
        single_line(capsys)
    if name == "config.yml":
        assert predict.main(["--run-dir", str(copy), str(ROOT / "docs")]) == 2


def test_checkpoints_named_otherwise_are_none_of_ours(copy):
    shutil.copy(copy / "checkpoints" / "step-00000012.safetensors", copy / "checkpoints" / "step-9999.safetensors")
    (copy / "checkpoints" / "step-00000099").write_text("x")
    (copy / "checkpoints" / "step-٣٣٣٣٣٣٣٣.safetensors").write_text("x")
    assert run(copy, "data.num_validation=20", "train.steps=14") == 0


def test_the_owner_of_a_lock_is_any_text(tmp_path, monkeypatch, capsys):
    seen = []

    def try_too():
        (tmp_path / "run" / ".lock-owner").write_bytes(b"\xff\xfe\n\x1b[31m")
        seen.append(run(tmp_path / "run"))

    at_step(monkeypatch, 6, try_too)
    assert run(tmp_path / "run") == 0
    assert seen == [2] and r"is in use by \xff\xfe" in single_line(capsys)


def test_an_empty_path_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("--run-dir", "--folder"):
        assert main.main([name, "", *SMALL]) == 2
        assert "must be the path of a folder" in single_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_killed_round_goes_on_when_its_run_is_gone(finished, tmp_path, monkeypatch, capsys):
    for name in ("whole", "cut"):
        shutil.copytree(finished, tmp_path / name)
    assert pseudo_label.main(["--run-dir", str(tmp_path / "whole"), *ROUND]) == 0
    signal_after(monkeypatch, 15, signal.SIGTERM)
    assert pseudo_label.main(["--run-dir", str(tmp_path / "cut"), *ROUND]) == 143
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cut")
    assert pseudo_label.main(["--run-dir", str(tmp_path / "cut"), *ROUND]) == 0
    assert_same_run(tmp_path / "cut-top-0.1", tmp_path / "whole-top-0.1")
    assert pseudo_label.main(["--run-dir", str(tmp_path / "nothing")]) == 2


def test_a_round_is_not_lengthened_and_says_when_its_run_was(copy, capsys):
    command = ["--run-dir", str(copy), *ROUND]
    assert pseudo_label.main(command) == 0
    path = copy.with_name("run-top-0.1")
    capsys.readouterr()
    assert main.main(["--run-dir", str(path), "train.steps=30"]) == 2
    assert "is a round; its length, pseudo_label.steps, stays" in single_line(capsys)
    assert run(copy, "data.num_validation=20", "train.steps=16") == 0
    assert pseudo_label.main(command) == 0
    assert "began at step 12" in capsys.readouterr().out.replace("goes on from step", "began at step")


@pytest.mark.parametrize("wrong", [["train.lr=1e5"], ["init_from=nowhere"]])
def test_what_never_came_to_a_checkpoint_does_not_block_the_corrected_command(tmp_path, capsys, wrong):
    assert run(tmp_path / "run", *wrong) in (1, 2)
    assert run(tmp_path / "run") == 0
    assert run(tmp_path / "alone") == 0
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_run_alone_goes_on_where_no_checkpoint_was_written_and_nothing_is_lost_by_a_look(tmp_path):
    script = (
        "import os, signal, main\nfrom mixmatch.training.trainer import Trainer\n"
        "Trainer.train_step = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"main.main(['--run-dir', {str(tmp_path / 'run')!r}, *{SMALL!r}, 'seed=3'])"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert {"config.yml", "split.json", "images.json"} <= kept.keys()
    assert main.main(["--run-dir", str(tmp_path / "run"), "--check", *SMALL, "seed=4"]) == 0
    assert main.main(["--run-dir", str(tmp_path / "run"), *SMALL, "seed=4", "data.num_labeled=7"]) == 2
    assert {
        name: (tmp_path / "run" / name).read_bytes() for name in ("config.yml", "split.json")
    }.items() <= kept.items()
    assert main.main(["--run-dir", str(tmp_path / "run")]) == 0
    assert run(tmp_path / "alone", "seed=3") == 0
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_length_that_is_taken_back(copy, monkeypatch):
    config = (copy / "config.yml").read_text()
    (copy / "config.yml").write_text(config.replace("steps: 12\n", "steps: 24\n", 1))
    assert run(copy, "data.num_validation=20") == 0
    assert (copy / "config.yml").read_text() == config
    assert reproduce.command.main(["--compare", str(copy)]) == 0


def test_curves_of_another_run_are_not_cut(tmp_path, monkeypatch, capsys):
    """The folder is swapped while the data load, before TensorBoard's file is opened."""
    signal_after(monkeypatch, 9, signal.SIGTERM)
    assert run(tmp_path / "other") == 143
    monkeypatch.undo()
    monkeypatch.setattr("mixmatch.training.setup.load_data", swapping(tmp_path, load_data))
    assert run(tmp_path / "run") == 2
    assert "is no longer the folder of this run" in single_line(capsys)
    ours, theirs = (tmp_path / name / "events.out.tfevents.0" for name in ("run", "other"))
    assert ours.read_bytes() == theirs.read_bytes()


def swapping(root, load):
    def loading(*arguments):
        (root / "run").rename(root / "aside")
        shutil.copytree(root / "other", root / "run")
        return load(*arguments)

    return loading


def test_no_descriptor_and_no_lock_stays_when_a_folder_cannot_be_opened(copy, monkeypatch, capsys):
    opened = os.open

    def refusing(path, *arguments, **options):
        if str(path).endswith("checkpoints"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "supports_dir_fd", os.supports_dir_fd | {refusing})
    for _ in range(3):
        assert run(copy, "data.num_validation=20") == 2
        single_line(capsys)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert run(copy, "data.num_validation=20") == 0


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    script = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nimport main\n"
        "from mixmatch.training.trainer import Trainer\nstep = Trainer.train_step\n"
        "Trainer.train_step = lambda self: (step(self), os.kill(os.getpid(), signal.SIGINT))\n"
        f"sys.exit(main.main(['--run-dir', {str(tmp_path / 'run')!r}, *{SMALL!r}]))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(tmp_path / "run") == 2
    assert "the working directory cannot be used" in single_line(capsys)


def test_a_dangling_link_beside_photographs_is_only_a_stray(photos, tmp_path):
    os.symlink("/nowhere", photos / "notes.txt")
    rows = "file,class\ntrain/cat/0.png,cat\ntrain/dog/0.png,dog\n"
    (photos / "labels.csv").write_text(rows)
    assert train_photos(photos, tmp_path / "run", "data.labels=labels.csv") == 0


def test_a_finished_run_without_checkpoints_is_not_begun_anew(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "results.json").read_bytes()
    assert run(copy, "data.num_validation=20", "train.steps=20") == 2
    assert "has no checkpoint to go on from" in single_line(capsys)
    assert (copy / "results.json").read_bytes() == before


def test_test_images_that_change_are_not_mixed_with_those_before(photos, tmp_path, capsys):
    assert train_photos(photos, tmp_path / "run") == 0
    pattern(0, 99).save(photos / "test" / "cat" / "more.png")
    assert train_photos(photos, tmp_path / "run", "train.steps=14") == 2
    assert "its test images have changed" in single_line(capsys)
    # Another run may use the split with other test images.
    split = f"data.split_file={tmp_path / 'run' / 'split.json'}"
    assert train_photos(photos, tmp_path / "next", split) == 0
    assert train_photos(photos, tmp_path / "next", split) == 0


def test_a_split_file_that_tears_groups_apart_is_refused(photos, tmp_path, capsys):
    assert train_photos(photos, tmp_path / "run", "data.num_validation=4") == 0
    rows = ["file,group", *(f"train/{name}/{i}.png,all" for name in ("cat", "dog") for i in range(6))]
    (photos / "groups.csv").write_text("\n".join(rows))
    split = f"data.split_file={tmp_path / 'run' / 'split.json'}"
    capsys.readouterr()
    assert train_photos(photos, tmp_path / "next", split, "data.labels=groups.csv") == 2
    assert "1 groups, such as 'all', are in validation and trained on" in single_line(capsys)


ODD = ["a\nb", "\udce9", "=cmd()", "<script>", "猫" * 60, "\x1b[31m"]


def test_class_and_file_names_of_any_kind_from_training_to_prediction(tmp_path, capsys):
    root = tmp_path / "\udcff odd"
    for number, name in enumerate([*ODD[:4], "c" * 200, ODD[5]]):
        (root / "train" / name).mkdir(parents=True)
        for i in range(3):
            pattern(number % 3, 10 * number + i).save(root / "train" / name / f"{i}{chr(0xDCE8)}.png")
    shutil.copytree(root / "train", root / "test")
    shutil.copytree(root / "train" / "=cmd()", root / "unlabeled")
    (root / "stray\udce9").write_text("x")
    settings = ["data.image_size=8", *SETTINGS[4:], "train.steps=40"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}

    def call(program, *arguments):
        command = [sys.executable, program, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.stdout.decode("ascii").replace("\n", "").isprintable()

    config = tmp_path / "config.yml"
    config.write_text("data: {dataset: folder, num_labeled: all}\n")
    os.symlink(root, tmp_path / "root")
    common = ["--config", config, f"data.root={tmp_path / 'root'}", *settings]
    path = tmp_path / os.fsdecode(b"run\xe9")
    call("main.py", "--run-dir", path, *common, "--check")
    call("main.py", "--run-dir", path, *common)
    call("main.py", "--run-dir", path, *common, "train.steps=44")
    call("pseudo_label.py", "--run-dir", path, "pseudo_label.steps=4", "pseudo_label.select=top")
    call(
        "predict.py",
        "--run-dir",
        path,
        root / "test",
        "--output",
        tmp_path / "p.csv",
        "--html",
        tmp_path / "sheet.html",
    )
    call(
        "predict.py",
        "--run-dir",
        path,
        root / "test",
        "--output",
        tmp_path / "p.csv",
        "--copy-by-class",
        tmp_path / "sorted",
    )
    shutil.copy(path / "model.safetensors", tmp_path / "model.safetensors")
    call("main.py", "--run-dir", tmp_path / "next", *common, f"init_from={tmp_path / 'model.safetensors'}")


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/b", "a\\b", ".", ""])
def test_a_class_name_leads_nowhere_out_of_the_folder(tmp_path, name):
    picture = tmp_path / "x.png"
    pattern(0, 1).save(picture)
    with pytest.raises(UserError, match="is no name for a folder"):
        sort_into(tmp_path / "sorted", name, picture)
    assert [path.name for path in tmp_path.rglob("*")] == ["x.png"]


@pytest.mark.parametrize(
    "option, closed", [("", ">&-"), ("", "2>&-"), ("", ">&- 2>&-"), ("", "<&- >&- 2>&-"), ("--check", "<&- >&- 2>&-")]
)
def test_closed_streams(tmp_path, option, closed):
    line = f"{sys.executable} main.py --run-dir {tmp_path / 'run'} {option} {' '.join(SMALL)} {closed}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    if not option:
        assert len(final(tmp_path / "run")[0]) > 10  # nothing was printed into it


@pytest.mark.parametrize("program", ["main.py", "pseudo_label.py", "predict.py"])
def test_ctrl_c_while_libraries_load_is_silent(tmp_path, program):
    """As it comes while torch loads, which an imported file stands in for."""
    (tmp_path / "slow.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    command = [sys.executable, program, "--import", str(tmp_path / "slow.py"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGINT and not done.stderr and not done.stdout


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.depth=1000", "model.width=64"], "model: WRN-1000-64 has 65,7"),
        (["model.depth=6000004"], "model.depth: must be 6n [+] 4: .* up to 1000"),
        (['data.root="a\\0b"'], "data.root: must not contain a NUL character"),
        (['data.split_file="a\\0b"'], "data.split_file: must not contain a NUL"),
        (['data.root="\\ud800"'], "data.root: must not contain half of a surrogate pair"),
        ([f"{'a.' * 5000}b=1"], "unknown key"),
        ([f"{'model.' * 7}b=1"], "model.model: unknown key"),
        (["seed=" + "1" * 5000], "not valid YAML"),
        (["seed=!!bool abc"], "tags .* are not supported"),
        (["seed=!!int ''"], "tags .* are not supported"),
        (["seed=!!timestamp abc"], "tags .* are not supported"),
        (["seed=" + "[" * 400 + "]" * 400], "seed"),
        (["seed=2000-99-99"], "not valid YAML"),
    ],
)
def test_overrides_that_no_one_expects(tmp_path, capsys, overrides, message):
    import re

    assert main.main(["--run-dir", str(tmp_path / "run"), *SMALL[:-1], *overrides]) == 2
    assert re.search(message, single_line(capsys))
    assert not (tmp_path / "run" / "config.yml").exists()


@pytest.mark.parametrize("file", ["/dev/zero", "/dev/stdin", "pipe", "."])
def test_a_config_that_is_no_file(tmp_path, monkeypatch, capsys, file):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert main.main(["--config", file]) == 2
    single_line(capsys)


def test_running_out_of_memory_on_the_cpu_is_a_line(tmp_path, monkeypatch, capsys):
    def greedy(self):
        torch.empty(2**52)

    monkeypatch.setattr(Trainer, "train_step", greedy)
    assert run(tmp_path / "run") == 2
    assert "cpu is out of memory with train.batch_size=8" in single_line(capsys)


def test_pipes_among_photographs_are_named_not_waited_for(photos, tmp_path, capsys):
    os.mkfifo(photos / "unlabeled" / "pipe.png")
    os.mkfifo(photos / "labels.csv")
    os.symlink("/dev/zero", photos / "unlabeled" / "zero.png")
    assert train_photos(photos, tmp_path / "run") == 2
    assert "2 files cannot be read as pictures" in single_line(capsys)
    assert train_photos(photos, tmp_path / "run", "data.labels=labels.csv") == 2
    assert "is no regular file" in single_line(capsys)


def test_a_look_at_a_place_where_training_could_not_write(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert train_photos(photos, tmp_path / "file", "--check") == 2
    assert train_photos(photos, tmp_path / "file" / "run", "--check") == 2
    assert "cannot be written into" in capsys.readouterr().err


def test_a_look_at_a_run_that_is_damaged_or_in_use(photos, tmp_path, monkeypatch, capsys):
    seen = []
    at_step(monkeypatch, 6, lambda: seen.append(train_photos(photos, tmp_path / "run", "--check")))
    assert train_photos(photos, tmp_path / "run") == 0
    assert seen == [2] and "is in use by" in capsys.readouterr().err
    monkeypatch.undo()
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(b"x")
    assert train_photos(photos, tmp_path / "run", "--check") == 2
    assert "no checkpoint is whole" in capsys.readouterr().err


def test_a_look_is_one_processs(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_photos(photos, tmp_path / "run", "--check") == 2
    assert "start it without torchrun" in single_line(capsys)


def test_unreadable_folders_are_said_by_another_user(photos, tmp_path):
    """Root may read everything: the child becomes nobody."""
    for place in (photos / "train", photos):
        mode = place.stat().st_mode
        place.chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY.format(root=str(photos))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        place.chmod(stat.S_IMODE(mode))
        assert "cannot be read (Permission denied)" in done.stdout, done.stderr


AS_NOBODY = """
import os, torch
from mixmatch.config import build_config
from mixmatch.data import load_data
from mixmatch.errors import UserError
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    load_data(build_config({{"data": {{"dataset": "folder", "root": {root!r}}}}}).data, torch.device("cpu"))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "change",
    [{"pseudo_label": None}, {"best_validation": {}}, {"test_accuracy": float("nan")}, {"steps": None}],
)
def test_comparing_altered_results(copy, capsys, change):
    file = copy / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (copy.parent / "x-check.png").write_bytes(b"")
    code = reproduce.command.main(["--compare", str(copy), str(copy.parent / "x-check.png")])
    printed = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in printed.err and "x-check" not in printed.out
