"""One training step against an independent float64 reference, and what a step must not touch."""

from dataclasses import replace

import pytest
import torch

from mixmatch.config import TrainSettings
from mixmatch.data.augmentation import Augmenter
from mixmatch.data.dataset import DataSettings
from mixmatch.data.split import Split
from mixmatch.errors import UserError
from mixmatch.methods.losses import one_hot
from mixmatch.methods.mixup import mixup, sample_mixup
from mixmatch.training.execution import COMPILED
from mixmatch.training.optimizer import learning_rate
from tests.factories import make_toy_trainer, toy_data
from tests.reference import Reference, fairness, fixmatch_weights, freematch_weights, softmatch_weights

MODES = ["joint", "labeled", "unlabeled", "separate", "none"]


class DoubleAugmenter(Augmenter):
    """Returns views in float64, and remembers them and the state of the generator after its samples."""

    def sample(self, num_labeled, num_unlabeled, num_strong, generator, strong_labeled=False):
        params = super().sample(num_labeled, num_unlabeled, num_strong, generator, strong_labeled)
        self.generator_state = generator.get_state()
        return params

    def apply(self, images, x_index, u_index, params):
        self.x, self.u, self.u_strong = (views.double() for views in super().apply(images, x_index, u_index, params))
        return self.x, self.u, self.u_strong

    def mixup(self, mode, num_views, alpha):
        """The MixUp parameters that the method sampled next."""
        generator = torch.Generator().set_state(self.generator_state)
        return sample_mixup(5 * (num_views + 1), alpha, generator, mode, 5)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def double_trainer(**sections):
    trainer = make_toy_trainer(**sections)
    trainer.augmenter = DoubleAugmenter(8, flip=True, settings=DataSettings())
    return trainer


def labels_of(trainer):
    return one_hot(trainer.indices.x_labels, trainer.dataset.num_classes)


