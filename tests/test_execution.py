"""The ladder of ways to compute a step: each failure injected, and a recording that is replayed without a GPU."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch

from mixmatch.cli.common import stop_signals
from mixmatch.config import TrainSettings
from mixmatch.distributed import DistributedContext
from mixmatch.errors import Interrupted, UserError
from mixmatch.training.console import Console
from mixmatch.training.cuda_graph import (
    COMPILED,
    COMPILED_CUDA_GRAPH,
    CUDA_GRAPH,
    EAGER,
    needs_registration,
    no_garbage,
)
from mixmatch.training.device import choose_device, has_kernels
from mixmatch.training.execution import (
    STEPS_WORTH_COMPILING,
    Snapshot,
    WrongResult,
    compare,
    explain_failure,
    list_execution_modes,
    observe,
    select_execution_mode,
)
from mixmatch.training.precision import LEAST_FLOP_ON_CPU, choose_precision, count_flop, make_twin
from tests.factories import CPU, make_toy_trainer, wide_resnet
from tests.fake_cuda_graph import Tape, recorded_trainer
from tests.helpers import ROOT, SMALL, metrics, run

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "settings, device, steps, expected",
    [
        ({}, CPU, 10**6, [EAGER]),
        ({"compile": True}, CPU, 10, [COMPILED, EAGER]),
        ({"cuda_graph": True}, CPU, 10, [EAGER]),
        ({}, CUDA, STEPS_WORTH_COMPILING, [COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER]),
        ({}, CUDA, STEPS_WORTH_COMPILING - 1, [CUDA_GRAPH, EAGER]),
        ({"compile": False}, CUDA, 10**6, [CUDA_GRAPH, EAGER]),
        ({"compile": True, "cuda_graph": False}, CUDA, 10, [COMPILED, EAGER]),
        ({"compile": False, "cuda_graph": False}, CUDA, 10**6, [EAGER]),
    ],
)
def test_rungs_are_what_the_config_asks_for_and_the_length_is_worth(settings, device, steps, expected):
    assert list_execution_modes(TrainSettings(**settings), device, steps) == expected


class Failing:
    """A trainer's step, of which a mode fails or computes something else."""

    def __init__(self, trainer, mode, fail):
        self.trainer, self.mode, self.fail = trainer, mode, fail
        self.use = trainer.use
        trainer.use = self

    def __call__(self, mode):
        self.use(mode)
        compute = type(self.trainer).compute_gradients

        def failing():
            if self.trainer.mode == self.mode:
                self.fail(self.trainer)
            return compute(self.trainer)

        self.trainer.compute_gradients = failing


def bad_weight(trainer):
    with torch.no_grad():
        trainer.model.stem.weight.mul_(1.5)


def raising(error):
    def fail(trainer):
        raise error

    return fail


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fail, message",
    [
        (raising(RuntimeError("no luck\nat all")), "RuntimeError: no luck"),
        (raising(FileNotFoundError(2, "No such file", "cc")), "FileNotFoundError"),
        (raising(torch.OutOfMemoryError("CUDA out of memory.\nMore")), "needs more memory than there is; lower"),
        (bad_weight, "it computes something else, a "),
    ],
    ids=["exception", "no compiler", "memory", "something else"],
)
def test_a_rung_that_fails_is_left_with_one_line_and_nothing_is_changed(monkeypatch, precision, fail, message):
    trainer, plain = (make_toy_trainer(train={"precision": precision}) for _ in range(2))
    for each in (trainer, plain):
        for _ in range(2):
            each.train_step()
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # of the ladder, not of the compiler
    Failing(trainer, COMPILED, fail)
    warnings = []
    assert select_execution_mode(trainer, [COMPILED, EAGER], warnings.append, nullcontext) == EAGER
    (warning,) = warnings
    assert warning.startswith("the step is not compiled: ") and message in warning and "\n" not in warning
    assert "train.compile=false" in warning
    assert_same_from_here(trainer, plain)


