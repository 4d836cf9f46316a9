"""Our methods against numbers that the authors' own code computed.

The fixtures are from google-research/mixmatch 1011a1d, remixmatch f7061eb (without CTAugment) and fixmatch d4985a1, run
in float64 with TensorFlow: WRN-10-1, 16x16 images, 8 labeled images a step. Stored as float32: that limits precision.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mixmatch.data.sampler import BatchIndices
from mixmatch.methods.base import Batch, MethodContext, Networks
from mixmatch.methods.fixmatch import FixMatch, FixMatchSettings
from mixmatch.methods.losses import one_hot
from mixmatch.methods.mixup import MixUpParams
from mixmatch.methods.remixmatch import ReMixMatch, ReMixMatchSettings
from tests.factories import CPU, make_toy_trainer, toy_data, wide_resnet

FIXTURES = Path(__file__).parent / "fixtures"
BATCH_SIZE, NUM_CLASSES = 8, 10


class Authors:
    """A fixture, as float64 tensors in our layout."""

    def __init__(self, method):
        with np.load(FIXTURES / f"authors-{method}.npz") as stored:
            self.values = {
                name: torch.from_numpy(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))
                for name, value in stored.items()
            }

    def group(self, prefix):
        return {name.removeprefix(prefix): value for name, value in self.values.items() if name.startswith(prefix)}

    def network(self):
        network = wide_resnet(10, 1, NUM_CLASSES)
        network.load_state_dict(self.group("before/"))
        return network.train()

    def batch(self, step):
        """Labeled images, their labels as distributions, and the views of unlabeled images, view by view."""
        values = self.group(f"step/{step}/")
        views = values["y"].permute(1, 0, 4, 2, 3)
        return values["x"].permute(0, 3, 1, 2), one_hot(values["l"], NUM_CLASSES), views

    def mixup(self, step):
        values = self.group(f"step/{step}/")
        return MixUpParams(values["perm"], torch.maximum(values["mix"], 1 - values["mix"]))


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def context():
    frequencies = torch.full((NUM_CLASSES,), 1 / NUM_CLASSES)
    names = [str(i) for i in range(NUM_CLASSES)]
    return MethodContext(names, frequencies, BATCH_SIZE, 100, 64, 1000, 900, (3, 32, 32), CPU, torch.Generator())


def make_batch(x, p, views):
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(x, p, views[:1], views[1:], nothing, nothing)


def assert_near(ours, theirs, rtol=1e-5, atol=1e-6):
    assert theirs
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].detach(), value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_mixmatch_equals_the_authors_code():
    authors = Authors("mixmatch")
    trainer = make_toy_trainer(
        data=toy_data(NUM_CLASSES), mixmatch={"ramp_up_steps": 128}, train={"batch_size": BATCH_SIZE}
    )
    trainer.model.load_state_dict(authors.group("before/"))
    trainer.ema_model.load_state_dict(trainer.model.state_dict())
    for step in range(3):
        x, p, views = authors.batch(step)
        indices = BatchIndices(torch.arange(BATCH_SIZE), p.argmax(dim=1), torch.arange(BATCH_SIZE))
        trainer.sampler.batch = lambda *_, indices=indices: indices
        trainer.augmenter.apply = lambda *_, x=x, views=views: (x, views, views[:0])
        trainer.method.sample = lambda _, step=step: authors.mixup(step)
        trainer.train_step()
        if step == 0:
            assert_near(
                {name: value.grad for name, value in trainer.model.named_parameters()}, authors.group("gradient/")
            )
            # Adam's first step is the sign of the gradient, so rounding shows where that is near zero.
            after = authors.group("after/")
            state = trainer.model.state_dict()
            # Their variance is of the batch (biased), PyTorch's an unbiased estimate: 1 in 1,000 * count apart.
            assert_near(state, {name: value for name, value in after.items() if "running" in name}, rtol=1e-4)
            for name in after.keys() - {name for name in after if "running" in name}:
                assert (state[name] - after[name]).abs().median() < 1e-6
        metrics = trainer.read_metrics()
        labeled, unlabeled = authors.values[f"step/{step}/pre"].tolist()
        assert metrics["loss_labeled"] == pytest.approx(labeled, rel=1e-4)
        assert metrics["loss_unlabeled"] == pytest.approx(unlabeled, rel=1e-3)


def test_remixmatch_equals_the_authors_code():
    authors = Authors("remixmatch")
    network = authors.network()
    method = ReMixMatch(ReMixMatchSettings(num_strong_views=2), context())
    x, p, views = authors.batch(0)
    with torch.no_grad():
        examples = method.make_examples(Networks(network, network), make_batch(x, p, views), authors.mixup(0))
        loss = method.loss(network, examples, {"lambda_u": 1.5, "lambda_strong": 0.5})
    ours = {"xe": "loss_labeled", "xeu": "loss_unlabeled", "kl": "loss_strong"}
    assert_near(
        {name: loss.terms[term] for name, term in ours.items()}, {n: authors.values[f"step/0/{n}"] for n in ours}
    )
    torch.testing.assert_close(method.state["predictions"][-1:], authors.values["p_model"], rtol=1e-4, atol=1e-5)


def test_fixmatch_equals_the_authors_code():
    authors = Authors("fixmatch")
    network = authors.network()
    method = FixMatch(FixMatchSettings(unlabeled_ratio=2, threshold=0.2), context())
    kernels = [value for value in network.parameters() if value.dim() > 1]
    others = [value for value in network.parameters() if value.dim() == 1]
    optimizer = torch.optim.SGD(  # as in the authors' code: L2 in the gradient
        [{"params": kernels, "weight_decay": 5e-4}, {"params": others}], lr=0.03, momentum=0.9, nesterov=True
    )
    masks = []
    for step in range(6):
        x, p, views = authors.batch(step)
        examples = method.make_examples(Networks(network, network), make_batch(x, p, views), None)
        loss = method.loss(network, examples, {})
        theirs = {name: authors.values[f"step/{step}/{name}"] for name in ("losses_xe", "losses_xeu", "monitors_mask")}
        ours = ("loss_labeled", "loss_unlabeled", "label_weight")
        assert_near(dict(zip(theirs, (loss.terms[name] for name in ours), strict=True)), theirs)
        for group in optimizer.param_groups:
            group["lr"] = authors.values[f"step/{step}/monitors_lr"].item()
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        masks.append(loss.terms["label_weight"].item())
    assert any(masks)
