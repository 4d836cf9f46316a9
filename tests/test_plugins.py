"""A method, a network and a data set in a file outside the package, and the package in another project."""

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mixmatch.cli import pseudo_label, train
from mixmatch.cli.common import import_file
from mixmatch.config import all_keys, load_config, to_yaml
from mixmatch.errors import UserError
from mixmatch.inference import load_model
from mixmatch.methods import METHODS, Method
from mixmatch.methods.base import Examples, Loss, MethodContext
from mixmatch.models import MODELS
from tests.factories import make_toy_trainer
from tests.helpers import ROOT, assert_same_curves, assert_same_run, curves, final, metrics, signal_after

PLUGIN = ROOT / "tests" / "fixtures" / "plugin.py"
FLEXMATCH = PLUGIN.with_name("flexmatch.py")
SETTINGS = [
    "method=toy",
    "device=cpu",
    "model.network=tiny",
    "model.channels=6",
    "model.bn_momentum=0.1",
    "data.dataset=stripes",
    "data.noise=10",
    "data.num_labeled=8",
    "data.num_validation=10",
    "train.steps=200",
    "train.ema_decay=0.9",
    "train.batch_size=8",
    "train.eval_every=20",
    "train.checkpoint_every=20",
    "train.log_every=10",
    "toy.weight=2.0",
]