def assert_same_from_here(trainer, plain):
    for _ in range(3):
        trainer.train_step()
        plain.train_step()
    assert trainer.step == plain.step
    state, expected = trainer.state(), plain.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_rung_that_works_is_taken_without_a_word_and_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for optimizer in ("adam", "sgd", "muon"):
        trainer, plain = (make_toy_trainer(train={"optimizer": optimizer}) for _ in range(2))
        said = []
        assert select_execution_mode(trainer, [COMPILED, EAGER], said.append, nullcontext) == COMPILED and not said
        assert_same_from_here(trainer, plain)


def test_ctrl_c_is_obeyed_while_a_rung_is_made():
    trainer = make_toy_trainer()
    Failing(trainer, COMPILED, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        select_execution_mode(trainer, [COMPILED, EAGER], pytest.fail, nullcontext)


def test_all_processes_take_the_lowest_rung_that_one_of_them_reached(monkeypatch):
    class Other(DistributedContext):
        """Another process, which fails where this one does not."""

        def largest(self, numbers):
            return [1] * len(numbers)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    trainer, warnings = make_toy_trainer(), []
    trainer.ranks = Other()
    assert select_execution_mode(trainer, [COMPILED, EAGER], warnings.append, nullcontext) == EAGER
    assert "another process could not" in warnings[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("compiler", ["false", "/nowhere/g++"])
def test_a_compiler_that_is_none_is_one_line_and_the_run_goes_on(tmp_path, compiler):
    command = [sys.executable, "main.py", "--run-dir", str(tmp_path / "run"), *SMALL, "train.compile=true"]
    environment = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: the step is not compiled: ")]
    assert "train.compile=false" in warning and "Traceback" not in done.stderr
    assert run(tmp_path / "plain") == 0
    ours, theirs = metrics(tmp_path / "run"), metrics(tmp_path / "plain")
    assert [entry["loss"] for entry in ours] == [entry["loss"] for entry in theirs]
    # What mends it belongs to the same run.
    assert run(tmp_path / "run", "train.compile=false", "train.cuda_graph=false") == 0


def test_triton_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in explain_failure(RuntimeError("Cannot find a working triton installation."))


def test_the_cause_of_a_broken_capture_is_what_broke_it():
    try:
        try:
            raise ValueError("reads from the device")
        except ValueError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    except RuntimeError as error:
        assert explain_failure(error) == "ValueError: reads from the device"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("steps", [0, 40])
def test_the_check_passes_rounding_and_notices_wrong_gradients_and_losses(precision, steps):
    trainer = make_toy_trainer(train={"precision": precision})
    for _ in range(steps):
        trainer.train_step()
    start, noise = Snapshot(trainer), torch.Generator().manual_seed(0)
    expected = observe(trainer)
    compute = trainer.compute_gradients
    largest = max(range(len(trainer.kernels)), key=lambda i: expected.gradients[i].norm() if i < 3 else 0)
    size = 1e-4 if precision == "float32" else 1e-2

    def rounded(kernel, gradient):
        return gradient * (1 + size * torch.randn(gradient.shape, generator=noise))

    def one(change):
        chosen = trainer.kernels[largest]
        return lambda kernel, gradient: change(gradient) if kernel is chosen else gradient

    changes = {
        "rounding": rounded,
        "all negated": lambda kernel, gradient: -gradient,
        "ten times": lambda kernel, gradient: 10 * gradient,
        "a tenth": lambda kernel, gradient: gradient / 10,
        "one negated": one(lambda gradient: -gradient),
        "one shuffled": one(lambda gradient: gradient.flatten().flip(0).view_as(gradient)),
        "biases and BatchNorm zero": lambda kernel, gradient: gradient if kernel.dim() > 1 else 0 * gradient,
    }
    for name, change in changes.items():
        start.restore()

        def changed(change=change):
            sums = compute()
            for kernel in trainer.model.parameters():
                kernel.grad = change(kernel, kernel.grad)
            return sums

        trainer.compute_gradients = changed
        if name == "rounding":
            compare(observe(trainer), expected, trainer)
        else:
            with pytest.raises(WrongResult, match="computes something else"):
                compare(observe(trainer), expected, trainer)
    trainer.compute_gradients = compute
    for place in range(1, expected.losses.shape[1]):
        losses = expected.losses.clone()
        losses[1, place] *= 1.1
        with pytest.raises(WrongResult):
            compare(expected._replace(losses=losses), expected, trainer)


def test_sigterm_is_obeyed_while_a_rung_is_made():
    with stop_signals() as received:
        received.at_once = True
        with pytest.raises(Interrupted) as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        received.at_once = False
    assert interrupted.value.signal == signal.SIGTERM


def test_a_twin_keeps_what_is_frozen_shared_and_no_kernel():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
            self.scale = torch.nn.Parameter(torch.ones(4, 1, 1))

    model = Odd()
    twin, casts = make_twin(model, torch.bfloat16)
    assert len(casts) == 2 and twin.first.weight is twin.second.weight and twin.first.weight.dtype == torch.bfloat16
    assert twin.scale is model.scale and twin.first.bias is model.first.bias
    assert not twin.frozen.weight.requires_grad and twin.first.weight.requires_grad


def test_a_preview_in_bfloat16_guesses_with_the_weights_of_now():
    trainer, twin = (make_toy_trainer(train={"precision": "bfloat16"}) for _ in range(2))
    for _ in range(3):
        trainer.train_step()
    twin.load_state({name: value.clone() for name, value in trainer.state().items()}, 3)
    assert torch.equal(trainer.preview()["guesses"], twin.preview()["guesses"])


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"optimizer": "sgd", "lr_decay_steps": [5, 20]}},
        {"train": {"optimizer": "sgd", "momentum": 0.0, "nesterov": False}},
        {"train": {"optimizer": "muon", "lr_schedule": "linear", "steps": 40}},
        {"mixmatch": {"guess_with_ema": True, "mixup": "separate", "num_views": 3}},
        {"train": {"precision": "bfloat16"}},
        {"method": "supervised", "supervised": {"alpha": 0.5}},
        {"pseudo_label": {"strong_augmentation": True}},
        {"train": {"lr_schedule": "cosine", "steps": 40}},
        {"method": "remixmatch", "remixmatch": {"num_strong_views": 2, "ramp_up_steps": 10}},
        {"method": "fixmatch", "fixmatch": {"threshold": 0.4}},
        {"method": "freematch", "freematch": {"unlabeled_ratio": 2}},
        {"method": "softmatch", "softmatch": {"unlabeled_ratio": 2}},
    ],
    ids=[
        *("adam", "sgd with decays", "sgd alone", "muon", "K = 3 and EMA guesses", "bfloat16", "supervised"),
        *("strong views", "cosine", "remixmatch", "fixmatch", "freematch", "softmatch"),
    ],
)
def test_the_recorded_step_is_the_plain_one_bit_for_bit(sections):
    recorded, plain = recorded_trainer(CUDA_GRAPH, **sections), recorded_trainer(EAGER, **sections)

    def assert_same():
        state, expected = recorded.state(), plain.state()
        assert state.keys() == expected.keys()
        assert [name for name in state if not torch.equal(state[name], expected[name])] == []

    for step in range(30):
        if step == 8:
            for each in (recorded, plain):
                each.pool.add_labels(torch.tensor([20, 21, 22]), torch.tensor([1, 2, 0]))
        if step == 12:
            ours, theirs = recorded.preview(), plain.preview()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        if step == 16:
            state = {name: value.clone() for name, value in recorded.state().items()}
            for each in (recorded, plain):
                each.load_state({name: value.clone() for name, value in state.items()}, 16)
        recorded.train_step()
        plain.train_step()
        assert_same()
    assert recorded.read_statistics() == plain.read_statistics()
    assert len(recorded.graph.operators) > 100


