"""Two processes as one run, started by torchrun as a user would, over gloo on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mixmatch.config import load_config
from mixmatch.data import load_data
from mixmatch.data.pool import step_seed
from mixmatch.distributed import DistributedContext, init_distributed
from mixmatch.errors import UserError
from mixmatch.evaluation import predict, score
from mixmatch.inference import load_model
from mixmatch.training.device import choose_device
from tests.distributed_worker import STEPS, gradients, make_trainer
from tests.helpers import ROOT, SMALL, assert_same_run, run

LONG = [*SMALL, "train.steps=60", "train.checkpoint_every=5"]


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    code, _, err = finish(torchrun(ROOT / "tests" / "ranks_worker.py", folder))
    assert code == 0, err
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


def test_weights_and_statistics_are_identical_on_both_ranks(left):
    a, b = (each["state"] for each in left)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert all(value.isfinite().all() for value in a.values())
    assert a["totals"][0] == STEPS
    assert left[0]["alike"] == left[1]["alike"] == [0, 1]


def test_no_thread_of_the_group_outlives_it(left):
    """One that does may abort the process as the interpreter ends."""
    assert not [name for each in left for name in each["threads"] if "gloo" in name]


def test_gradients_are_those_of_a_single_process_and_of_ddp(left, monkeypatch):
    apart = []
    for rank in (0, 1):
        trainer = make_trainer(DistributedContext(rank, 2))
        monkeypatch.setattr(DistributedContext, "average", lambda self, tensors: None)
        trainer.train_step()
        apart.append(gradients(trainer.model))
    for ours, theirs, ddp, *shares in zip(left[0]["ours"], left[1]["ours"], left[0]["ddp"], *apart, strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, sum(shares) / 2, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours, ddp, rtol=1e-4, atol=1e-6)


def test_ranks_draw_different_shares_of_one_batch():
    alone, *ranks = (
        make_trainer(DistributedContext()),
        make_trainer(DistributedContext(0, 2)),
        make_trainer(DistributedContext(1, 2)),
    )
    for trainer in (alone, *ranks):
        trainer.step = 3
        trainer.give_inputs()
    for whole, *shares in zip(alone.places, *(trainer.places for trainer in ranks), strict=True):
        assert torch.equal(torch.cat(shares), whole)
    assert len({step_seed(1, 3, rank) for rank in range(4)}) == 4 and step_seed(1, 3) == step_seed(1, 3, 0)


@pytest.mark.parametrize(
    "name, ranks, index", [("auto", (0, 1, 0), 0), ("cuda", (3, 4, 1), 1), ("cuda:2", (0, 1, 0), 2)]
)
def test_each_rank_of_a_machine_takes_the_gpu_of_its_number(monkeypatch, name, ranks, index):
    """torch.cuda.set_device wants a number; that there is a GPU is pretended."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert choose_device(name, DistributedContext(*ranks)) == torch.device("cuda", index)
    assert chosen == [index]


@pytest.mark.parametrize(
    "environment, device, message",
    [
        ({"WORLD_SIZE": "2"}, "cpu", "RANK or LOCAL_RANK is amiss ('RANK'); start it with torchrun"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "cpu", "WORLD_SIZE is two, but"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cuda:1", "device: cuda:1 cannot serve 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cpu", "the 2 processes cannot meet: "),
    ],
)
def test_a_meeting_that_fails_is_one_line(monkeypatch, environment, device, message):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised, init_distributed(device):
        pass
    assert message in str(raised.value)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_of_an_evaluation_are_the_whole(monkeypatch, world):
    trainer = make_trainer(DistributedContext())
    parts = []
    monkeypatch.setattr(DistributedContext, "gather", lambda self, part: parts.append(part) or part)
    for rank in range(world):
        predict(trainer.ema_model, trainer.pool.images[:10], trainer.device, ranks=DistributedContext(rank, world))
    assert len({part.shape for part in parts}) == 1
    together = torch.cat(parts)[:10]
    torch.testing.assert_close(together, predict(trainer.ema_model, trainer.pool.images[:10], trainer.device))


def wait_for_step(step, run, process):
    """Wait until a run is so far or further: of its checkpoints the oldest go."""
    while max((file.name for file in run.glob("checkpoints/step-*")), default="") < f"step-{step:08}":
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_two_processes_stopped_and_killed_continue_to_the_same_weights_or_with_one(tmp_path, capsys):
    code, out, err = finish(torchrun("main.py", "--folder", tmp_path / "whole", *LONG))
    assert code == 0, err
    assert "in 2 processes" in out and out.count("done: test accuracy") == 1 and out.count("step 6 of 60") == 1

    cut = tmp_path / "cut"
    process = torchrun("main.py", "--folder", cut, *LONG)
    wait_for_step(5, cut, process)
    processes = subprocess.run(["pgrep", "-f", f"main.py --folder {cut}"], capture_output=True, text=True, check=True)
    ranks = [int(number) for number in processes.stdout.split() if int(number) != process.pid]
    second = next(number for number in ranks if b"\0RANK=1\0" in Path(f"/proc/{number}/environ").read_bytes())
    os.kill(second, signal.SIGKILL)
    code, _, err = finish(process)
    assert code != 0
    # torchrun ends the others by SIGTERM, which may come before they notice by themselves.
    assert "another process of this run has ended; the same command continues" in err or "Signal 15" in err
    shutil.copytree(cut, tmp_path / "alone")

    process = torchrun("main.py", "--folder", cut, *LONG)
    assert "continuing" in process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code != 0 and out.count("stopped by SIGTERM at step") == 1
    code, out, err = finish(torchrun("main.py", "--folder", cut, *LONG))
    assert code == 0 and "continuing" in out, err
    assert_same_run(tmp_path / "whole", cut)

    assert run(tmp_path / "alone", *LONG[len(SMALL) :]) == 0
    assert "so far it ran with torch" in (said := capsys.readouterr().out) and "in 2 processes" in said

    # Split evaluation: what two processes reported of the last checkpoint is what one finds.
    config = load_config(tmp_path / "whole" / "config.yml")
    data = load_data(config.data, torch.device("cpu"))
    alone = score(load_model(tmp_path / "whole").predict(data.test_images), data.test_labels).accuracy
    assert alone == json.loads((tmp_path / "whole" / "results.json").read_text())["test_accuracy_last"]


def test_two_processes_do_a_round(tmp_path):
    settings = ["pseudo_label.enabled=true", "pseudo_label.select=top", "pseudo_label.steps=4"]
    code, out, err = finish(torchrun("main.py", "--folder", tmp_path / "run", *SMALL, *settings))
    assert code == 0, err
    assert "a round of pseudo-labels, from step 12 of 16" in out
    assert json.loads((tmp_path / "run-top-0.1" / "results.json").read_text())["processes"] == 2


def test_a_batch_that_cannot_be_shared_ends_every_process(tmp_path):
    code, _, err = finish(torchrun("main.py", "--folder", tmp_path / "run", *SMALL, "train.batch_size=9"))
    assert code != 0 and "error: train.batch_size: 9 cannot be shared by 2 processes" in err


@pytest.mark.parametrize("batch_size, world", [(9, 2), (2, 2), (8, 3)])
def test_a_batch_that_cannot_be_shared_is_said(batch_size, world):
    with pytest.raises(UserError, match=f"train.batch_size: {batch_size} cannot be shared by {world} processes"):
        DistributedContext(world=world).share_batch(batch_size)
