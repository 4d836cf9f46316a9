"""The search for near duplicates against its definition, for which all pairs are compared."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmatch.data.folder import duplicates
from mixmatch.data.folder.duplicates import find_near_duplicates


def compare_all(thumbnails):
    """Groups of pictures that are connected by pairs with an RMS difference of at most 0.15 * max(4, contrast)."""
    if not len(thumbnails):
        return set()
    values = torch.from_numpy(thumbnails).flatten(1).float() - 128
    contrast = values.std(1, correction=0).clamp(min=4)
    group = torch.arange(len(values))
    for i in range(len(values)):
        near = (values[i] - values).square().mean(1) <= (0.15 * torch.minimum(contrast[i], contrast)).square()
        group[torch.isin(group, group[near])] = group[i].item()
    found = {tuple((group == first).nonzero()[:, 0].tolist()) for first in group.tolist()}
    return {members for members in found if len(members) > 1}


def pictures(seed, count, contrast, noise, side=8):
    """Copies of a few pictures, flat ones among them, with noise, changed brightness and changed contrast."""
    random = np.random.RandomState(seed)
    originals = (
        contrast * random.randn(max(1, count // 3), 1, side**2) @ np.linalg.qr(random.randn(side**2, side**2))[0]
    )
    originals[:: random.randint(1, 4)] *= random.choice([0, 0.1, 1])
    chosen = originals[random.randint(0, len(originals), count), 0].reshape(count, side, side)
    change = random.choice([1, 1, 1.08, 1.2], (count, 1, 1))
    brightness = random.choice([128, 128, 129, 255], (count, 1, 1))
    changed = brightness + change * chosen + noise * random.randn(count, side, side)
    return changed.round().clip(0, 255).astype(np.uint8)


def find(thumbnails):
    groups = find_near_duplicates(torch.from_numpy(thumbnails))
    assert groups == sorted(groups)
    assert all(group == sorted(group) for group in groups)
    return {tuple(group) for group in groups}


@pytest.mark.slow
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.integers(0, 3), st.integers(30, 90)),
    st.sampled_from([0.5, 3, 5, 40]),
    st.sampled_from([0, 0.2, 0.6, 1, 5]),
)
def test_all_groups_are_found(seed, count, contrast, noise):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "SMALL_PART", 8)
        patch.setattr(duplicates, "MAX_PAIRS", 64)
        thumbnails = pictures(seed, count, contrast, noise)
        assert find(thumbnails) == compare_all(thumbnails)


@pytest.mark.parametrize("side", [1, 2, 9])
def test_thumbnails_of_other_sizes(side):
    thumbnails = pictures(0, 60, 20, 1, side)
    expected = compare_all(thumbnails)
    assert find(thumbnails) == expected and expected


@pytest.mark.slow
def test_very_many_alike_need_little_memory_and_time(monkeypatch):
    """5,000 white pages with specks are near duplicates of each other: 25 million pairs."""
    random = np.random.RandomState(0)
    thumbnails = random.randint(0, 256, (10_000, 8, 8)).astype(np.uint8)
    thumbnails[::2] = 255 - (random.rand(5_000, 8, 8) < 0.1)
    compared = []
    join = duplicates._join
    monkeypatch.setattr(duplicates, "_join", lambda *edges: compared.append(edges[1].shape[1]) or join(*edges))
    assert find(thumbnails) == {tuple(range(0, 10_000, 2))}
    assert sum(compared) < 3_000_000