def test_the_tape_notices_a_schedule_that_is_baked_in():
    recorded, plain = recorded_trainer(CUDA_GRAPH), recorded_trainer(EAGER)
    schedules = recorded.method.loss

    def baked(network, examples, _):
        return schedules(network, examples, recorded.method.schedules(recorded.step))

    recorded.method.loss = baked
    for _ in range(5):
        recorded.train_step()
        plain.train_step()
    assert not torch.equal(recorded.model.stem.weight, plain.model.stem.weight)


def test_the_tape_notices_a_stale_recording_and_a_value_read_back():
    recorded, plain = recorded_trainer(CUDA_GRAPH), recorded_trainer(EAGER)
    for each in (recorded, plain):
        each.train_step()
    state = {name: value.clone() for name, value in plain.state().items()}
    for each in (recorded, plain):
        each.train_step()
        each.train_step()
    launch = recorded._launch
    for each in (recorded, plain):
        each.load_state({name: value.clone() for name, value in state.items()}, 1)
    recorded._launch = launch  # of the optimizer's tensors before
    for each in (recorded, plain):
        each.train_step()
        each.train_step()
    assert not torch.equal(recorded.model.stem.weight, plain.model.stem.weight)
    with pytest.raises(RuntimeError, match="reads from the device"), Tape():
        torch.ones(3).sum().item()


