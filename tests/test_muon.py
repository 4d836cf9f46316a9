"""Muon against decompositions, torch's own for matrices, and torch's Adam."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmatch.training.muon import Muon, orthogonalize
from tests.factories import make_toy_trainer


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_sizes(count, rows, columns, scale, seed):
    matrices = torch.randn(count, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    left_to_right = left.mT @ orthogonalize(matrices * scale) @ right.mT
    found = left_to_right.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(torch.diag_embed(found), left_to_right, rtol=0, atol=1e-5)
    assert (found >= 0).all() and (found < 1.21).all()
    relative = sizes / sizes.square().sum(dim=1, keepdim=True).sqrt()
    assert (found[relative > 0.02] > 0.65).all()


def test_a_matrix_of_zeros_has_no_direction():
    assert not orthogonalize(torch.zeros(1, 3, 5)).any()


def test_a_step_of_kernels_is_that_of_torch_muon_and_all_else_adam():
    torch.manual_seed(0)
    kernels = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3, 3, 3), (8, 4, 3, 3), (8, 4, 3, 3))]
    others = [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 7), (5,))]
    unused = torch.nn.Parameter(torch.randn(4, 4, 1, 1))
    ours = Muon(
        [others[0], *kernels, unused, others[1]], lr=0.01, muon_lr_ratio=8, momentum=0.9, fused=False, capturable=False
    )
    matrices = [torch.nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    muon = torch.optim.Muon(matrices, lr=0.08, momentum=0.9, weight_decay=0)  # in bfloat16
    adam = torch.optim.Adam(copies := copy.deepcopy(others), lr=0.01)
    before = unused.detach().clone()
    for _ in range(4):
        for kernel, matrix in zip(kernels, matrices, strict=True):
            length = matrix.data.norm()
            matrix.data *= len(matrix) ** 0.5 / length
            kernel.grad = torch.randn_like(kernel)
            matrix.grad = kernel.grad.flatten(1).clone()
        for other, reference in zip(others, copies, strict=True):
            other.grad = torch.randn_like(other)
            reference.grad = other.grad.clone()
        gradients = [kernel.grad for kernel in kernels]
        for optimizer in (ours, muon, adam):
            optimizer.step()
        assert all(kernel.grad is gradient for kernel, gradient in zip(kernels, gradients, strict=True))
        for kernel, matrix in zip(kernels, matrices, strict=True):
            torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0.01)  # a step moves an entry by 0.08
        for other, reference in zip(others, copies, strict=True):
            assert torch.equal(other, reference)
    assert torch.equal(unused, before)
    for kernel in kernels:  # from length sqrt(n), by 0.08 times at most 1.2 along each of n directions
        assert kernel.norm().item() == pytest.approx(len(kernel) ** 0.5, rel=0.1)


def test_a_trainer_gives_muon_its_learning_rates_and_kernels():
    train = {"optimizer": "muon", "lr": 0.01, "muon_lr": 0.2, "lr_schedule": "linear", "steps": 4, "batch_size": 5}
    trainer = make_toy_trainer(train=train)
    moved = []
    for _ in range(4):
        stem = trainer.model.stem.weight.detach().clone()
        stem *= len(stem) ** 0.5 / stem.norm()
        trainer.train_step()
        moved.append((trainer.model.stem.weight.detach() - stem).norm().item())
    # By about the learning rate times the length of orthonormal rows.
    rates = [length / len(stem) ** 0.5 for length in moved]
    assert rates == pytest.approx([0.2, 0.15, 0.1, 0.05], rel=0.35)
    kinds = {p.dim(): set(trainer.optimizer.state[p]) for p in trainer.model.parameters()}
    adam = {"step", "exp_avg", "exp_avg_sq"}
    assert kinds == {4: {"momentum_buffer"}, 2: adam, 1: adam}
