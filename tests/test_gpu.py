"""The fast step on a GPU against the plain one. Skipped without a GPU; benchmarks/gpu.sh runs it on one."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixmatch.ranks import ALONE, Ranks
from mixmatch.records.recorder import copy_to_host
from mixmatch.training.capture import capture
from tests.small_runs import final, run, signal_after
from tests.toys import toy_trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # set_sync_debug_mode warns that it is there, compilers of this and that
]


def gpu_trainer(compile_, precision="float32", ranks=ALONE, **train):
    settings = {"batch_size": 16, "compile": compile_, "precision": precision} | train
    return toy_trainer(torch.device("cuda"), ranks, train=settings)


def losses(trainer, steps):
    values = []
    for _ in range(steps):
        trainer.train_step()
        values.append(trainer.read_statistics()["loss"])
    return torch.tensor(values)


@pytest.fixture(autouse=True)
def exact():
    """Full float32 and one choice of convolutions: what differs then is the order of sums alone."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_captured_step_computes_what_the_plain_one_does(optimizer):
    settings = {"optimizer": optimizer, "lr_decay_steps": [50]}
    plain, fast = gpu_trainer(False, **settings), gpu_trainer(True, **settings)
    assert fast.capturing and not plain.capturing
    a, b = losses(plain, 100), losses(fast, 100)
    # The same draws; sums in another order. 100 steps of Adam amplify that: tight at first, looser at the end.
    torch.testing.assert_close(a[:5], b[:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.timeout(600)
def test_bfloat16_follows_float32():
    torch.testing.assert_close(
        losses(gpu_trainer(False), 50), losses(gpu_trainer(True, "bfloat16"), 50), rtol=0.1, atol=0.1
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("compile_", [False, True])
def test_a_step_never_waits_for_the_device(compile_):
    trainer = gpu_trainer(compile_)
    for _ in range(3):
        trainer.train_step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recording_changes_nothing():
    trainer = gpu_trainer(False)
    before = {name: value.clone() for name, value in trainer.state().items()}
    trainer._give_inputs()
    capture(trainer._run_step, trainer.state, trainer.generator)
    for name, value in trainer.state().items():
        assert torch.equal(value, before.get(name, torch.zeros_like(value))), name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("compile_", [False, True])
def test_a_resumed_run_makes_the_same_draws(compile_):
    trainer, twin = gpu_trainer(compile_), gpu_trainer(compile_)
    for _ in range(5):
        trainer.train_step()
    twin.load_state({name: value.cpu().clone() for name, value in trainer.state().items()}, 5)
    ours, theirs = trainer.preview(), twin.preview()
    assert torch.equal(ours["views"], theirs["views"])
    torch.testing.assert_close(ours["images"], theirs["images"])
    torch.testing.assert_close(losses(trainer, 5), losses(twin, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.timeout(600)
def test_a_checkpoint_is_of_its_step_however_far_training_is_when_it_is_fetched():
    trainer, twin = gpu_trainer(True), gpu_trainer(True)
    for _ in range(5):
        trainer.train_step()
        twin.train_step()
    fetch = copy_to_host(trainer.state())
    for _ in range(50):
        trainer.train_step()
    then = {name: value.cpu() for name, value in twin.state().items()}
    with ThreadPoolExecutor(1) as thread:
        copies = thread.submit(fetch).result()
    assert copies.keys() == then.keys()
    for name, value in copies.items():
        torch.testing.assert_close(value, then[name], rtol=1e-4, atol=1e-4)
        assert value.device.type == "cpu"


@pytest.mark.timeout(600)
def test_the_message_between_ranks_can_be_recorded(tmp_path):
    """One process stands for two: what it sends comes back halved, in the recorded step as in the plain one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        plain, fast = gpu_trainer(False, ranks=Ranks(0, 2)), gpu_trainer(True, ranks=Ranks(0, 2))
        a, b = losses(plain, 20), losses(fast, 20)
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        assert fast.ranks.largest([3, 4]) == [3, 4]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.timeout(600)
def test_whole_runs_by_the_command_stopped_and_continued(tmp_path, monkeypatch, capsys):
    """With everything at auto: captured, in bfloat16 where there is, written in the background."""
    signal_after(monkeypatch, 7, signal.SIGTERM)
    assert run(tmp_path / "cut") == 143
    monkeypatch.undo()
    assert run(tmp_path / "cut") == 0
    assert run(tmp_path / "whole", "device=cuda:0", "method=supervised") == 0
    printed = capsys.readouterr().out
    assert "continuing" in printed and printed.count("done: test accuracy") == 2
    assert final(tmp_path / "cut")[1]["step"] == 12


def test_a_gpu_checkpoint_goes_on_on_the_cpu():
    trainer = gpu_trainer(False)
    losses(trainer, 3)
    twin = toy_trainer(train={"batch_size": 16, "compile": False, "precision": "float32"})
    twin.load_state({name: value.cpu() for name, value in trainer.state().items()}, 3)
    assert losses(twin, 2).isfinite().all()
