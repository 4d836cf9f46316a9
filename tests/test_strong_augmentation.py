"""Strong views: each operation against Pillow's or torchvision's, and the statistics of their draws."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torchvision.transforms import InterpolationMode

from mixmatch.data.augmentation import Augmenter
from mixmatch.data.dataset import DataSettings
from mixmatch.data.strong_augmentation import (
    NAMES,
    OPERATIONS,
    StrongParams,
    apply_operation,
    cutout,
    sample_strong_params,
    strong_augment,
)
from mixmatch.data.weak_augmentation import weak_augment
from tests.factories import make_toy_trainer

PILLOW = {
    "identity": lambda image, value: image,
    "autocontrast": lambda image, value: ImageOps.autocontrast(image),
    "equalize": lambda image, value: ImageOps.equalize(image),
    "brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "solarize": lambda image, value: ImageOps.solarize(image, int(value)),
}
GEOMETRIC = [name for name in OPERATIONS if name not in PILLOW]
# Table 12 of FixMatch's paper. Posterize keeps 4 to 8 bits, each as often: rounded down from these.
RANGES = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.05, 0.95))
RANGES |= {"posterize": (4, 9), "solarize": (0, 256), "rotate": (-30, 30)}
RANGES |= dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def to_levels(pixels):
    """(h, w) or (h, w, 3) uint8 to (1, c, h, w)."""
    return torch.from_numpy(np.array(pixels)).float().reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None]


def apply(name, levels, amount):
    count = len(levels)
    return apply_operation(levels, torch.full((count,), NAMES.index(name)), torch.full((count,), amount))


def value_of(name, amount):
    low, high = RANGES.get(name, (0, 0))
    return low + amount * (high - low)


pictures = st.sampled_from([(9, 7, 3), (8, 8), (5, 6, 3)]).flatmap(
    lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 255))
)


@pytest.mark.parametrize("name", PILLOW)
@given(pixels=pictures, amount=st.integers(0, 999).map(lambda number: number / 1000))
def test_pointwise_operations_are_pillows_within_a_gray_level(name, pixels, amount):
    expected = np.asarray(PILLOW[name](Image.fromarray(pixels), value_of(name, amount)))
    ours = apply(name, to_levels(pixels), amount)
    difference = (ours - to_levels(expected)).abs()
    assert difference.max() <= 1
    if name in ("identity", "equalize", "posterize", "solarize"):
        assert difference.max() == 0
    assert torch.equal(ours, ours.round()) and ours.min() >= 0 and ours.max() <= 255


def torchvisions(name, levels, value):
    side = levels.shape[-1]
    options = {"interpolation": InterpolationMode.BILINEAR}
    levels = levels - 127.5  # so that nothing, which is 0, is gray: theirs weighs a fill twice along the edge
    if name == "rotate":
        return TF.rotate(levels, value, **options) + 127.5
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": [0, 0]}
    if name.startswith("shear"):  # they take an angle
        arguments["shear"][name == "shear_y"] = np.degrees(np.arctan(value))
    else:
        arguments["translate"][name == "translate_y"] = -value * side
    return TF.affine(levels, **arguments, **options) + 127.5


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("amount", [0.0, 0.2, 0.5, 0.9])
def test_geometric_operations_are_torchvisions(name, channels, amount):
    levels = torch.randint(0, 256, (2, channels, 20, 20), generator=seeded()).float()
    value = value_of(name, amount)
    if name.startswith("translate"):  # theirs are whole pixels
        value = round(value * 20) / 20
        low, high = RANGES[name]
        amount = (value - low) / (high - low)
    difference = (apply(name, levels, amount) - torchvisions(name, levels, value)).abs()
    assert difference.max() <= 0.51  # ours are rounded
    assert amount == 0.5 or not torch.equal(apply(name, levels, amount), levels)


def test_each_image_of_a_batch_gets_its_own():
    levels = torch.randint(0, 256, (len(NAMES), 3, 12, 12), generator=seeded()).float()
    operation, amount = torch.arange(len(NAMES)), torch.rand(len(NAMES), generator=seeded(1))
    together = apply_operation(levels, operation, amount)
    for i, name in enumerate(NAMES):
        alone = apply_operation(levels[i : i + 1], operation[i : i + 1], amount[i : i + 1])
        assert torch.equal(together[i], alone[0]), name
    assert torch.equal(together[NAMES.index("identity")], levels[NAMES.index("identity")])


def test_draws_are_uniform_over_operations_and_amounts():
    drawn = sample_strong_params(20000, 2, seeded())
    for operations, amounts in zip(drawn.operation, drawn.magnitude, strict=True):
        assert stats.chisquare(operations.bincount(minlength=14).numpy()).pvalue > 0.001
        assert stats.kstest(amounts.double().numpy(), "uniform").pvalue > 0.001
    assert stats.chi2_contingency(np.histogram2d(*drawn.operation.numpy(), bins=14)[0]).pvalue > 0.001


@pytest.mark.parametrize("num_operations", [2, 3])
def test_strong_views_are_operations_and_a_cutout(num_operations):
    x = torch.rand(40, 3, 16, 16, generator=seeded()) * 2 - 1
    drawn = sample_strong_params(40, num_operations, seeded(1))
    assert len(drawn.operation) == num_operations
    levels = (x * 127.5 + 127.5).round()
    for operation, amount in zip(drawn.operation, drawn.magnitude, strict=True):
        levels = apply_operation(levels, operation, amount)
    y = strong_augment(x, drawn)
    torch.testing.assert_close(y, cutout(levels / 127.5 - 1, drawn.cutout))
    assert y.shape == x.shape and y.abs().max() <= 1
    nothing = StrongParams(torch.zeros_like(drawn.operation), drawn.magnitude, torch.zeros_like(drawn.cutout))
    assert (strong_augment(x, nothing) - x).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(y, strong_augment(x, sample_strong_params(40, num_operations, seeded(1))))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(y, strong_augment(x, drawn))


def test_cutout_blanks_squares_of_up_to_half_the_side():
    blank = cutout(torch.ones(4000, 1, 32, 32), sample_strong_params(4000, 2, seeded()).cutout) < 0.5
    side = blank.any(dim=3).sum(dim=2).float()
    assert side.max() <= 17 and side.min() == 0
    assert side.mean().item() == pytest.approx(8, abs=1)  # uniform up to 16, less what hangs over the edge
    share = blank.float().mean(dim=0)[0]
    assert share[8:24, 8:24].std() / share[8:24, 8:24].mean() < 0.15  # anywhere alike


def test_views_are_of_their_images_and_strong_ones_are_strong():
    images = torch.randint(0, 256, (9, 8, 8, 3), generator=seeded(), dtype=torch.uint8)
    augmenter = Augmenter(8, flip=True, settings=DataSettings(crop_padding=2, strong_operations=3))
    x_index, u_index = torch.tensor([4, 2]), torch.tensor([7, 0, 3])
    params = augmenter.sample(2, 2 * 3, 2 * 3, seeded(), strong_labeled=True)
    x, u, u_strong = augmenter.apply(images, x_index, u_index, params)
    weak, strong = params.u_strong
    assert strong.operation.shape == (3, 6) and not torch.equal(weak.left, params.u.left)
    twice = u_index.repeat(2)
    assert torch.equal(u.flatten(0, 1), weak_augment(images, twice, params.u, 2))
    assert torch.equal(x, strong_augment(weak_augment(images, x_index, params.x, 2), params.x_strong))
    assert torch.equal(u_strong.flatten(0, 1), strong_augment(weak_augment(images, twice, weak, 2), strong))
    for method, expected in (("remixmatch", True), ("fixmatch", False)):
        assert (make_toy_trainer(method=method)._sample()[0].x_strong is not None) == expected


def test_cutout_of_half_the_side_as_in_the_authors_code():
    images, index = torch.full((200, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(200)
    augmenter = Augmenter(32, flip=False, settings=DataSettings(crop_padding=0, cutout="half"))
    params = augmenter.sample(0, 0, 200, seeded())
    assert torch.equal(params.u_strong[1].cutout[0], torch.ones(200, 1))
    blank = cutout(torch.ones(200, 1, 32, 32), params.u_strong[1].cutout) < 0.5
    side = blank.any(dim=3).sum(dim=2)
    assert side.max() == 16 and side.min() >= 8  # half of it may hang over the edge
    _, _, views = augmenter.apply(images, index[:0], index, params)
    assert views.shape == (1, 200, 3, 32, 32)
