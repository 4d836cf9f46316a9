"""The networks: sizes, initialization, and BatchNorm over several batches in one tensor."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mixmatch.config import build_config
from mixmatch.models import BatchNorm, ResNet, build_network
from mixmatch.models.batch_norm import EPSILON
from mixmatch.training.precision import count_flops
from tests.factories import wide_resnet


def resnet(num_classes=10, in_channels=3, **settings):
    network = ResNet(ResNet.settings_type(**settings), num_classes, (in_channels, 32, 32))
    network.initialize(torch.Generator().manual_seed(0))
    return network


def test_wrn_28_2_has_the_papers_parameters():
    assert sum(p.numel() for p in wide_resnet(28, 2, 10).parameters()) == 1_467_610


def test_135_filters_have_26_million_parameters():
    network = wide_resnet(28, 135 / 16, 10)
    assert network.blocks[0].conv1.out_channels == 135
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 26


def test_wrn_28_2_costs_the_papers_flops():
    assert count_flops(wide_resnet(28, 2, 10), (3, 32, 32)) / 1e9 == pytest.approx(0.4287, rel=1e-3)


@pytest.mark.parametrize("name", ["wide_resnet", "resnet"])
def test_weights_depend_on_the_generator_only(name):
    settings = build_config({"model": {"network": name}}).model

    def weights(seed, global_seed):
        torch.manual_seed(global_seed)
        return build_network(settings, 3, (1, 8, 8), torch.Generator().manual_seed(seed)).state_dict()

    a, b, c = weights(1, 0), weights(1, 5), weights(2, 0)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["stem.weight"], c["stem.weight"])


def test_initialization():
    torch.manual_seed(0)
    network = wide_resnet(28, 2, 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(module.weight.mean().item()) < expected / 10
    assert network.dense.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 10)), rel=0.1)
    assert not network.dense.bias.any()


@pytest.mark.parametrize("size, channels", [(8, 1), (16, 3), (33, 3)])
def test_any_size(size, channels):
    assert wide_resnet(10, 1, 7, channels)(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("make", [lambda: wide_resnet(10, 1, 4), lambda: resnet(4, channels=8)], ids=["wrn", "resnet"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_concatenated_batches_equal_separate_passes(make, memory_format):
    torch.manual_seed(0)
    together, apart = make(), make()
    apart.load_state_dict(together.state_dict())
    x = torch.randn(12, 3, 8, 8).contiguous(memory_format=memory_format)
    logits = together(x, num_batches=3)
    passes = [apart(batch, update_statistics=i == 0) for i, batch in enumerate(x.split(4))]
    torch.testing.assert_close(logits, torch.cat(passes), rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(together.named_buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert not torch.equal(a, torch.zeros_like(a)) and not torch.equal(a, torch.ones_like(a))


def test_batch_norm_equals_pytorch():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(6, 0.1), nn.BatchNorm2d(6, eps=1e-3, momentum=0.1)
    x = torch.randn(8, 6, 5, 5) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, num_batches=4), theirs(x))


@pytest.mark.parametrize("make", [lambda: wide_resnet(10, 1, 4), lambda: resnet(4, channels=8)], ids=["wrn", "resnet"])
def test_running_statistics_change_only_when_asked(make):
    network = make()
    before = {name: value.clone() for name, value in network.named_buffers()}
    x = torch.randn(6, 3, 8, 8)
    network(x, num_batches=2, update_statistics=False)
    network.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_resnet_18_is_torchvisions_with_a_small_stem(training):
    ours, theirs = resnet(blocks=[2, 2, 2, 2], stem_stride=1, bn_momentum=0.1), resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = EPSILON
            nn.init.uniform_(module.running_mean, -0.1, 0.1), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2), nn.init.uniform_(module.bias, -0.1, 0.1)
    names = {"conv1": "stem", "bn1": "bn", "fc": "dense"}
    state = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first.startswith("layer"):
            number, _, rest = rest.partition(".")
            rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "bn_shortcut")
            renamed[f"blocks.{2 * int(first[5:]) - 2 + int(number)}.{rest}"] = value
        else:
            renamed[f"{names[first]}.{rest}"] = value
    ours.load_state_dict(renamed)
    ours.double().train(training), theirs.double().train(training)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.bn.running_var, theirs.bn1.running_var)
    assert ours.settings_type(blocks=[2, 2, 2, 2]).display_name() == "ResNet-18-64"


@pytest.mark.parametrize("size, channels", [(4, 1), (28, 1), (33, 3)])
def test_resnet_of_any_size_and_shape(size, channels):
    for settings in ({}, {"blocks": [1], "channels": 3, "stem_stride": 1}, {"blocks": [1, 2, 1, 1, 1], "channels": 2}):
        assert resnet(7, channels, **settings)(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_four_scales_are_the_authors_network_for_stl_10():
    network = wide_resnet(28, 2, 10, scales=4)
    assert [block.conv2.out_channels for block in network.blocks] == [32] * 4 + [64] * 4 + [128] * 4 + [256] * 4
    assert [block.conv1.stride[0] for block in network.blocks] == [1, 1, 1, 1] + [2, 1, 1, 1] * 3
    # Kernels by hand: the stem; of each scale the first block, the three others, the shortcut; then the dense layer.
    kernels = 27 * 16 + 256 * 10
    for before, here in ((16, 32), (32, 64), (64, 128), (128, 256)):
        kernels += 9 * (before * here + 7 * here * here) + before * here
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == kernels
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 10)
    assert (
        "of 4 scales" in network.settings_type(scales=4).display_name()
        and network.settings_type().display_name() == "WRN-28-2"
    )
