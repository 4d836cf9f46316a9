"""The method against hand-computed cases, PyTorch's own functions, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from mixmatch.methods.base import MethodContext
from mixmatch.methods.freematch import FreeMatch, FreeMatchSettings, fairness_loss
from mixmatch.methods.losses import squared_error
from mixmatch.methods.mixmatch import guess_labels, ramp_up, sharpen
from mixmatch.methods.mixup import MixUpParams, interleave_indices, mixup, sample_mixup
from mixmatch.methods.softmatch import SoftMatch, SoftMatchSettings

MODES = ["joint", "labeled", "unlabeled", "separate", "none"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distributions(n, classes, seed=0):
    return torch.rand(n, classes, generator=generator(seed), dtype=torch.float64).softmax(dim=1)


def mixup_of(mode, batch_size, num_views, alpha, source):
    return sample_mixup((num_views + 1) * batch_size, alpha, source, mode, batch_size)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.05, 5))
def test_sharpen_equals_the_definition(weights, temperature):
    p = torch.tensor([weights], dtype=torch.float64) + 1e-3
    p = p / p.sum()
    powers = [value ** (1 / temperature) for value in p[0].tolist()]
    expected = torch.tensor([[power / sum(powers) for power in powers]], dtype=torch.float64)
    torch.testing.assert_close(sharpen(p, temperature), expected, rtol=1e-9, atol=1e-12)


def test_sharpen_survives_certainty_and_low_temperature():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.4, 0.35, 0.25]])
    q = sharpen(p, 0.01)
    torch.testing.assert_close(q[:2], p[:2])
    assert q[2, 0] > 0.99 and q.isfinite().all()


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_softmatch_survives_guesses_that_are_all_alike(momentum):
    context = MethodContext("abc", torch.ones(3) / 3, 4, 10, 8, 9, 9, (3, 8, 8), torch.device("cpu"), torch.Generator())
    method = SoftMatch(SoftMatchSettings(momentum=momentum), context)
    for _ in range(200):
        weights = method.pseudo_label_weights(torch.eye(3)[[1, 1, 1, 1]], torch.arange(4))
    assert weights.tolist() == [1] * 4


def test_the_fairness_loss_is_0_if_no_guess_counts():
    uniform = torch.ones(3) / 3
    assert fairness_loss(distributions(4, 3).float(), torch.zeros(4), uniform, uniform) == 0


class TwoPassModel(nn.Module):
    """Returns its input as logits, and remembers how it was called."""

    def forward(self, x, num_batches=1, update_statistics=True):
        self.call = (len(x), num_batches, update_statistics, torch.is_grad_enabled())
        return x.flatten(1)


def test_guess_is_the_mean_of_softmaxes_without_gradient_or_statistics():
    u = torch.randn(3, 5, 4, 1, 1, generator=generator(), requires_grad=True)  # K = 3, B = 5, C = 4
    model = TwoPassModel()
    guesses = guess_labels(model, u)
    expected = (u[0].flatten(1).softmax(1) + u[1].flatten(1).softmax(1) + u[2].flatten(1).softmax(1)) / 3
    torch.testing.assert_close(guesses, expected.detach())
    assert model.call == (15, 3, False, False)
    assert not guesses.requires_grad


def test_squared_error_is_the_mean_over_examples_and_classes():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    # Probabilities (1/2, 1/2) and (3/4, 1/4): squares 1/4, 1/4, 1/16, 1/16; their mean over 2 x 2 is 5/32.
    assert squared_error(logits, targets).item() == pytest.approx(5 / 32)


@given(st.sampled_from(MODES), st.integers(1, 9), st.integers(1, 4), st.floats(1e-4, 20), st.integers(0, 2**32))
def test_mixup_modes(mode, batch_size, num_views, alpha, seed):
    partner, lam = mixup_of(mode, batch_size, num_views, alpha, generator(seed))
    n = (num_views + 1) * batch_size
    assert sorted(partner.tolist()) == list(range(n))
    assert ((lam >= 0.5) & (lam <= 1)).all()
    if mode != "joint":
        assert (partner[:batch_size] < batch_size).all()
    if mode in ("unlabeled", "none"):
        assert (lam[:batch_size] == 1).all()
    if mode in ("labeled", "none"):
        assert (lam[batch_size:] == 1).all()
    labels = distributions(n, 3)
    mixed = mixup(labels, MixUpParams(partner, lam.double()))
    torch.testing.assert_close(mixed.sum(1), torch.ones(n, dtype=torch.float64))
    # A shuffle mixes in every label with the weight that its partner leaves it.
    returned = torch.zeros_like(labels).index_add_(0, partner, (1 - lam.double())[:, None] * labels[partner])
    torch.testing.assert_close(mixed.sum(0), (lam.double()[:, None] * labels).sum(0) + returned.sum(0))


@pytest.mark.parametrize("alpha", [0.25, 0.75, 1.0, 4.0])
def test_lambda_follows_the_folded_beta_distribution(alpha):
    lam = sample_mixup(20000, alpha, generator()).lam.double().numpy()
    beta = stats.beta(alpha, alpha)
    uniform = beta.cdf(lam) - beta.cdf(1 - lam)
    assert stats.chisquare(np.histogram(uniform, bins=50, range=(0, 1))[0]).pvalue > 0.001


def test_tiny_alpha_gives_no_nan():
    lam = sample_mixup(10000, 1e-4, generator()).lam
    assert lam.isfinite().all() and (lam > 0.99).float().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_partners_are_uniform(mode):
    batch_size, num_views, trials = 4, 2, 6000
    counts = torch.zeros(12, 12)
    source = generator(1)
    for _ in range(trials):
        counts[torch.arange(12), mixup_of(mode, batch_size, num_views, 0.75, source).partner] += 1
    if mode == "joint":
        assert stats.chisquare(counts.flatten()).pvalue > 0.001
    else:
        assert counts[:4, 4:].sum() == 0 == counts[4:, :4].sum()
        assert stats.chisquare(counts[:4, :4].flatten()).pvalue > 0.001
        assert stats.chisquare(counts[4:, 4:].flatten()).pvalue > 0.001


def test_interleave_by_hand():
    # B = 5 in 3 batches: slices of 1, 2, 2; batch 0 swaps slice 1 with batch 1 and slice 2 with batch 2.
    assert interleave_indices(5, 3).view(3, 5).tolist() == [
        [0, 6, 7, 13, 14],
        [5, 1, 2, 8, 9],
        [10, 11, 12, 3, 4],
    ]


@given(st.integers(1, 70), st.integers(1, 6))
def test_interleave_is_its_own_inverse(batch_size, num_batches):
    order = interleave_indices(batch_size, num_batches)
    assert order[order].tolist() == list(range(len(order)))
    assert (order % batch_size == torch.arange(len(order)) % batch_size).all()
    first = (order[:batch_size] // batch_size).bincount(minlength=num_batches)
    assert first.max() - first.min() <= 1


def test_ramp_up_reaches_its_maximum_after_its_steps_and_stays():
    values = [ramp_up(step, 75.0, 16000) for step in (0, 1, 8000, 16000, 1_000_000)]
    assert values == pytest.approx([0, 75 / 16000, 37.5, 75, 75])
    assert ramp_up(0, 75.0, 0) == 75


@pytest.mark.parametrize(
    "limits, kept", [({}, [1, 1, 1, 0]), ({"max_threshold": 0.4}, [1] * 4), ({"min_threshold": 0.8}, [0, 0, 1, 0])]
)
def test_thresholds_of_freematch_stay_in_their_range(limits, kept):
    context = MethodContext("abc", torch.ones(3) / 3, 4, 10, 8, 9, 9, (3, 8, 8), torch.device("cpu"), torch.Generator())
    guesses = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.05, 0.0, 0.95], [0.1, 0.4, 0.5]])
    # Mean confidence 0.6625, mean predictions 0.2125, 0.35, 0.4375: thresholds 0.32, 0.53, 0.66.
    method = FreeMatch(FreeMatchSettings(momentum=0, **limits), context)
    assert method.pseudo_label_weights(guesses, torch.arange(4)).tolist() == kept