@pytest.mark.slow
def test_plugins_train_by_the_command_and_resume(tmp_path, registries, monkeypatch):
    def arguments(name):
        return ["--import", str(PLUGIN), "--run-dir", str(tmp_path / name), *SETTINGS]

    done = subprocess.run([sys.executable, "main.py", *arguments("whole")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "toy, stripes 8x8, 2 classes: 8 labeled, 182 unlabeled, 10 validation, 40 test images; tiny" in done.stdout
    scalars = curves(tmp_path / "whole")[0]
    assert len(scalars["train/distance"]) == 20 and scalars["train/toy_weight"][-1] == (200, 2.0)
    assert {"distance", "toy_weight", "guess_accuracy"} <= metrics(tmp_path / "whole")[0].keys()
    frequencies = final(tmp_path / "whole")[0]["method.frequencies"]
    assert frequencies.sum().item() == pytest.approx(1, abs=1e-3)
    assert not torch.equal(frequencies, torch.full((2,), 0.5))
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["test_accuracy"] > 90

    # A run does not import the file by itself.
    with pytest.raises(UserError, match=r"config.yml: method: must be .*, got 'toy'; --import FILE"):
        load_model(tmp_path / "whole")
    signal_after(monkeypatch, 50, signal.SIGTERM)
    assert train.main(arguments("cut")) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train.main(arguments("cut")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_curves(tmp_path / "whole", tmp_path / "cut")
    model = load_model(tmp_path / "whole")
    assert model.classes == ["horizontal", "vertical"] and model.network.conv.out_channels == 6
    stage = ["--run-dir", str(tmp_path / "whole"), "--output-dir", str(tmp_path / "stage"), "pseudo_label.steps=20"]
    assert pseudo_label.main(stage) == 0
    assert "method.frequencies" in final(tmp_path / "stage")[0]


def test_help_lists_imported_keys_and_mistakes_are_one_line(tmp_path, registries, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--import", str(PLUGIN), "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    for key in ("toy.weight", "model.channels", "data.noise", *(key for key, _ in all_keys())):
        assert f"\n  {key} = " in printed
    arguments = ["--import", str(PLUGIN), "--run-dir", str(tmp_path / "run"), *SETTINGS]
    for mistake, message in {
        "toy.wieght=1": "toy.wieght: unknown key; did you mean toy.weight?",
        "toy.weight=-1": "toy.weight: must be greater than or equal to 0, got -1",
        "model.depth=10": "model.depth: unknown key",
        "data.noise=x": "data.noise: must be a valid integer, got 'x'",
    }.items():
        assert train.main([*arguments, mistake]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layer", [torch.nn.BatchNorm2d(6), torch.nn.SyncBatchNorm(6), torch.nn.BatchNorm2d(6, affine=False)]
)
def test_a_network_with_batch_norm_of_pytorch_is_refused(tmp_path, registries, capsys, layer):
    import_file(PLUGIN)

    class Mine(MODELS["tiny"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.body = torch.nn.Sequential(torch.nn.Identity(), layer)

    MODELS["tiny"] = Mine
    assert train.main(["--run-dir", str(tmp_path / "run"), *SETTINGS]) == 2
    error = capsys.readouterr().err
    assert f"tiny.body.1 is a {type(layer).__name__} of PyTorch" in error and error.count("\n") == 1
    assert "mixmatch.models.BatchNorm(channels, settings.bn_momentum)" in error
    assert not list(tmp_path.iterdir())


HEAD = "from mixmatch.methods import METHODS\nfrom mixmatch.methods.base import Method\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (HEAD + "METHODS['run_name'] = METHODS['mixmatch']", "METHODS['run_name']: the name is reserved"),
        (HEAD + "METHODS['train'] = METHODS['mixmatch']", "METHODS['train']: the name is reserved"),
        (
            HEAD + "from mixmatch.settings import Settings\nclass S(Settings):\n    k: int\n"
            "class Mine(Method):\n    settings_type = S\nMETHODS['mine'] = Mine",
            "S: every key needs a default: k: Field required",
        ),
        (HEAD + "METHODS['mine'] = type('Mine', (), {})", "METHODS['mine']: must be a subclass of Method"),
        (HEAD + "METHODS['mine'] = 'mixmatch'", "must be a subclass of Method with a settings_type, got 'mixmatch'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (None, "No such file"),
        ("1 +", "SyntaxError"),
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
    ],
)
def test_a_file_that_cannot_be_imported_gives_one_line(tmp_path, registries, capsys, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert train.main(["--import", str(file), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_postponed_annotations_and_methods_without_settings_work(tmp_path, registries, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Annotated\n"
        "from pydantic import Field\nfrom mixmatch.methods import METHODS, Method\n"
        "from mixmatch.settings import Settings\n\n@dataclass\nclass Thing:\n    a: int = 1\n\n"
        "class S(Settings):\n    rate: Annotated[float, Field(gt=0)] = Field(1.0, description='a rate')\n\n"
        "class Mine(Method[S]):\n    settings_type = S\n\n"
        "class Plain(Method[Settings]):\n    settings_type = Settings\n\n"
        "METHODS |= {'mine': Mine, 'plain': Plain}\n"
    )
    assert train.main(["--import", str(file), "mine.rate=-1"]) == 2
    assert "mine.rate: must be greater than 0, got -1" in capsys.readouterr().err
    assert train.main(["--import", str(file), "plain=3"]) == 2
    assert "plain: must be an empty section" in capsys.readouterr().err


def test_another_network_starts_from_its_own_defaults(registries):
    class Deep(MODELS["wide_resnet"].settings_type):
        depth: int = 3

    class Other(MODELS["wide_resnet"]):
        settings_type = Deep

    MODELS["deep"] = Other
    config = load_config(ROOT / "config.yml", ["model.network=deep", "model.bn_momentum=0.5"])
    assert (config.model.depth, config.model.bn_momentum) == (3, 0.5)
    assert load_config(ROOT / "config.yml", ["model.network=wide_resnet"]).model.depth == 28
    assert [key for key, _ in all_keys()].count("model.depth") == 2


class NoGuesses(Method):
    """Uses unlabeled images without guessing labels, and has no named terms of the loss."""

    settings_type = METHODS["supervised"].settings_type
    num_views = 1
    guesses_labels = False

    def make_examples(self, networks, batch, random):
        return Examples(torch.cat([batch.x, batch.u[0]]), torch.cat([batch.p, batch.p]))

    def loss(self, network, examples, schedules):
        logits = network(examples.images, num_batches=2)
        return Loss(logits[: self.context.batch_size].logsumexp(dim=1).mean() - 0 * logits.sum(), {})


def test_a_method_without_guesses_trains_and_a_wrong_declaration_is_an_error(registries):
    METHODS["no_guesses"] = NoGuesses
    trainer = make_toy_trainer(method="no_guesses")
    trainer.train_step()
    assert trainer.read_metrics().keys() == {"lr", "loss"} and "views" not in trainer.preview()
    for mistake, message in (
        ({"guesses_labels": True}, "returned no guesses; return Loss.*, or set guesses_labels=False"),
        ({"loss_names": ("loss_x",)}, r"returned the terms \[\], but loss_names are \['loss_x'\]"),
        ({"loss": lambda *_: Loss(torch.ones(2), {})}, "returned 'total' that is not a scalar tensor; return its mean"),
        (
            {"guesses_labels": True, "loss": lambda *_: Loss(torch.ones(()), {}, torch.ones(2, 2))},
            r"returned guesses \(2, 2\); they must be \(M, C\) = \(5, 3\)",
        ),
    ):
        METHODS["no_guesses"] = type("Wrong", (NoGuesses,), mistake)
        with pytest.raises(UserError, match=message):
            make_toy_trainer(method="no_guesses").train_step()


@pytest.mark.parametrize("late", [True, False])
def test_a_state_that_is_not_changed_in_place_is_refused_at_the_first_checkpoint(registries, late):
    class Late(NoGuesses):
        def __init__(self, settings, context):
            super().__init__(settings, context)
            if not late:
                self.state["count"] = torch.zeros(())

        def make_examples(self, networks, batch, random):
            self.state["count"] = self.state.get("count", torch.zeros(())) + 1
            return super().make_examples(networks, batch, random)

    METHODS["no_guesses"] = Late
    trainer = make_toy_trainer(method="no_guesses")
    trainer.train_step()
    with pytest.raises(UserError, match=r"its state has new tensors; create it in __init__, and change it in place"):
        trainer.state()


def test_a_method_may_use_strong_views_alone(registries):
    class Strong(NoGuesses):
        num_views, num_strong_views = 0, 2

        def make_examples(self, networks, batch, random):
            assert batch.u.shape[:2] == (0, 5) and batch.u_strong.shape[:2] == (2, 5)
            return Examples(torch.cat([batch.x, batch.u_strong[0]]), batch.p)

    METHODS["no_guesses"] = Strong
    make_toy_trainer(method="no_guesses").train_step()


def test_a_term_more_does_not_prevent_resuming(registries):
    METHODS["no_guesses"] = NoGuesses
    trainer = make_toy_trainer(method="no_guesses")
    trainer.train_step()
    state = trainer.state()
    METHODS["no_guesses"] = type("More", (NoGuesses,), {"loss_names": ("loss_x",)})
    other = make_toy_trainer(method="no_guesses")
    other.load_state(state, trainer.step)
    assert other.metrics.sums.tolist() == [0, 0, 0] and torch.equal(
        other.model.dense.weight, trainer.model.dense.weight
    )


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_of_flexmatch_are_those_of_torchssl(registries, seed):
    """Against a list of classes and a Counter, as TorchSSL's code has them."""
    import_file(FLEXMATCH)
    source = torch.Generator().manual_seed(seed)
    context = MethodContext(
        "abc", torch.ones(3) / 3, 2, 10, 8, 12, 10, (3, 8, 8), torch.device("cpu"), torch.Generator()
    )
    method = METHODS["flexmatch"](METHODS["flexmatch"].settings_type(threshold=0.6), context)
    last = [-1] * 10  # of 12 training images, two are not used unlabeled
    for _ in range(30):
        guesses = (2 * torch.randn(4, 3, generator=source) * torch.tensor([1.0, 2.0, 0.5])).softmax(dim=1)
        index = torch.randperm(10, generator=source)[:4]
        counts = Counter(last)
        learned = [counts[c] / max(counts.values()) for c in range(3)]
        expected = [float(p.max() >= 0.6 * learned[p.argmax()] / (2 - learned[p.argmax()])) for p in guesses]
        assert method.pseudo_label_weights(guesses, index).tolist() == expected
        for i, p in zip(index.tolist(), guesses, strict=True):
            last[i] = int(p.argmax()) if p.max() >= 0.6 else last[i]
    assert (
        method.state["last_class"].tolist() == [*last, -1, -1]
        and 0 < method.extra_loss(guesses, guesses)[1]["lowest_threshold"].item() < 0.6
    )


def test_flexmatch_trains_and_resumes(registries):
    import_file(FLEXMATCH)
    trainers = [make_toy_trainer(method="flexmatch", flexmatch={"threshold": 0.3}) for _ in range(2)]
    for _ in range(4):
        trainers[0].train_step()
    state = {name: value.clone() for name, value in trainers[0].state().items()}
    assert (state["method.last_class"] >= 0).any()
    trainers[1].load_state(state, 4)
    for trainer in trainers:
        trainer.train_step()
    assert_close(*(trainer.state() for trainer in trainers), rtol=0, atol=0)


def test_the_initial_head_depends_on_the_seed_alone(registries):
    class WithHead(NoGuesses):
        def __init__(self, settings, context):
            super().__init__(settings, context)
            self.head = nn.Linear(context.num_features, 2)
            nn.init.normal_(self.head.weight, generator=context.generator)

    METHODS["no_guesses"] = WithHead
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(heads))
        heads.append(make_toy_trainer(method="no_guesses", seed=seed).method.head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_layers_of_any_name_resume_beside_the_head_of_the_method(registries):
    class Named(MODELS["wide_resnet"]):
        def __init__(self, settings, num_classes, shape):
            super().__init__(settings, num_classes, shape)
            self.head = nn.Linear(self.dense.in_features, self.dense.in_features)

        def embed(self, x, num_batches=1, update_statistics=True):
            return self.head(super().embed(x, num_batches, update_statistics))

    MODELS["named"] = Named
    settings = {"model": {"network": "named", "depth": 10, "width": 1}, "method": "remixmatch"}
    trainers = [make_toy_trainer(**settings, remixmatch={"lambda_rotation": 0.5}) for _ in range(2)]
    for _ in range(2):
        trainers[0].train_step()
    trainers[1].load_state({name: value.clone() for name, value in trainers[0].state().items()}, 2)
    for trainer in trainers:
        trainer.train_step()
    assert_close(*(trainer.state() for trainer in trainers), rtol=0, atol=0)


def test_a_weight_of_two_layers_is_saved_under_both_names(tmp_path, registries):
    import_file(PLUGIN)

    class Tied(MODELS["tiny"]):
        def __init__(self, settings, num_classes, shape):
            super().__init__(settings, num_classes, shape)
            width = settings.channels
            self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
            self.second.weight = self.first.weight

        def embed(self, x, num_batches=1, update_statistics=True):
            return self.second(self.first(super().embed(x, num_batches, update_statistics)))

    MODELS["tied"] = Tied
    settings = [setting for setting in SETTINGS if not setting.startswith(("model.network", "train.steps"))]
    settings += ["model.network=tied", "train.steps=20"]
    assert train.main(["--run-dir", str(tmp_path / "run"), *settings]) == 0
    ema = final(tmp_path / "run")[0]["ema.first.weight"]
    for source in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        network = load_model(source).network
        assert network.second.weight is network.first.weight and torch.equal(network.first.weight, ema)


@pytest.mark.parametrize(
    "mistake",
    [
        {"loss_names": ("loss_labeled", "test_loss")},
        {"schedules": lambda self, step: {"test_loss": 1.0}},
        {"loss_names": ("twice",), "schedules": lambda self, step: {"twice": 1.0}},
    ],
)
def test_a_method_with_a_metric_of_the_run_is_refused(registries, mistake):
    METHODS["no_guesses"] = type("Wrong", (NoGuesses,), mistake)
    with pytest.raises(
        UserError, match=r"no_guesses names a loss or schedule '(test_loss|twice)', which exists already"
    ):
        make_toy_trainer(method="no_guesses")


class Adversarial(NoGuesses):
    """Guesses in the loss, where it takes a gradient of its own, and remembers the last guess for each image."""

    guesses_labels = True

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.state = {"last": torch.zeros(context.num_images, len(context.classes))}

    def make_examples(self, networks, batch, random):
        assert batch.x.shape[1:] == self.context.image_shape
        return Examples(torch.cat([batch.x, batch.u[0]]), batch.p, extra=batch.u_index)

    def loss(self, network, examples, schedules):
        size = self.context.batch_size
        with torch.enable_grad():
            noise = torch.zeros_like(examples.images[size:], requires_grad=True)
            logits = network(torch.cat([examples.images[:size], examples.images[size:] + noise]), num_batches=2)
            (direction,) = torch.autograd.grad(logits[size:].logsumexp(dim=1).sum(), noise, retain_graph=True)
        guesses = logits[size:].softmax(dim=1)
        self.state["last"][examples.extra] = guesses.detach()
        return Loss(logits.logsumexp(dim=1).mean() + direction.abs().mean(), {}, guesses)


def test_a_method_takes_gradients_in_its_loss_and_remembers_images(registries):
    METHODS["adversarial"] = Adversarial
    trainer = make_toy_trainer(method="adversarial")
    before = {name: value.clone() for name, value in trainer.state().items()}
    preview = trainer.preview()
    assert preview["guesses"].shape[1] == trainer.dataset.num_classes
    assert all(torch.equal(before[name], value) for name, value in trainer.state().items())
    for _ in range(2):
        trainer.train_step()
    x_index, u_index = trainer.indices.x_index, trainer.indices.u_index
    assert torch.isin(x_index, trainer.dataset.split_labeled).all()
    assert torch.isin(u_index, trainer.dataset.split_unlabeled).all()
    assert (trainer.method.state["last"][u_index].sum(dim=1) - 1).abs().max() < 1e-5


def test_random_layers_of_the_ema_network_draw_from_the_run(registries):
    class Noisy(MODELS["wide_resnet"]):
        def embed(self, x, num_batches=1, update_statistics=True):
            features = super().embed(x, num_batches, update_statistics)
            return features * torch.rand(features.shape, generator=self.generator) if self.training else features

    MODELS["noisy"] = Noisy
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make_toy_trainer(model={"network": "noisy"}, mixmatch={"guess_with_ema": True})
        trainer.train_step()
        trainer.train_step()
        losses.append(trainer.read_metrics()["loss"])
    assert losses[0] == losses[1]


def test_a_run_without_plugins_loads_without_the_import(tmp_path, registries):
    import_file(PLUGIN)
    plain, mine = to_yaml(load_config("digits")), to_yaml(load_config("digits", ["method=toy"]))
    assert "toy" not in plain and "supervised:" not in plain and "\ntoy:\n" in mine and str(PLUGIN) not in mine
    (tmp_path / "plain.yml").write_text(plain)
    del METHODS["toy"]
    assert load_config(tmp_path / "plain.yml") == load_config("digits")
