"""Execution modes on a GPU against the eager step. Skipped without a GPU; benchmarks/gpu.sh runs it on one."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixmatch.config import build_config
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.runs.writer import copy_to_host
from mixmatch.training.build import make_trainer
from mixmatch.training.execution import COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER, select_execution_mode
from tests.factories import SPLIT, make_toy_trainer, toy_data
from tests.helpers import final, run, signal_after

MODES = [EAGER, CUDA_GRAPH, COMPILED_CUDA_GRAPH]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # set_sync_debug_mode warns that it is there, compilers of this and that
]


def gpu_trainer(mode, precision="float32", distributed=SINGLE_PROCESS, method="mixmatch", **train):
    sections = {"method": method, "train": {"batch_size": 16, "precision": precision} | train}
    trainer = make_toy_trainer(torch.device("cuda"), distributed, **sections)
    trainer.set_execution_mode(mode)
    return trainer


def losses(trainer, steps):
    values = []
    for _ in range(steps):
        trainer.train_step()
        values.append(trainer.read_metrics()["loss"])
    return torch.tensor(values)


@pytest.fixture(autouse=True)
def exact():
    """Full float32 and one choice of convolutions: what differs then is the order of sums alone."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("mode", [CUDA_GRAPH, COMPILED_CUDA_GRAPH], ids=lambda mode: mode.name)
def test_each_mode_equals_the_eager_step(mode, optimizer):
    settings = {"optimizer": optimizer, "lr_decay_steps": [10]}
    eager, fast = gpu_trainer(EAGER, **settings), gpu_trainer(mode, **settings)
    a, b = losses(eager, 20), losses(fast, 20)
    # The same draws; sums in another order, which Adam's steps amplify: tight at first, and only alike at the end.
    torch.testing.assert_close(a[:3], b[:3], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0.2, atol=0.2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["remixmatch", "fixmatch", "freematch", "softmatch"])
