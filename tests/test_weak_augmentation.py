"""Weak augmentation against NumPy's padding, and the statistics of its samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixmatch.config import build_config
from mixmatch.data.augmentation import Augmenter
from mixmatch.data.dataset import DataSettings
from mixmatch.data.weak_augmentation import (
    WeakParams,
    adjust_colors,
    rotate,
    sample_weak_params,
    to_float,
    weak_augment,
)
from mixmatch.training.build import make_trainer
from tests.factories import CPU, SPLIT, toy_data


def test_to_float_spans_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert to_float(images).flatten().tolist() == pytest.approx([-1, -0.6, 1])


@given(
    st.integers(4, 9), st.integers(4, 9), st.sampled_from([1, 3]), st.integers(0, 3), st.booleans(), st.integers(0, 999)
)
def test_a_view_is_a_crop_of_the_reflected_image(height, width, channels, padding, mirrored, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    index, top, left = rng.integers(3), *rng.integers(0, 2 * padding + 1, 2)
    padded = np.pad(images[index], [(padding, padding), (padding, padding), (0, 0)], mode="reflect")
    expected = padded[top : top + height, left : left + width]
    expected = expected[:, ::-1] if mirrored else expected
    result = weak_augment(
        torch.from_numpy(images),
        torch.tensor([index]),
        WeakParams(torch.tensor([top]), torch.tensor([left]), torch.tensor([mirrored])),
        padding,
    )
    assert result.shape == (1, channels, height, width)
    torch.testing.assert_close(result[0], torch.from_numpy(expected / 127.5 - 1).permute(2, 0, 1).float())


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_rotation(k):
    images = torch.arange(2 * 5 * 5 * 3, dtype=torch.uint8).view(2, 5, 5, 3)
    middle = torch.tensor([0, 0])
    params = WeakParams(middle, middle, torch.tensor([False, False]), torch.tensor([k, 0]))
    result = weak_augment(images, torch.tensor([1, 0]), params, 0)
    expected = np.rot90(images[1].numpy(), k)
    assert torch.equal(result[0], to_float(torch.from_numpy(expected.copy())))
    assert torch.equal(result[1], to_float(images[0]))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_all_eight_symmetries_are_equally_frequent():
    plain = sample_weak_params(4000, True, 2, torch.Generator().manual_seed(1))
    turned = sample_weak_params(4000, True, 2, torch.Generator().manual_seed(1), rotate=True)
    assert plain.rotation is None and all(torch.equal(a, b) for a, b in zip(plain[:3], turned[:3], strict=True))
    counts = (2 * turned.rotation + turned.hflip).bincount(minlength=8)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def drawn(flip, padding, count, seed=0):
    """Recover top, left and mirror of each view from an image whose pixels are all different and say where they are."""
    size = 12
    image = torch.arange(size * size, dtype=torch.uint8).view(1, size, size, 1)
    params = sample_weak_params(count, flip, padding, torch.Generator().manual_seed(seed))
    result = weak_augment(image, torch.zeros(count, dtype=torch.int64), params, padding)
    pixels = ((result + 1) * 127.5).round().long()[:, 0]
    middle = pixels[:, size // 2, size // 2]
    mirrored = pixels[:, size // 2, size // 2 + 1] < middle
    row, column = middle // size, middle % size
    left = torch.where(mirrored, column - (size - 1 - size // 2), column - size // 2)
    return (row - size // 2 + padding).numpy(), (left + padding).numpy(), mirrored.numpy()


@pytest.mark.parametrize("padding", [1, 4])
def test_crops_and_flips_are_uniform_and_independent(padding):
    top, left, mirror = drawn(True, padding, 20000)
    places = 2 * padding + 1
    cells = np.bincount((top * places + left) * 2 + mirror, minlength=2 * places**2)
    assert len(cells) == 2 * places**2  # first and last offset included, none beyond
    assert stats.chisquare(cells).pvalue > 0.001  # jointly uniform: each uniform, and independent


def test_images_of_a_batch_are_augmented_independently():
    top, left, mirror = drawn(True, 4, 20000, seed=1)
    for draws in (top, left, mirror.astype(int)):
        table = np.zeros((draws.max() + 1,) * 2)
        np.add.at(table, (draws[:-1:2], draws[1::2]), 1)  # neighbors in the batch
        assert stats.chi2_contingency(table).pvalue > 0.001


@given(st.lists(st.floats(0, 2), min_size=6, max_size=6), st.sampled_from([1, 3]), st.integers(0, 999))
def test_colors_are_adjusted_as_in_torchvision(factors, channels, seed):
    from torchvision.transforms import functional

    x = 2 * torch.rand(2, channels, 5, 5, generator=torch.Generator().manual_seed(seed)) - 1
    factors = torch.tensor(factors).view(3, 2)
    expected = []
    for image, (brightness, contrast, saturation) in zip(x, factors.T.tolist(), strict=True):
        image = functional.adjust_brightness((image + 1) / 2, brightness)
        image = functional.adjust_saturation(functional.adjust_contrast(image, contrast), saturation)
        expected.append(2 * image - 1)
    torch.testing.assert_close(adjust_colors(x, factors), torch.stack(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("degrees", [-30, 10, 90])
def test_small_rotations_are_those_of_torchvision(degrees):
    from torchvision.transforms import InterpolationMode, functional

    x = 2 * torch.rand(1, 3, 15, 15, generator=torch.Generator().manual_seed(0)) - 1
    expected = functional.rotate(x, degrees, InterpolationMode.BILINEAR)
    result = rotate(x, torch.tensor([np.radians(degrees)], dtype=torch.float32))
    inner = slice(3, 12)  # what does not reach beyond the border, which torchvision fills with zeros
    torch.testing.assert_close(result[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)
    assert result.abs().max() <= 1 and result[..., 0, 0].abs().min() > 0
    with torch.autocast("cpu", torch.bfloat16):  # as in training with bfloat16
        assert torch.equal(rotate(x, torch.tensor([np.radians(degrees)], dtype=torch.float32)), result)


def test_angles_and_colors_are_sampled_in_their_range_and_leave_the_rest_as_it_was():
    def sample(**more):
        return sample_weak_params(4000, True, 2, torch.Generator().manual_seed(1), **more)

    plain, params = sample(), sample(degrees=20, color_jitter=0.4)
    assert plain.angle is None and plain.jitter is None
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], params[:3], strict=True))
    for values, low, high in ((params.angle, -np.radians(20), np.radians(20)), (params.jitter.flatten(), 0.6, 1.4)):
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_views_are_rotated_and_recolored():
    images = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    index, views = torch.arange(4), {}
    for name, more in (("plain", {}), ("rotated", {"degrees": 30}), ("recolored", {"color_jitter": 0.5})):
        augmenter = Augmenter(8, flip=False, settings=DataSettings(crop_padding=0, **more))
        views[name] = augmenter.weak_views(images, index, torch.Generator().manual_seed(1))
    assert torch.equal(views["plain"], to_float(images))
    for name in ("rotated", "recolored"):
        assert views[name].is_contiguous(memory_format=torch.channels_last) and views[name].abs().max() <= 1
        assert all(not torch.equal(a, b) for a, b in zip(views[name], views["plain"], strict=True))


@pytest.mark.parametrize(
    "allowed, flip, flips", [(True, "auto", True), (False, "auto", False), (True, False, False), (False, True, True)]
)
def test_settings_of_augmentation_reach_the_views(allowed, flip, flips):
    config = build_config({"model": {"depth": 10, "width": 0.5}, "data": {"flip": flip, "rotate": True}})
    augmenter = make_trainer(config, replace(toy_data(size=32), flip=allowed), SPLIT, CPU).augmenter
    params = augmenter.sample(200, 0, 0, torch.Generator().manual_seed(0)).x
    assert bool(params.hflip.any()) == flips
    assert params.top.max() == params.left.max() == 8  # 4 pixels on each side
    assert params.rotation.bincount(minlength=4).min() > 0
