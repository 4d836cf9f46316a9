"""Training in two processes, started by torchrun as a user would, over gloo on the CPU."""

import json
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from mixmatch.config import build_config, load_config
from mixmatch.data import load_data
from mixmatch.distributed import DistributedContext, explain_lost_process, init_distributed
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from mixmatch.runs.progress import Progress
from mixmatch.training import build
from mixmatch.training.device import choose_device
from mixmatch.training.setup import check_same_images
from tests.distributed_worker import STEPS, make_trainer
from tests.factories import SPLIT, toy_data
from tests.helpers import ROOT, SMALL, assert_same_run, process_starter, run

LONG = [*SMALL, "train.steps=60", "train.checkpoint_every=5"]


def torchrun(start, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return start(*command, *arguments, env=os.environ | {"PYTHONPATH": str(ROOT)})


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    with process_starter() as start:
        code, _, err = finish(torchrun(start, ROOT / "tests" / "distributed_worker.py", folder))
    assert code == 0, err
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
def test_the_state_is_identical_in_both_processes(saved):
    a, b = (each["state"] for each in saved)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert all(value.isfinite().all() for value in a.values())
    assert saved[0]["gathered"] == saved[1]["gathered"] == [0, 1]


def test_each_process_has_its_share_of_the_batch_and_random_numbers_of_its_own():
    config = build_config({"model": {"depth": 10, "width": 0.5}, "train": {"batch_size": 8}})
    whole, *shares = (
        build.make_trainer(config, toy_data(), SPLIT, torch.device("cpu"), context, Progress(precision="float32"))
        for context in (DistributedContext(), DistributedContext(0, 2), DistributedContext(1, 2))
    )
    for trainer in (whole, *shares):
        trainer.set_inputs()
    for name in ("x_index", "u_index"):
        assert torch.equal(torch.cat([getattr(part.indices, name) for part in shares]), getattr(whole.indices, name))
    assert shares[0].generator.initial_seed() != shares[1].generator.initial_seed()


@pytest.mark.slow
def test_gradients_are_the_mean_of_those_of_the_processes(saved):
    for first, second, *averaged in zip(*(each[k] for k in ("local", "averaged") for each in saved), strict=True):
        assert not torch.equal(first, second) and torch.equal(*averaged)
        torch.testing.assert_close(averaged[0], (first + second) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_evaluation_in_two_processes_equals_one_in_a_single_process(saved):
    trainer = make_trainer(DistributedContext())
    trainer.load_state(saved[0]["state"], STEPS)
    for each in saved:
        torch.testing.assert_close(each["predictions"], trainer.predict(trainer.dataset.images[:9]))


@pytest.mark.slow
def test_no_gloo_thread_outlives_the_group(saved):
    """It could abort the process when the interpreter exits."""
    assert not [name for each in saved for name in each["threads"] if "gloo" in name]


def test_each_process_of_a_machine_uses_the_gpu_of_its_local_rank():
    """No machine has that many, and the error names the one that was chosen."""
    with pytest.raises(UserError, match="device: cuda:63 does not exist"):
        choose_device("cuda", DistributedContext(rank=127, world_size=128, local_rank=63))


@pytest.mark.parametrize(
    "environment, device, message",
    [
        ({}, "cpu", "WORLD_SIZE is 2 but 'RANK' is not set; start the command with torchrun"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "cuda:1", "device: cuda:1 cannot serve 2 processes; use auto, cuda or cpu"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "cpu", "the 2 processes cannot connect: "),
    ],
)
def test_processes_that_cannot_connect_are_a_one_line_error(monkeypatch, environment, device, message):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised, init_distributed(device):
        pass
    assert message in str(raised.value)


@pytest.mark.parametrize("batch_size, world_size", [(9, 2), (2, 2), (8, 3)])
def test_a_batch_that_cannot_be_divided_is_an_error(batch_size, world_size):
    with pytest.raises(UserError, match=f"train.batch_size: {batch_size} cannot be divided among {world_size} proc"):
        DistributedContext(world_size=world_size).local_batch_size(batch_size)


def wait_for_checkpoint(path, process):
    while not list(path.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_in_two_processes_resumes_after_a_kill_and_a_signal_and_in_one_process(tmp_path, start, capsys):
    stage = ["pseudo_label.enabled=true", "pseudo_label.select=top", "pseudo_label.steps=4"]
    code, out, err = finish(torchrun(start, "main.py", "--run-dir", tmp_path / "whole", *LONG, *stage))
    assert code == 0, err
    assert "pseudo-label stage from step 60 to 64" in out
    assert json.loads((tmp_path / "whole-top-0.1" / "results.json").read_text())["processes"] == 2
    assert out.count("predict: ") == 1 and f"--run-dir {tmp_path / 'whole-top-0.1'} " in out
    assert "in 2 processes" in out and out.count("done: test accuracy") == 2 and out.count("step 6 of 60") == 1

    cut = tmp_path / "cut"
    process = torchrun(start, "main.py", "--run-dir", cut, *LONG)
    wait_for_checkpoint(cut, process)
    children = psutil.Process(process.pid).children()
    next(child for child in children if child.environ().get("RANK") == "1").kill()
    code, _, err = finish(process)
    assert code != 0
    # torchrun ends the others by SIGTERM, which can come before they notice that a process is gone.
    assert "another process has ended; the same command continues" in err or "Signal 15" in err
    shutil.copytree(cut, tmp_path / "single")

    process = torchrun(start, "main.py", "--run-dir", cut, *LONG)
    assert "continuing" in process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code != 0 and out.count("stopped by SIGTERM at step") == 1
    code, out, err = finish(torchrun(start, "main.py", "--run-dir", cut, *LONG))
    assert code == 0 and "continuing" in out, err
    assert_same_run(tmp_path / "whole", cut)

    code, _, err = finish(torchrun(start, "main.py", "--run-dir", cut, *LONG, "train.lr=1"))
    assert code != 0 and "contains a run with another config" in err and "has ended" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1

    assert run(tmp_path / "single", *LONG[len(SMALL) :]) == 0
    assert "environment changed" in (printed := capsys.readouterr().out) and "in 2 processes" in printed
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    data = load_data(load_config(tmp_path / "whole" / "config.yml").data, torch.device("cpu"))
    right = load_model(tmp_path / "whole").predict_probabilities(data.test_images).argmax(1) == data.test_labels
    assert results["processes"] == 2 and results["test_accuracy"] == pytest.approx(100 * right.float().mean().item())


@pytest.mark.parametrize(
    "message",
    [
        "Connection closed by peer [127.0.0.1]:34567",
        "Read error [127.0.0.1]:34567: Connection reset by peer",
        "Timed out waiting 7200000ms for recv operation to complete",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_lost_process_is_explained(message):
    with pytest.raises(UserError, match="another process has ended; the same command"), explain_lost_process():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explain_lost_process():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_processes_that_read_different_images_are_an_error():
    sent = []
    first = SimpleNamespace(world_size=2, is_main=True, all_reduce_max=lambda numbers: sent.append(numbers) or numbers)
    check_same_images(toy_data(), first)
    second = SimpleNamespace(world_size=2, is_main=True, all_reduce_max=lambda numbers: [*map(max, numbers, sent[0])])
    check_same_images(toy_data(), second)
    for other in (toy_data(count=39), toy_data(classes=2)):
        with pytest.raises(UserError, match="data: the processes have read different images"):
            check_same_images(other, second)