def test_generators_are_registered_where_that_is_needed():
    assert needs_registration("2.11.0+cu130") and not needs_registration("2.14.1") and not needs_registration("3.0.0")


def test_the_collector_is_off_during_a_capture_and_on_again_after():
    import gc

    with pytest.raises(ValueError), no_garbage():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


@pytest.mark.parametrize(
    "capability, built_for, expected",
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 6), ["sm_75", "sm_80"], True),
        ((9, 0), ["sm_75", "sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_100", "compute_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 0), ["compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), ["gfx90a"], False),
        ((8, 9), [], False),
    ],
)
def test_which_gpus_a_build_has_kernels_for(capability, built_for, expected):
    assert has_kernels(capability, built_for) is expected


def test_a_gpu_without_kernels_is_left_with_a_line_or_refused(monkeypatch):
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device: (6, 1),
        "get_device_name": lambda device: "GTX 1080 Ti",
        "get_arch_list": lambda: ["sm_75", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    said = []
    assert choose_device("auto", say=said.append) == CPU
    assert "no kernels for GTX 1080 Ti (compute capability 6.1): training on the CPU" in said[0]
    with pytest.raises(UserError, match=r"no kernels for GTX 1080 Ti .*use device=cpu"):
        choose_device("cuda")


def test_auto_takes_bfloat16_where_the_processor_has_it_and_the_network_is_large(monkeypatch):
    large, small, digits = wide_resnet(28, 2, 10), wide_resnet(10, 1, 10), wide_resnet(10, 1, 10, 1)
    assert count_flop(large, (3, 32, 32)) == pytest.approx(0.4287e9, rel=0.06) and large.training
    assert count_flop(digits, (1, 8, 8)) < LEAST_FLOP_ON_CPU < count_flop(small, (3, 16, 16))
    for feature in ("amx_bf16", "avx512_bf16", None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda feature=feature: {feature: True})
        expected = "bfloat16" if feature else "float32"
        assert choose_precision("auto", CPU, large, (3, 32, 32)) == expected
        assert choose_precision("auto", CPU, digits, (1, 8, 8)) == "float32"
        assert choose_precision("bfloat16", CPU, digits, (1, 8, 8)) == "bfloat16"


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch, capsys):
    short = ["train.steps=8"]
    assert run(tmp_path / "run", *short, "train.precision=bfloat16") == 0
    (tmp_path / "run" / "results.json").unlink()
    sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].unlink()
    capsys.readouterr()
    assert run(tmp_path / "run", *short, "train.precision=float32") == 2
    error = capsys.readouterr().err
    assert "has been trained in bfloat16; train.precision=float32 would make it another run" in error
    assert error.count("\n") == 1
    assert run(tmp_path / "run", *short, "train.precision=auto") == 0
    assert '"precision": "bfloat16"' in (tmp_path / "run" / "results.json").read_text()


def test_busy_says_what_is_done(capsys):
    with Console().busy("compiling the step"):
        pass
    assert capsys.readouterr().out == "compiling the step ...\n"
    with Console(quiet=True).busy("compiling the step"):
        pass
    assert capsys.readouterr().out == ""
