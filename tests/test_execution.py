"""Execution modes: which is tried, what happens when one fails; devices, precision. CUDA graphs: test_gpu.py."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mixmatch.distributed import DistributedContext
from mixmatch.errors import UserError
from mixmatch.training.device import choose_device
from mixmatch.training.execution import COMPILED, EAGER, explain_failure, select_execution_mode
from mixmatch.training.precision import MIN_FLOPS_ON_CPU, choose_precision, count_flops, low_precision_copy
from tests.factories import CPU, make_toy_trainer, wide_resnet
from tests.helpers import ROOT, SMALL, metrics, run


def assert_same_training(trainer, other):
    for _ in range(3):
        trainer.train_step()
        other.train_step()
    state, expected = trainer.state(), other.state()
    assert trainer.step == other.step and state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def without_compiler(function, **options):
    return function


def broken_compiler(error):
    def compile_function(function, **options):
        def fail(*arguments):
            raise error

        return fail

    return compile_function


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("no luck\nat all"), "RuntimeError: no luck"),
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), "not enough GPU memory; lower train.batch_size"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_mode_that_fails_is_skipped_with_one_line_and_the_state_stays(monkeypatch, precision, error, message):
    trainer, eager = (make_toy_trainer(train={"precision": precision}) for _ in range(2))
    for each in (trainer, eager):
        for _ in range(2):
            each.train_step()
    monkeypatch.setattr(torch, "compile", broken_compiler(error))
    warnings = []
    assert select_execution_mode(trainer, [COMPILED, EAGER], print, warnings.append) == EAGER
    (warning,) = warnings
    assert message in warning and "train.compile=false" in warning and "\n" not in warning
    assert_same_training(trainer, eager)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_trying_a_mode_does_not_change_the_state(monkeypatch, optimizer):
    monkeypatch.setattr(torch, "compile", without_compiler)
    trainer, eager = (make_toy_trainer(train={"optimizer": optimizer}) for _ in range(2))
    assert select_execution_mode(trainer, [COMPILED, EAGER], print, pytest.fail) == COMPILED
    assert_same_training(trainer, eager)


def test_ctrl_c_ends_compiling(monkeypatch):
    monkeypatch.setattr(torch, "compile", broken_compiler(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        select_execution_mode(make_toy_trainer(), [COMPILED, EAGER], print, pytest.fail)


def test_all_processes_use_a_mode_that_works_in_each_of_them(monkeypatch):
    class OtherFails(DistributedContext):
        """Another process, in which the mode fails."""

        def all_reduce_max(self, numbers):
            return [1] * len(numbers)

    monkeypatch.setattr(torch, "compile", without_compiler)
    trainer, warnings = make_toy_trainer(), []
    trainer.distributed = OtherFails()
    assert select_execution_mode(trainer, [COMPILED, EAGER], print, warnings.append) == EAGER
    assert "failed in another process" in warnings[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broken_compiler_gives_one_line_and_the_run_goes_on(tmp_path):
    path, method = tmp_path / "run", "method=supervised"  # the method that compiles fastest
    command = [sys.executable, "main.py", "--run-dir", str(path), *SMALL, method, "train.compile=true"]
    broken = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | broken, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: execution mode 'compiled'")]
    assert "train.compile=false" in warning and "Traceback" not in done.stderr
    assert run(tmp_path / "eager", method) == 0
    ours, theirs = metrics(path), metrics(tmp_path / "eager")
    assert [entry["loss"] for entry in ours] == [entry["loss"] for entry in theirs]
    assert run(path, method, "train.compile=false", "train.cuda_graph=false") == 0  # still the same run


def test_the_cause_of_a_broken_capture_is_reported():
    try:
        try:
            raise ValueError("reads from the device")
        except ValueError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    except RuntimeError as error:
        assert explain_failure(error) == "ValueError: reads from the device"


def test_a_low_precision_copy_keeps_frozen_and_shared_weights():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
            self.scale = torch.nn.Parameter(torch.ones(4, 1, 1))

    model = Odd()
    copy, pairs = low_precision_copy(model, torch.bfloat16)
    assert len(pairs) == 2 and copy.first.weight is copy.second.weight and copy.first.weight.dtype == torch.bfloat16
    assert copy.scale is model.scale and copy.first.bias is model.first.bias
    assert not copy.frozen.weight.requires_grad and copy.first.weight.requires_grad


def test_a_preview_in_bfloat16_uses_the_current_weights():
    trainer, other = (make_toy_trainer(train={"precision": "bfloat16"}) for _ in range(2))
    for _ in range(3):
        trainer.train_step()
    other.load_state({name: value.clone() for name, value in trainer.state().items()}, 3)
    assert torch.equal(trainer.preview()["guesses"], other.preview()["guesses"])


def test_a_gpu_without_kernels_is_not_used(monkeypatch, caplog):
    def no_kernel(*arguments, **options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nMore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    monkeypatch.setattr(torch, "ones", no_kernel)
    assert choose_device("auto") == CPU
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "\n" not in record.message
    assert "does not work on GTX 1080 Ti (CUDA error: no kernel image" in record.message
    with pytest.raises(UserError, match=r"GTX 1080 Ti .*use the CPU .device=cpu"):
        choose_device("cuda")

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore")

    monkeypatch.setattr(torch, "ones", full)  # by another program; training on the CPU would take days
    with pytest.raises(UserError, match=r"GTX 1080 Ti \(CUDA out of memory.\); use the CPU .device=cpu"):
        choose_device("auto")


def test_flops_of_a_network_that_passes_a_parameter_to_a_module():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.dense = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.dense(self.token.expand(len(x), -1)) + x.mean()

    network = WithToken()
    assert count_flops(network, (1, 2, 2)) == 2 * 4 * 3
    assert network.training and network.token.requires_grad


def test_auto_is_bfloat16_where_the_cpu_supports_it_and_the_network_is_large(monkeypatch):
    large, small, digits = wide_resnet(28, 2, 10), wide_resnet(10, 1, 10), wide_resnet(10, 1, 10, 1)
    assert count_flops(digits, (1, 8, 8)) < MIN_FLOPS_ON_CPU < count_flops(small, (3, 16, 16))
    for feature in ("amx_bf16", "avx512_bf16", None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda feature=feature: {feature: True})
        assert choose_precision("auto", CPU, large, (3, 32, 32)) == ("bfloat16" if feature else "float32")
        assert choose_precision("auto", CPU, digits, (1, 8, 8)) == "float32"
        assert choose_precision("bfloat16", CPU, digits, (1, 8, 8)) == "bfloat16"


@pytest.mark.slow
def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, capsys):
    short = ["train.steps=8"]
    assert run(tmp_path / "run", *short, "train.precision=bfloat16") == 0
    (tmp_path / "run" / "results.json").unlink()
    sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].unlink()
    capsys.readouterr()
    assert run(tmp_path / "run", *short, "train.precision=float32") == 2
    error = capsys.readouterr().err
    assert "bfloat16" in error and "train.precision" in error and error.count("\n") == 1
    assert run(tmp_path / "run", *short, "train.precision=auto") == 0
    assert '"precision": "bfloat16"' in (tmp_path / "run" / "results.json").read_text()
