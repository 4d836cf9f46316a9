"""Networks of timm: converted layers against timm's own, weights, fine-tuning, and whole runs."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import main
import predict
from mixmatch.config import build_config, load_config
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from mixmatch.models import build_network
from mixmatch.models.timm_network import ForwardPass, TimmNetwork, convert_layers
from mixmatch.training.execution import COMPILED
from mixmatch.training.messages import describe_frozen, describe_rescaled
from mixmatch.training.optimizer import group_parameters, learning_rate
from tests.factories import make_toy_trainer, toy_data
from tests.helpers import assert_same_run, final, signal_after

timm = pytest.importorskip("timm")

# BatchNorm, BatchNormAct, BatchNorm1d over tokens, and none.
NETWORKS = ["test_resnet", "test_efficientnet", "levit_128s", "test_vit"]
SIZES = {"levit_128s": 224}


def settings_of(architecture, **more):
    return build_config({"model": {"network": "timm", "architecture": architecture, "pretrained": False, **more}}).model


def make(architecture="test_resnet", classes=3, size=32, channels=3, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return build_network(settings_of(architecture, **more), classes, (channels, size, size), generator)


def originals(architecture, size, classes=3):
    """A network of timm, and ours with the same weights, both in float64."""
    torch.manual_seed(1)
    arguments = {"img_size": size} if "vit" in architecture and "levit" not in architecture else {}
    theirs = timm.create_model(architecture, num_classes=0, **arguments)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    ours = make(architecture, classes, size)
    ours.backbone.load_state_dict({k: v for k, v in theirs.state_dict().items() if "num_batches" not in k})
    return theirs.double(), ours.double()


def scaled(network, x):
    """The input of timm's network for ``x`` in [-1, 1]: pixels in [0, 1], minus mean, by standard deviation."""
    config = timm.get_pretrained_cfg(network.settings.architecture)
    mean, std = (torch.tensor(values, dtype=x.dtype).view(3, 1, 1) for values in (config.mean, config.std))
    return ((x + 1) / 2 - mean) / std