@pytest.mark.parametrize("mode", [CUDA_GRAPH, COMPILED_CUDA_GRAPH], ids=lambda mode: mode.name)
def test_each_method_equals_its_eager_step(mode, method):
    eager, fast = gpu_trainer(EAGER, method=method), gpu_trainer(mode, method=method)
    a, b = losses(eager, 20), losses(fast, 20)
    torch.testing.assert_close(a[:2], b[:2], rtol=1e-3, atol=1e-3)
    # Rounding may tip a pseudo-label between two classes: of 7 x 16 images, one changes the loss by about 0.01.
    torch.testing.assert_close(a[2], b[2], rtol=1e-3, atol=0.03)
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0.2, atol=0.2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("mode", [CUDA_GRAPH, COMPILED_CUDA_GRAPH], ids=lambda mode: mode.name)
def test_fine_tuning_equals_its_eager_step(mode, architecture):
    """Frozen at first, so that two steps are recorded; with dropped paths, and groups of parameters."""
    pytest.importorskip("timm")

    def trainer(mode):
        model = {"network": "timm", "architecture": architecture, "pretrained": False}
        model |= {"freeze_steps": 3, "drop_path": 0.0 if architecture == "test_resnet" else 0.2}
        train = {"batch_size": 16, "precision": "float32", "layer_decay": 0.7, "head_lr": 0.01}
        made = make_toy_trainer(torch.device("cuda"), data=toy_data(size=32), model=model, train=train)
        made.set_execution_mode(mode)
        return made

    a, b = losses(trainer(EAGER), 8), losses(trainer(mode), 8)
    torch.testing.assert_close(a[:5], b[:5], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.timeout(600)
def test_bfloat16_follows_float32():
    torch.testing.assert_close(
        losses(gpu_trainer(EAGER), 5), losses(gpu_trainer(COMPILED_CUDA_GRAPH, "bfloat16"), 5), rtol=0.2, atol=0.2
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_step_never_waits_for_the_device(mode):
    trainer = gpu_trainer(mode)
    for _ in range(3):
        trainer.train_step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recording_changes_nothing():
    trainer = gpu_trainer(CUDA_GRAPH)
    before = {name: value.clone() for name, value in trainer.state().items()}
    trainer.prepare()
    for name, value in trainer.state().items():
        assert torch.equal(value, before.get(name, torch.zeros_like(value))), name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_resumed_run_makes_the_same_draws(mode):
    trainer, other = gpu_trainer(mode), gpu_trainer(mode)
    for _ in range(5):
        trainer.train_step()
    other.load_state({name: value.cpu().clone() for name, value in trainer.state().items()}, 5)
    ours, theirs = trainer.preview(), other.preview()
    assert torch.equal(ours["views"], theirs["views"])
    torch.testing.assert_close(ours["images"], theirs["images"])
    torch.testing.assert_close(losses(trainer, 5), losses(other, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_images_in_host_memory_reach_the_step(mode):
    sections = {"model": {"depth": 10, "width": 1}, "train": {"batch_size": 16, "precision": "float32"}}
    data, trainers = toy_data(), []
    for place in ("device", "host"):
        config = build_config({**sections, "data": {"keep_on": place}})
        trainers.append(make_trainer(config, data, SPLIT, torch.device("cuda")))
        trainers[-1].set_execution_mode(mode)
    ours, theirs = trainers
    torch.testing.assert_close(losses(ours, 20), losses(theirs, 20), rtol=1e-3, atol=1e-3)
    x_index, _, u_index = theirs.indices
    assert torch.equal(theirs.batches.images.cpu(), data.images[torch.cat([x_index, u_index]).cpu()])


@pytest.mark.timeout(600)
def test_a_checkpoint_is_of_its_step_however_far_training_is_when_it_is_fetched():
    trainer, other = gpu_trainer(COMPILED_CUDA_GRAPH), gpu_trainer(COMPILED_CUDA_GRAPH)
    for _ in range(5):
        trainer.train_step()
        other.train_step()
    fetch = copy_to_host(trainer.state())
    for _ in range(50):
        trainer.train_step()
    then = {name: value.cpu() for name, value in other.state().items()}
    with ThreadPoolExecutor(1) as thread:
        copies = thread.submit(fetch).result()
    assert copies.keys() == then.keys()
    for name, value in copies.items():
        torch.testing.assert_close(value, then[name], rtol=1e-4, atol=1e-4)
        assert value.device.type == "cpu"


@pytest.mark.timeout(600)
def test_the_message_between_ranks_can_be_recorded(tmp_path):
    """One process stands for two: its messages come back halved, in the CUDA graph as in the eager step."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        eager, fast = (
            gpu_trainer(EAGER, distributed=DistributedContext(0, 2)),
            gpu_trainer(COMPILED_CUDA_GRAPH, distributed=DistributedContext(0, 2)),
        )
        a, b = losses(eager, 20), losses(fast, 20)
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        assert fast.distributed.all_reduce_max([3, 4]) == [3, 4]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.timeout(600)
def test_whole_runs_by_the_command_stopped_and_continued(tmp_path, monkeypatch, capsys):
    """With everything at auto: captured, in bfloat16 where there is, written in the background."""
    signal_after(monkeypatch, 7, signal.SIGTERM)
    assert run(tmp_path / "cut", "device=auto") == 143
    monkeypatch.undo()
    assert run(tmp_path / "cut", "device=auto") == 0
    assert run(tmp_path / "whole", "device=cuda:0", "method=supervised") == 0
    printed = capsys.readouterr().out
    assert "continuing" in printed and printed.count("done: test accuracy") == 2
    assert final(tmp_path / "cut")[1]["step"] == 12


def test_a_gpu_checkpoint_goes_on_on_the_cpu():
    trainer = gpu_trainer(EAGER)
    losses(trainer, 3)
    other = make_toy_trainer(train={"batch_size": 16, "precision": "float32"})
    other.load_state({name: value.cpu() for name, value in trainer.state().items()}, 3)
    assert losses(other, 2).isfinite().all()


@pytest.mark.timeout(900)
def test_the_fastest_mode_works_here():
    """On whatever machine this is; otherwise the warning gives the reason."""
    warnings = []
    trainer = gpu_trainer(EAGER)
    assert (
        select_execution_mode(trainer, [COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER], print, warnings.append)
        == COMPILED_CUDA_GRAPH
    )
    assert not warnings