def assert_same(trainer, reference, gradients):
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-11)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, reference.state[name], rtol=1e-7, atol=1e-10)
    for name, value in trainer.ema_model.named_parameters():
        torch.testing.assert_close(value, reference.ema[name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    "mode, num_views, guess_with_ema",
    [*((mode, 2, False) for mode in MODES), ("joint", 1, True), ("joint", 3, True), ("none", 1, False)],
)
def test_mixmatch_step_equals_the_reference(float64, mode, num_views, guess_with_ema):
    method = {"mixup": mode, "num_views": num_views, "guess_with_ema": guess_with_ema, "ramp_up_steps": 4}
    method |= {"temperature": 0.7, "alpha": 0.4}
    trainer = double_trainer(mixmatch=method)
    reference = Reference(trainer.model.state_dict(), dict(trainer.model.named_parameters()))
    for step in range(3):
        trainer.train_step()
        views, p, mixup = trainer.augmenter, labels_of(trainer), trainer.augmenter.mixup(mode, num_views, 0.4)

        def losses(self, step=step, views=views, p=p, mixup=mixup):
            return self.mixmatch_losses(
                views.x, p, list(views.u), mixup.partner, mixup.lam, 0.7, 75 * step / 4, guess_with_ema
            )

        gradients, (total, labeled, unlabeled, _) = reference.step(losses)
        assert_same(trainer, reference, gradients)
        metrics = trainer.read_metrics()
        assert metrics["loss"] == pytest.approx(total.item())
        assert metrics["loss_labeled"] == pytest.approx(labeled.item())
        assert metrics["loss_unlabeled"] == pytest.approx(unlabeled.item())


def start_of(method, classes=3):
    """The running means that a method starts with."""
    uniform = torch.full((classes,), 1 / classes)
    return {
        "remixmatch": {"predictions": uniform.repeat(2, 1)},
        "softmatch": {"mean": 1 / classes, "variance": 1.0, "prediction": torch.zeros(classes)},
        "freematch": {"confidence": 1 / classes, "prediction": uniform, "histogram": uniform},
    }.get(method, {})


def assert_same_means(trainer, means):
    assert trainer.method.state.keys() == means.keys()
    for name, value in trainer.method.state.items():
        torch.testing.assert_close(value, torch.as_tensor(means[name], dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_strong, rotation, guess_with_ema", [(1, 0, True), (1, 0.3, False), (3, 0.5, False)])
def test_remixmatch_step_equals_the_reference(float64, num_strong, rotation, guess_with_ema):
    settings = {"num_strong_views": num_strong, "ramp_up_steps": 4, "lambda_u": 1.5, "lambda_strong": 0.7}
    settings |= {"alignment_window": 2, "lambda_rotation": rotation, "guess_with_ema": guess_with_ema}
    settings |= {"temperature": 0.8, "alpha": 0.4}
    split = Split("toy", "", [0, 3, 6, 9, 1, 4, 2], list(range(30)), [])  # 4, 2 and 1 of the classes
    trainer = double_trainer(method="remixmatch", remixmatch=settings, split=split)
    head = {f"head.{name}": value for name, value in trainer.method.head.named_parameters()}
    reference = Reference({**trainer.model.state_dict(), **head}, {**dict(trainer.model.named_parameters()), **head})
    means, shares = start_of("remixmatch"), torch.tensor([4, 2, 1]) / 7
    for step in range(3):
        trainer.train_step()
        views, p, mixup = trainer.augmenter, labels_of(trainer), trainer.augmenter.mixup("joint", num_strong + 1, 0.4)
        weights = (1.5 * step / 4, 0.7 * step / 4)

        def losses(self, views=views, p=p, mixup=mixup, weights=weights):
            batch = views.x, p, views.u[0], list(views.u_strong)
            return self.remixmatch_losses(
                *batch, mixup.partner, mixup.lam, 0.8, shares, means, weights, rotation, guess_with_ema
            )

        gradients, (total, labeled, unlabeled, anchored, turning, _) = reference.step(losses)
        assert_same(trainer, reference, gradients)
        assert len(head) == (2 if rotation else 0)
        for name, parameter in head.items():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-11)
            torch.testing.assert_close(parameter.detach(), reference.state[name], rtol=1e-7, atol=1e-10)
        assert_same_means(trainer, means)
        metrics = trainer.read_metrics()
        expected = {"loss": total, "loss_labeled": labeled, "loss_unlabeled": unlabeled, "loss_strong": anchored}
        if rotation:
            expected["loss_rotation"] = turning
        assert {name: metrics[name] for name in expected} == pytest.approx(
            {name: value.item() for name, value in expected.items()}
        )


@pytest.mark.parametrize(
    "method, settings",
    [
        ("fixmatch", {"threshold": 0.48}),
        ("fixmatch", {"threshold": 0.99}),
        ("softmatch", {"momentum": 0.7}),
        ("softmatch", {"momentum": 0.3, "align": False}),
        ("freematch", {"momentum": 0.7, "fairness": 0.5}),
    ],
)
@pytest.mark.parametrize("ratio", [1, 3])
def test_steps_from_weak_to_strong_views_equal_the_reference(float64, method, settings, ratio):
    settings = {"unlabeled_ratio": ratio, "lambda_u": 0.8, **settings}
    trainer = double_trainer(**{"method": method, method: settings})
    reference = Reference(trainer.model.state_dict(), dict(trainer.model.named_parameters()))
    means, more, used, seen = start_of(method), None, [], []

    def weigh(guesses):
        seen.append(guesses)
        if method == "fixmatch":
            weights = fixmatch_weights(guesses, settings["threshold"])
        elif method == "softmatch":
            weights = softmatch_weights(guesses, means, settings["momentum"], settings.get("align", True))
        else:
            weights = freematch_weights(guesses, means, settings["momentum"])
        used.append(weights.mean().item())
        return weights

    if method == "freematch":

        def more(strong, weights):
            return 0.5 * fairness(strong, weights, means)

    for _ in range(3):
        trainer.train_step()
        views, p = trainer.augmenter, labels_of(trainer)
        assert views.u_strong.shape == (1, 5 * ratio, 3, 8, 8)
        gradients, (total, labeled, unlabeled, extra, _) = reference.step(
            lambda self, v=views, p=p: self.weak_to_strong_losses(v.x, p, v.u[0], v.u_strong[0], weigh, 0.8, more)
        )
        assert_same(trainer, reference, gradients)
        assert_same_means(trainer, means)
        metrics = trainer.read_metrics()
        expected = {"loss": total, "loss_labeled": labeled, "loss_unlabeled": unlabeled}
        assert {name: metrics[name] for name in expected} == pytest.approx(
            {name: value.item() for name, value in expected.items()}
        )
        assert metrics["label_weight"] == pytest.approx(used[-1])
        confidence, guess = seen[-1].max(dim=1)
        index = trainer.indices.u_index
        right = (guess == trainer.dataset.labels[index])[index >= 9]  # those before are labeled
        assert metrics["confidence"] == pytest.approx(confidence.mean().item())
        assert metrics["guess_accuracy"] == pytest.approx(100 * right.double().mean().item())
        if method == "freematch":
            assert 0.5 * metrics["loss_fairness"] == pytest.approx(extra.item())
    if settings.get("threshold") != 0.99:
        assert any(0 < weight < 1 for weight in used)  # some count, some don't


def test_supervised_step_equals_the_reference(float64):
    trainer = double_trainer(method="supervised")
    reference = Reference(trainer.model.state_dict(), dict(trainer.model.named_parameters()))
    for _ in range(3):
        batch = trainer.preview()
        trainer.train_step()
        gradients, _ = reference.step(lambda self, b=batch: self.supervised_losses(b["images"], b["targets"]))
        assert_same(trainer, reference, gradients)


@pytest.mark.parametrize(
    "sections",
    [
        {"mixmatch": {"num_views": 3}},
        {"method": "supervised", "supervised": {"alpha": 0.5}},
        {"method": "remixmatch", "remixmatch": {"num_strong_views": 2}},
        {"method": "remixmatch", "remixmatch": {"num_strong_views": 2, "lambda_rotation": 0.5}},
        {"method": "fixmatch", "fixmatch": {"unlabeled_ratio": 3}},
        {"method": "freematch"},
        {"method": "softmatch"},
    ],
)
def test_forward_equivalents_count_the_passes_of_a_step(sections):
    trainer, passes = make_toy_trainer(**sections), []
    trainer.compute_model.stem.register_forward_hook(
        lambda module, inputs, output: passes.append(len(output) * (3 if output.requires_grad else 1))
    )
    trainer.train_step()
    assert sum(passes) == trainer.method.forward_equivalents()


def test_strong_augmentation_takes_gray_and_color_images():
    for channels in (1, 3):
        make_toy_trainer(data=toy_data(channels=channels), method="fixmatch").train_step()
    with pytest.raises(UserError, match="strong augmentation needs gray or RGB images, these have 4 channels"):
        make_toy_trainer(data=toy_data(channels=4), method="fixmatch")
    make_toy_trainer(data=toy_data(channels=4)).train_step()


def test_a_stage_has_its_own_schedules():
    trainer = make_toy_trainer(
        mixmatch={"lambda_u": 8, "ramp_up_steps": 8}, train={"lr_schedule": "linear", "steps": 20}
    )
    trainer.step = 12
    trainer.start_step = 10
    assert trainer.lr() == pytest.approx(0.002 * 0.8) and trainer.method_schedules() == {"lambda_u": 8}
    trainer.method_start_step = 10
    assert trainer.method_schedules() == {"lambda_u": 2}
    warming_up = TrainSettings(lr=0.1, warmup_steps=4, steps=20)
    assert learning_rate(warming_up, 1) == pytest.approx(0.05)
    assert learning_rate(warming_up, 10, start_step=10) == 0.1  # the weights are warm


@pytest.mark.parametrize("method", ["mixmatch", "remixmatch"])
def test_lambda_u_may_rise_over_all_of_the_run(method):
    trainer = make_toy_trainer(
        **{"method": method, method: {"lambda_u": 8, "ramp_up_steps": None}}, train={"steps": 20}
    )
    assert [trainer.method.schedules(step)["lambda_u"] for step in (0, 5, 20)] == [0, 2, 8]


def test_ema_starts_from_the_model_and_shares_its_statistics():
    trainer = make_toy_trainer()
    for a, b in zip(trainer.ema_model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b
    trainer.train_step()
    model, averaged = dict(trainer.model.named_buffers()), dict(trainer.ema_model.named_buffers())
    assert all(model[name] is averaged[name] for name in model)
    assert model["bn.running_mean"].abs().sum() > 0


def test_sgd_equals_pytorch_and_decays_in_steps():
    settings = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "lr_decay_steps": [2, 3], "batch_size": 5}
    trainer = make_toy_trainer(train=settings)
    copies = [p.detach().clone().requires_grad_() for p in trainer.model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.1, momentum=0.9, nesterov=True)
    rates = []
    for _ in range(4):
        rates.append(trainer.lr())
        trainer.train_step()
        optimizer.param_groups[0]["lr"] = rates[-1]
        for copy, p in zip(copies, trainer.model.parameters(), strict=True):
            copy.grad = p.grad.clone()
        optimizer.step()
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004])
    for copy, p in zip(copies, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(copy, p)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_learning_rate_schedules(optimizer):
    def rates(schedule, **more):
        settings = TrainSettings(optimizer=optimizer, lr=0.4, lr_schedule=schedule, steps=8, **more)
        return [learning_rate(settings, step) for step in (0, 2, 4, 8)]

    assert rates("constant") == [0.4] * 4
    assert rates("linear") == pytest.approx([0.4, 0.3, 0.2, 0])
    # cos(7/64 pi), cos(7/32 pi), cos(7/16 pi)
    assert rates("cosine") == pytest.approx([0.4, 0.4 * 0.9415440652, 0.4 * 0.7730104534, 0.4 * 0.1950903220])
    if optimizer == "sgd":
        assert rates("linear", lr_decay_steps=[4], lr_decay_factor=0.5) == pytest.approx([0.4, 0.3, 0.1, 0])


def test_the_scheduled_learning_rate_reaches_the_optimizer():
    trainer = make_toy_trainer(train={"lr": 0.1, "lr_schedule": "linear", "steps": 4, "batch_size": 5})
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append(float(trainer.optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_preview_shows_the_next_batch_and_changes_nothing():
    trainer, other = make_toy_trainer(), make_toy_trainer()
    shown = trainer.preview()
    assert shown["views"].shape == (2, 5, 3, 8, 8) and shown["guesses"].shape == (5, 3)
    assert shown["images"].shape == (15, 3, 8, 8) and shown["targets"].shape == (15, 3)
    for _ in range(2):
        trainer.train_step()
        trainer.preview()
        other.train_step()
    state, expected = trainer.state(), other.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_advice_after_a_collapse_is_not_what_is_set(averaged):
    trainer = make_toy_trainer(method="remixmatch", remixmatch={"guess_with_ema": averaged})
    assert ("guess_with_ema" in trainer.method.collapse_hint) != averaged


def test_training_continues_exactly_from_its_state():
    trainer, other = make_toy_trainer(), make_toy_trainer()
    for _ in range(3):
        trainer.train_step()
    other.load_state({name: value.clone() for name, value in trainer.state().items()}, trainer.step)
    for _ in range(3):
        trainer.train_step()
        other.train_step()
    state, other = trainer.state(), other.state()
    assert state.keys() == other.keys()
    assert all(state[name].stride() == other[name].stride() for name in state)  # moments stay channels_last
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_labeled_batches_use_every_label_equally():
    trainer = make_toy_trainer(train={"batch_size": 6})
    drawn = []
    for step in range(300):  # 1800 samples of 9 images
        drawn.append(trainer.sampler.batch(trainer.dataset, step, 6, 0).x_index)
    assert torch.cat(drawn).bincount(minlength=9).tolist() == [200] * 9


def test_each_layer_has_its_own_learning_rate_and_decay():
    settings = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "lr": 0.1, "head_lr": 0.5, "layer_decay": 0.5}
    method = {"method": "remixmatch", "remixmatch": {"num_strong_views": 1, "lambda_rotation": 0.5}}
    trainer = make_toy_trainer(train=settings | {"weight_decay": 0.1}, **method)
    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    trainer.train_step()
    assert len([name for name in before if name.startswith("head.")]) == 2
    for name, value in trainer.parameters.items():
        lr = 0.5 if name.startswith(("model.dense.", "head.")) else 0.05
        decay = 1 - 0.1 * lr * (value.dim() > 1)
        torch.testing.assert_close(value.detach(), decay * (before[name] - lr * value.grad))


def test_true_labels_of_unlabeled_images_do_not_affect_training():
    data = toy_data()
    labels = data.labels.clone()
    labels[9:] = -1
    trainer, other = make_toy_trainer(data=data), make_toy_trainer(data=replace(data, labels=labels))
    for _ in range(3):
        trainer.train_step()
        other.train_step()
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    accuracies = trainer.read_metrics()["guess_accuracy"], other.read_metrics()["guess_accuracy"]
    assert 0 <= accuracies[0] <= 100 and accuracies[0] != accuracies[1]


def test_supervised_mixup_mixes_images_and_labels_alike():
    trainer = make_toy_trainer(method="supervised", supervised={"alpha": 0.5})
    trainer.set_inputs()
    _, params = trainer._sample()
    shown, plain = trainer.preview(), make_toy_trainer(method="supervised").preview()
    assert "views" not in shown and (params.lam < 1).any()
    for name in ("images", "targets"):
        torch.testing.assert_close(shown[name], mixup(plain[name], params))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_compiled_step_equals_the_eager_step():
    plain, compiled = make_toy_trainer(), make_toy_trainer()
    compiled.set_execution_mode(COMPILED)
    for _ in range(20):
        plain.train_step()
        compiled.train_step()
        ours, theirs = compiled.read_metrics(), plain.read_metrics()
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
def test_bfloat16_follows_float32_and_keeps_a_float32_state():
    plain, half = make_toy_trainer(), make_toy_trainer(train={"precision": "bfloat16"})
    for _ in range(20):
        plain.train_step()
        half.train_step()
        assert half.read_metrics()["loss"] == pytest.approx(plain.read_metrics()["loss"], rel=0.1)
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.state().values())


def test_bfloat16_gradients_reach_every_weight():
    plain, half = make_toy_trainer(), make_toy_trainer(train={"precision": "bfloat16"})
    plain.train_step()
    half.train_step()
    for (name, ours), theirs in zip(half.model.named_parameters(), plain.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.4 * theirs.grad.norm(), name