@pytest.mark.parametrize("architecture", NETWORKS)
def test_converted_networks_equal_timms(architecture):
    size = SIZES.get(architecture, 48)
    theirs, ours = originals(architecture, size)
    x = torch.rand(4, 3, size, size, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(ours.eval().embed(x), theirs.eval()(scaled(ours, x)), rtol=1e-6, atol=1e-6)

    momentum = 0.2  # of both
    for module in theirs.modules():
        if hasattr(module, "num_batches_tracked"):
            module.momentum = momentum
    for module in ours.modules():
        if hasattr(module, "running_mean"):
            module.momentum = momentum
    a, b = ours.train().embed(x), theirs.train()(scaled(ours, x))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    direction = torch.randn_like(b)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-5, msg=name)
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.backbone.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_concatenated_batches_equal_separate_passes(architecture):
    size = SIZES.get(architecture, 48)
    _, together = originals(architecture, size)
    _, apart = originals(architecture, size)
    x = torch.rand(6, 3, size, size, dtype=torch.float64) * 2 - 1
    separate = [apart(batch, update_statistics=i == 0) for i, batch in enumerate(x.split(2))]
    torch.testing.assert_close(together(x, num_batches=3), torch.cat(separate), rtol=1e-6, atol=1e-6)
    for (name, a), b in zip(together.named_buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_initial_weights_depend_on_the_generator_only():
    """Also where others will replace them: those that do not fit stay."""
    torch.manual_seed(5)
    a = make(seed=1, pretrained=True)
    torch.manual_seed(6)
    b, c = make(seed=1, pretrained=True), make(seed=2, pretrained=True)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    for name in ("backbone.conv1.0.weight", "dense.weight"):
        assert not torch.equal(a.state_dict()[name], c.state_dict()[name])


def test_gray_images():
    assert make(channels=1).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


# Weights of others.


@pytest.fixture
def weights(tmp_path):
    """Files of weights as timm writes them, with the heads of 1,000 and of 3 classes."""
    torch.manual_seed(3)
    files = {}
    for classes in (1000, 3):
        network = timm.create_model("test_vit", num_classes=classes)
        nn.init.normal_(network.head.weight)
        files[classes] = tmp_path / f"{classes}.safetensors"
        save_file(network.state_dict(), files[classes])
    torch.save({"state_dict": network.state_dict()}, tmp_path / "3.pth")
    files["pth"] = tmp_path / "3.pth"
    return files


def test_weights_come_from_a_file_and_the_head_if_it_fits(weights):
    x = torch.rand(2, 3, 160, 160) * 2 - 1
    for name in (1000, 3, "pth"):
        network = make("test_vit", size=160, weights=str(weights[name]))
        read = network.read_pretrained()
        network.load_state_dict(network.state_dict() | read)
        theirs = timm.create_model("test_vit", num_classes=3)
        reference = {k: v for k, v in timm.models.load_state_dict(str(weights[name])).items() if "head." not in k}
        theirs.load_state_dict(reference, strict=False)
        theirs.reset_classifier(0)
        torch.testing.assert_close(network.eval().embed(x), theirs.eval()(scaled(network, x)), rtol=1e-4, atol=1e-4)
        assert ("dense.weight" in read) == (name != 1000)


@pytest.mark.parametrize("architecture", ["levit_128s", "test_resnet", "test_byobnet"])
@pytest.mark.parametrize("classes", [0, 7])
def test_every_weight_of_a_file_is_read(tmp_path, architecture, classes):
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    theirs = timm.create_model(architecture, num_classes=classes)
    save_file(theirs.state_dict(), file)
    network = make(architecture, size=224, weights=str(file))
    read = network.read_pretrained()
    assert read.keys() == {name for name in network.state_dict() if not name.startswith("dense.")}
    assert all(torch.equal(value, theirs.state_dict()[name.removeprefix("backbone.")]) for name, value in read.items())


def test_position_embeddings_are_resampled(weights):
    network = make("test_vit", size=96, weights=str(weights[1000]))
    read = network.read_pretrained()
    assert read["backbone.pos_embed"].shape == network.backbone.pos_embed.shape == (1, 1 + 36, 64)
    source = timm.models.load_state_dict(str(weights[1000]))["pos_embed"]
    corner = read["backbone.pos_embed"][0, 1]
    assert torch.nn.functional.cosine_similarity(corner, source[0, 1], dim=0) > 0.5


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.architecture=resnet5O", "model.architecture: is not a classifier of timm; did you mean resnet50"),
        ("model.architecture=tf_efficientnet_b0_ns", "model.architecture: is not a classifier of timm"),  # deprecated
        (
            "model.architecture=test_vit.in22k",
            "model.architecture: unknown weights; choose one of r160_in1k",
        ),
        ("model.depth=10", "model.depth: unknown key"),
    ],
)
def test_a_network_that_does_not_exist_is_one_line(override, message):
    with pytest.raises(UserError) as caught:
        load_config(None, ["model.network=timm", override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size, more, message",
    [
        (20, {"architecture": "test_vit"}, "data.image_size: test_vit does not take images of 20 pixels"),
        (100, {"architecture": "coatnet_0_224"}, "data.image_size: coatnet_0_224 does not take images of 100 pixels"),
        (32, {"drop_path": 0.1, "architecture": "vgg11"}, "model.drop_path: vgg11 does not support stochastic"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(size, more, message):
    with pytest.raises(UserError) as caught:
        make(size=size, **more)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_files_are_one_line(tmp_path, weights):
    other, damaged, code = tmp_path / "other.safetensors", tmp_path / "damaged.safetensors", tmp_path / "code.pth"
    save_file(timm.create_model("test_resnet").state_dict(), other)
    damaged.write_bytes(weights[3].read_bytes()[:1000])
    torch.save(nn.Linear(2, 2), code)  # unpickling would run code
    for file, message in (
        (tmp_path / "none.pth", "no such file"),
        (other, "cannot be read as weights of test_vit"),
        (damaged, "cannot be read as weights of test_vit"),
        (code, "cannot be read as weights of test_vit"),
    ):
        with pytest.raises(UserError) as caught:
            make("test_vit", size=160, weights=str(file)).read_pretrained()
        assert str(caught.value).startswith(f"model.weights: {file}") and message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^model.pretrained: the weights of test_vit cannot be downloaded \(.*model.weights"
    ):
        make("test_vit", size=160, pretrained=True).read_pretrained()
    assert capfd.readouterr() == ("", "")


def test_a_missing_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model.network: timm is not installed; pip install"):
        load_config(None, ["model.network=timm", "model.architecture=resnet50"])


# Fine-tuning.


def train_settings(**values):
    return build_config({"train": values}).train


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_layer_decay_and_weight_decay_are_those_of_timm(architecture):
    from timm.optim import param_groups_layer_decay

    network = make(architecture, size=160)
    theirs = timm.create_model(architecture, num_classes=3)
    expected = {}
    excluded = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    names = {parameter: name for name, parameter in theirs.named_parameters()}
    for group in param_groups_layer_decay(theirs, 0.05, excluded, layer_decay=0.7):
        for parameter in group["params"]:
            expected[names[parameter]] = group["lr_scale"], group["weight_decay"]
    head = timm.get_pretrained_cfg(architecture).classifier
    settings = train_settings(layer_decay=0.7, weight_decay=0.05, head_lr=0.02, lr=0.002)
    groups = group_parameters(settings, network, nn.Identity())
    ours = {}
    by_parameter = {parameter: name for name, parameter in network.named_parameters()}
    for group in groups:
        decayed = {*group["decayed"]}
        for parameter in group["params"]:
            ours[by_parameter[parameter]] = group["lr_scale"], 0.05 * (parameter in decayed)
    assert len(ours) == len(list(network.parameters()))
    assert ours["dense.weight"] == (10, 0.05) and ours["dense.bias"] == (10, 0)
    backbone = {name: value for name, value in ours.items() if name.startswith("backbone.")}
    for name, (scale, decay) in backbone.items():
        name = name.removeprefix("backbone.")
        assert not name.startswith(f"{head}.")
        scale_of_theirs, decay_of_theirs = expected[name]
        assert scale == pytest.approx(scale_of_theirs), name
        assert decay == decay_of_theirs, name


def test_warmup_rises_linearly():
    settings = train_settings(lr=1.0, warmup_steps=4, steps=10)
    assert [learning_rate(settings, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(settings, 5, freeze_until=math.inf) == 1


def trainer_of(model=None, **sections):
    """A trainer of a network of timm on random images."""
    network = {"network": "timm", "architecture": "test_resnet", "pretrained": False} | (model or {})
    return make_toy_trainer(data=toy_data(size=32), model=network, **sections)


def snapshot(trainer):
    return {name: value.clone() for name, value in trainer.state().items()}


@pytest.mark.parametrize("method", ["mixmatch", "softmatch", "remixmatch", "supervised"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_last_layer_is_trained_while_frozen(method, precision):
    sections = {"method": method, "train": {"batch_size": 4, "precision": precision, "head_lr": 0.01}}
    if method == "softmatch":
        sections["softmatch"] = {"unlabeled_ratio": 2}
    trainer = trainer_of({"freeze_steps": 2}, **sections)
    for module in (*trainer.model.modules(), *trainer.ema_model.modules()):
        if hasattr(module, "running_mean"):  # timm starts the last of a block at 0
            nn.init.ones_(module.weight)
    before = snapshot(trainer)
    trainer.train_step()
    trainer.train_step()
    frozen = snapshot(trainer)
    changed = {name for name, value in before.items() if not torch.equal(value, frozen[name])}
    assert {n for n in changed if n.startswith(("model.", "ema."))} == {
        f"{part}.dense.{name}" for part in ("model", "ema") for name in ("weight", "bias")
    }
    trainer.train_step()
    after = snapshot(trainer)
    changed = {name for name, value in frozen.items() if not torch.equal(value, after[name])}
    assert {f"model.{name}" for name, _ in trainer.model.named_parameters()} <= changed
    assert any("running_mean" in name for name in changed)


def test_freezing_random_weights_is_noted():
    settings = build_config({"model": {"freeze_layers": 4, "freeze_batch_norm": True}}).model
    (note,) = describe_frozen(settings)
    assert note.startswith("note: model.freeze_layers, model.freeze_batch_norm: for pretrained weights, but these")
    assert not describe_frozen(build_config({}).model)


def test_thawed_layers_join_fused_sgd():
    trainer = trainer_of({"freeze_steps": 2}, train={"batch_size": 4, "optimizer": "sgd"})
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # as on a GPU, where it wants momentum of all parameters or of none
    for _ in range(3):
        trainer.train_step()
    assert all("momentum_buffer" in trainer.optimizer.state[parameter] for parameter in trainer.parameters.values())


def test_a_linear_probe_trains_the_last_layer_alone():
    trainer = trainer_of({"freeze_steps": "all"}, train={"batch_size": 4})
    before = snapshot(trainer)
    for _ in range(3):
        trainer.train_step()
    after = snapshot(trainer)
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {name for name in changed if name.startswith("model.")} == {"model.dense.weight", "model.dense.bias"}


def test_the_warmup_begins_again_after_freezing():
    trainer, rates = trainer_of({"freeze_steps": 2}, train={"lr": 1.0, "warmup_steps": 4, "steps": 10}), []
    for step in range(7):
        trainer.step = step
        rates.append(trainer.lr())
    assert rates == [0.25, 0.5, 0.25, 0.5, 0.75, 1, 1]


def test_the_ema_weights_guess_as_a_frozen_network_too():
    trainer = trainer_of({"freeze_steps": 2}, mixmatch={"guess_with_ema": True}, train={"batch_size": 4})
    x = torch.rand(4, 3, 32, 32)
    for frozen in (True, True, False):
        trainer.train_step()
        assert trainer.ema_model.frozen == frozen
        assert not any(parameter.requires_grad for parameter in trainer.ema_model.parameters())
        trainer.model.load_state_dict(trainer.ema_model.state_dict())
        assert torch.equal(trainer.ema_model(x, update_statistics=False), trainer.model(x, update_statistics=False))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_frozen_layers_stay_as_they_are(optimizer, precision):
    train = {"batch_size": 4, "optimizer": optimizer, "precision": precision, "layer_decay": 0.9}
    trainer = trainer_of({"architecture": "test_convnext", "freeze_layers": 2, "freeze_steps": 1}, train=train)
    before, depths = snapshot(trainer), trainer.model.layer_depths()
    for _ in range(3):
        trainer.train_step()
    after = snapshot(trainer)
    unchanged = {name for name in depths if torch.equal(before[f"model.{name}"], after[f"model.{name}"])}
    frozen = {name for name, depth in depths.items() if depth < 2}
    assert frozen and frozen <= unchanged and "dense.weight" not in unchanged
    state = {name for name in depths if any(key.startswith(f"optimizer.model.{name}.") for key in after)}
    assert state == depths.keys() - frozen
    other = trainer_of({"architecture": "test_convnext", "freeze_layers": 2, "freeze_steps": 1}, train=train)
    other.load_state(after, 3)
    assert snapshot(other).keys() == after.keys()


@pytest.mark.parametrize("freeze_steps", [0, 1])
def test_frozen_batch_norm_keeps_its_statistics(freeze_steps):
    trainer = trainer_of({"freeze_batch_norm": True, "freeze_steps": freeze_steps})
    before = snapshot(trainer)
    for _ in range(3):
        trainer.train_step()
    after = snapshot(trainer)
    assert all(torch.equal(after[name], value) for name, value in before.items() if "running" in name)
    assert not torch.equal(after["model.dense.weight"], before["model.dense.weight"])
    assert not torch.equal(after["model.backbone.layer4.0.bn2.weight"], before["model.backbone.layer4.0.bn2.weight"])
    x = torch.rand(6, 3, 32, 32) * 2 - 1
    assert torch.equal(trainer.model.train()(x, num_batches=3), trainer.model.eval()(x))


def test_paths_are_dropped_as_the_rate_says_and_repeatably():
    network = make("test_convnext", size=64, drop_path=0.5).train()
    x = torch.rand(2, 3, 64, 64)
    network.generator = torch.Generator().manual_seed(1)
    first, second = network(x), network(x)
    network.generator.manual_seed(1)
    again = network(x)
    assert torch.equal(first, again) and not torch.equal(first, second)
    with torch.no_grad():  # as labels are guessed
        assert torch.equal(network(x), network.eval()(x))

    rates = [m.rate for m in network.modules() if type(m).__name__ == "StochasticDepth"]
    assert max(rates) == 0.5 and len(rates) == network.num_paths > 0
    layer = next(m for m in network.modules() if type(m).__name__ == "StochasticDepth" and m.rate == 0.5)
    layer.forward_pass.uniform = torch.rand(network.num_paths, 4000, generator=torch.Generator().manual_seed(0))
    dropped = layer(torch.ones(4000, 2, 1, 1))
    assert set(dropped.unique().tolist()) == {0, 2}
    assert dropped.mean().item() == pytest.approx(1, abs=5 * math.sqrt(1 / 4000))
    assert torch.equal(dropped[:, 0], dropped[:, 1])


@pytest.mark.slow
def test_dropout_is_off():
    network = make("vgg11", size=32)
    assert all(module.p == 0 for module in network.modules() if isinstance(module, nn.Dropout))
    ghost = make("ghostnet_100", size=32).train()  # calls the function
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(ghost(x), ghost(x))


def test_muon_says_that_it_rescales_weights():
    network = make("test_resnet")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, (len(module.weight) / module.weight.numel()) ** 0.5)
    assert describe_rescaled(network) == []
    with torch.no_grad():
        next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight.mul_(3)
    assert "rescales convolutions" in describe_rescaled(network)[0]


def test_networks_whose_weights_have_the_same_shapes_are_told_apart():
    of = {name: settings_of(name).beyond_shapes() for name in ("resnet18", "resnet18.a1_in1k", "resnet18.tv_in1k")}
    assert of["resnet18"] == of["resnet18.a1_in1k"] == of["resnet18.tv_in1k"]
    lite = [settings_of(name).beyond_shapes() for name in ("efficientnet_lite0", "tf_efficientnet_lite0")]
    assert lite[0] != lite[1]


def test_no_path_is_dropped_by_default():
    with torch.device("meta"):
        backbone = timm.create_model("swin_tiny_patch4_window7_224")
    assert any(isinstance(module, timm.layers.DropPath) and module.drop_prob for module in backbone.modules())
    assert convert_layers(backbone, settings_of("swin_tiny_patch4_window7_224"), ForwardPass()) == 0


@pytest.mark.parametrize("architecture", ["test_nfnet", "test_vit", "test_efficientnet"])
def test_a_step_in_bfloat16_is_close_to_float32(architecture):
    """Among them convolutions that standardize their weights, and some that pad as TensorFlow does."""

    def loss(precision):
        trainer = trainer_of({"architecture": architecture}, train={"batch_size": 4, "precision": precision})
        trainer.train_step()
        return trainer.read_metrics()["loss"]

    assert loss("bfloat16") == pytest.approx(loss("float32"), rel=0.05)


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones():
    def losses(compiled):
        trainer = trainer_of({"architecture": "test_convnext", "drop_path": 0.3, "freeze_steps": 1})
        if compiled:
            trainer.set_execution_mode(COMPILED)
            trainer.compile()
        for _ in range(3):
            trainer.train_step()
        return trainer.read_metrics()["loss"]

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)


# Whole runs.

RUN = [
    "data.dataset=folder",
    "data.num_labeled=all",
    "data.image_size=64",
    "model.network=timm",
    "model.architecture=test_convnext",
    "train.steps=6",
    "train.batch_size=4",
    "train.eval_every=3",
    "train.checkpoint_every=2",
    "device=cpu",
]


@pytest.fixture
def photos(tmp_path):
    random = np.random.RandomState(0)
    for part, count in (("train", 4), ("test", 2)):
        for shade, name in ((50, "dark"), (200, "light")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(shade - 50, shade + 50, (70, 70, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{i}.png")
    (tmp_path / "photos" / "unlabeled").mkdir()
    for i in range(6):
        Image.fromarray(random.randint(0, 256, (70, 70, 3)).astype(np.uint8)).save(
            tmp_path / "photos" / "unlabeled" / f"{i}.png"
        )
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_run_needs_its_weights_file_only_once(photos, tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_convnext").state_dict(), file)
    more = [f"data.root={photos}", f"model.weights={file}", "model.freeze_steps=3", "model.drop_path=0.2"]
    more += ["train.layer_decay=0.7", "train.head_lr=0.01", "train.warmup_steps=2"]

    def run(name):
        return main.main(["--run-dir", str(tmp_path / name), *RUN, *more])

    pretrained = []
    create = timm.create_model

    def counted(*names, **arguments):
        network = create(*names, **arguments)
        pretrained.append(arguments.get("pretrained"))
        return network

    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", counted)
        assert run("whole") == 0
    assert pretrained.count(True) == 1  # estimates of memory and precision read no weights
    for stop in (2, 4):  # frozen, and not
        name = f"stopped-{stop}"
        with monkeypatch.context() as patch:
            signal_after(patch, stop, 15)
            assert run(name) == 128 + 15
        if stop == 2:
            file.rename(tmp_path / "gone")
        assert run(name) == 0
        assert_same_run(tmp_path / "whole", tmp_path / name)
        if stop == 2:
            (tmp_path / "gone").rename(file)
    file.unlink()
    run_dir = tmp_path / "whole"
    assert predict.main(["--run-dir", str(run_dir), str(photos / "test"), "--output", str(tmp_path / "p.csv")]) == 0
    assert final(run_dir)[0]["optimizer.model.dense.weight.exp_avg"].any()
    model, of_run = load_model(run_dir / "model.safetensors"), load_model(run_dir)
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    assert torch.equal(model.predict_probabilities(pixels), of_run.predict_probabilities(pixels))
    assert isinstance(model.network, TimmNetwork)


def test_images_get_the_networks_own_size():
    model = {"network": "timm", "architecture": "test_convnext"}
    assert build_config({"data": {"dataset": "folder"}, "model": model}).data.image_size == 160


@pytest.mark.slow
def test_export_equals_the_network(photos, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    more = [f"data.root={photos}", "model.pretrained=false", "train.steps=1", "model.drop_path=0.1"]
    assert main.main(["--run-dir", str(tmp_path / "run"), *RUN, *more]) == 0
    assert predict.main(["--run-dir", str(tmp_path / "run"), "--export", str(tmp_path / "m.onnx")]) == 0
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    logits = runtime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(logits), load_model(tmp_path / "run")(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_failed_start_leaves_nothing(photos, tmp_path, capsys):
    more = [f"data.root={photos}", f"model.weights={tmp_path / 'none.pth'}"]
    assert main.main(["--run-dir", str(tmp_path / "run"), *RUN, *more]) == 2
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == f"error: model.weights: {tmp_path / 'none.pth'}: no such file\n"


@pytest.mark.slow
def test_weights_of_another_run_of_the_network_need_no_download(photos, tmp_path, monkeypatch):
    first = [f"data.root={photos}", "model.pretrained=false", "train.steps=1"]
    assert main.main(["--run-dir", str(tmp_path / "first"), *RUN, *first]) == 0
    monkeypatch.setattr(TimmNetwork, "read_pretrained", lambda self: pytest.fail("reads pretrained weights"))
    second = [f"data.root={photos}", f"init_from={tmp_path / 'first'}", "train.steps=1"]
    assert main.main(["--run-dir", str(tmp_path / "second"), *RUN, *second]) == 0
