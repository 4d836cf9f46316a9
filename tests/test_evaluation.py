"""Accuracy, confusion matrix, recalls and the effective number of classes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from mixmatch import evaluation
from mixmatch.cli.prediction_table import describe_accuracy
from mixmatch.data import stored_images
from mixmatch.data.stored_images import StoredImages
from mixmatch.evaluation import (
    balanced_accuracy,
    class_recalls,
    confusion_matrix,
    effective_num_classes,
    evaluate_predictions,
)
from mixmatch.methods.base import Loss
from mixmatch.training.metrics import RunningMetrics
from tests.helpers import CPU


def test_predictions_are_compared_with_the_true_classes():
    probabilities = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0.3, 0.7, 0]])
    evaluation = evaluate_predictions(probabilities, torch.tensor([0, 0, 0, 1]))
    assert evaluation.accuracy == 75
    assert evaluation.loss == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.7]).mean(), rel=1e-6)
    assert evaluation.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert class_recalls(evaluation.confusion) == [pytest.approx(200 / 3), 100, None]


def test_the_loss_of_a_class_without_probability_is_finite():
    assert 80 < evaluate_predictions(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).loss < 100


@pytest.mark.parametrize("stored", [False, True])
def test_images_of_several_batches_keep_their_order(monkeypatch, tmp_path, stored):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    images, rows = torch.from_numpy(pixels), np.arange(40)
    if stored:
        images = StoredImages(tmp_path / "pixels", rows, (4, 4, 1), np.zeros((40, 16), np.uint8))
    monkeypatch.setitem(evaluation.BATCH_PIXELS, "cpu", 3 * 16)
    monkeypatch.setattr(stored_images, "BYTES_AT_ONCE", 7 * 16)
    expected = torch.from_numpy(pixels.reshape(40, 16)).float() / 127.5 - 1
    torch.testing.assert_close(evaluation.compute_outputs(nn.Flatten(), images, CPU), expected)
    index = torch.tensor([39, 0, 5, 5, 7, 20, 21])
    torch.testing.assert_close(evaluation.compute_outputs(nn.Flatten(), images, CPU, index), expected[index])
    assert np.array_equal(stored_images.to_memory(images, CPU).numpy(), pixels)


def test_balanced_accuracy_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 5, (2, 200))
    confusion = confusion_matrix(torch.tensor(true), torch.tensor(predicted), 7)
    assert confusion.shape == (7, 7) and confusion.sum() == 200
    assert balanced_accuracy(confusion) == pytest.approx(100 * balanced_accuracy_score(true, predicted))


def test_effective_number_of_classes():
    assert effective_num_classes([5, 5, 0, 5]) == pytest.approx(3)
    assert effective_num_classes([1.0, 0.0]) == 1


def test_metrics_of_guesses_by_hand():
    metrics = RunningMetrics(["loss_labeled"], 3, torch.device("cpu"))
    guesses = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.0, 0.1, 0.9]])
    for total, true_labels in ((1.0, [0, 1, -1, 2]), (3.0, [1, -1, -1, 2])):
        loss = Loss(torch.tensor(total), {"loss_labeled": torch.tensor(total / 2)}, guesses)
        metrics.sums += metrics.of_step(loss, torch.tensor(true_labels))
    means = metrics.read()
    assert means.pop("guesses") == [0.5, 0.25, 0.25]
    expected = {"loss": 2, "loss_labeled": 1, "confidence": 0.7, "guess_accuracy": 80, "max_class_frequency": 0.5}
    assert means == pytest.approx(expected | {"effective_num_classes": 2**1.5})
    assert not metrics.sums.any()


def test_precision_and_recall_by_hand():
    first, _, *rows = describe_accuracy([(0, 0), (0, 1), (0, 1), (1, 1)], ["cat", "dog"]).splitlines()
    assert "accuracy 50.00% of 4 files" in first and "balanced accuracy 66.67%" in first
    expected = [["cat", "1.000", "0.333", "0.500", "3"], ["dog", "0.333", "1.000", "0.500", "1"]]
    assert [row.split() for row in rows] == expected
