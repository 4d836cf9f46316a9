"""MixMatch learns: with 50 labels of the digits it is far better than training on the labels alone."""

import pytest
import torch

import mixmatch
from mixmatch.data import load_data
from mixmatch.training.callbacks import Callback
from tests.factories import CPU

SHORT = [
    *("seed=2", "device=cpu", "data.num_validation=0", "model.bn_momentum=0.1", "mixmatch.ramp_up_steps=100"),
    *("train.steps=300", "train.lr=0.01", "train.ema_decay=0.95", "train.eval_every=300", "train.checkpoint_every=300"),
]


class AverageOfWeights(Callback):
    """Averages the weights of every step, as the EMA should."""

    average = None

    def before_step(self, step, writer):
        weights = {name: weight.detach().double() for name, weight in self.trainer.model.named_parameters()}
        if self.average is None:
            self.average = weights
        else:
            self.average = {name: 0.95 * old + 0.05 * weights[name] for name, old in self.average.items()}
        return []

    def finish(self, step, writer):
        return self.before_step(step, writer)


@pytest.mark.slow
def test_mixmatch_learns_from_unlabeled_images(tmp_path):
    average = AverageOfWeights()
    config = mixmatch.load_config("digits", SHORT)
    results = mixmatch.train(config, tmp_path / "mixmatch", quiet=True, callbacks=[average])
    supervised = mixmatch.load_config("digits", [*SHORT, "method=supervised"])
    baseline = mixmatch.train(supervised, tmp_path / "supervised", quiet=True)
    assert results.test_accuracy > 95
    assert results.test_accuracy > baseline.test_accuracy + 4

    # The saved network has the EMA weights, and predicts an image alone as it does among others.
    model = mixmatch.load_model(tmp_path / "mixmatch")
    saved = dict(model.network.named_parameters())
    for name, weight in average.average.items():
        torch.testing.assert_close(saved[name].double(), weight, rtol=1e-3, atol=1e-4)
    data = load_data(config.data, CPU)
    alone = torch.cat([model.predict_probabilities(image[None]) for image in data.test_images])
    accuracy = 100 * (alone.argmax(dim=1) == data.test_labels).double().mean().item()
    assert accuracy == pytest.approx(results.test_accuracy, abs=0.3)
