"""Metrics of training steps, summed on the device and read at intervals: losses, confidence and accuracy of guesses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixmatch.errors import UserError
from mixmatch.evaluation import effective_num_classes
from mixmatch.methods.base import Loss
from mixmatch.methods.losses import one_hot


class RunningMetrics:
    """Sums over steps.

    Attributes:
        sums: one tensor on the device, kept in checkpoints: number of steps, loss, terms of the loss; with guesses also
            confidence, how many were right of how many known, and how many went to each class.
    """

    def __init__(self, loss_names: Sequence[str], num_classes: int, device: torch.device) -> None:
        """Start at zero.

        Args:
            loss_names: the terms of the loss.
            num_classes: of the guesses; 0 if the method makes none.
            device: of the sums.
        """
        self.loss_names, self.num_classes = tuple(loss_names), num_classes
        self.sizes = {"steps": 1, "loss": 1, **dict.fromkeys(loss_names, 1)}
        if num_classes:
            self.sizes |= {"confidence": 1, "correct": 1, "known": 1, "guesses": num_classes}
        self.sums = torch.zeros(sum(self.sizes.values()), device=device)

    def of_step(self, loss: Loss, true_labels: Tensor) -> Tensor:
        """Return what a step adds to ``sums``.

        Args:
            loss: of the step.
            true_labels: (M,) int64, -1 where unknown. Only the metrics use them.

        Raises:
            UserError: if the method returned other terms than it names, or no guesses.
        """
        if loss.terms.keys() != {*self.loss_names}:
            raise UserError(f"method: loss returned the terms {[*loss.terms]}, but loss_names are {[*self.loss_names]}")
        for name, value in {"total": loss.total, **loss.terms}.items():
            if not isinstance(value, Tensor) or value.dim():
                raise UserError(f"method: loss returned {name!r} that is not a scalar tensor; return its mean")
        sums = [torch.ones_like(loss.total), loss.total, *(loss.terms[name] for name in self.loss_names)]
        if not self.num_classes:
            return torch.stack(sums).detach()
        if loss.guesses is None:
            raise UserError("method: loss returned no guesses; return Loss(..., guesses), or set guesses_labels=False")
        if loss.guesses.shape != (shape := (len(true_labels), self.num_classes)):
            raise UserError(f"method: loss returned guesses {tuple(loss.guesses.shape)}; they must be (M, C) = {shape}")
        confidence, guess = loss.guesses.max(dim=1)
        sums += [confidence.mean(), (guess == true_labels).sum(), (true_labels >= 0).sum()]
        return torch.cat([torch.stack(sums), one_hot(guess, self.num_classes).sum(0)]).detach()

    def read(self) -> dict[str, Any]:
        """Return the means over the steps since the last call, and reset them.

        Returns:
            ``loss`` and its terms. With guesses also ``confidence`` (mean maximum of the guesses), ``guess_accuracy``
            (percent; None if no class is known), ``guesses`` (frequency of each class among them),
            ``max_class_frequency``, and ``effective_num_classes`` (exp of the entropy of the frequencies).
        """
        values = dict(zip(self.sizes, self.sums.clone().cpu().split(list(self.sizes.values())), strict=True))
        self.sums.zero_()
        steps = values["steps"].item()
        means: dict[str, Any] = {name: values[name].item() / steps for name in ("loss", *self.loss_names)}
        if self.num_classes:
            known, guesses = values["known"].item(), values["guesses"].tolist()
            means["confidence"] = values["confidence"].item() / steps
            means["guess_accuracy"] = 100 * values["correct"].item() / known if known else None
            means["guesses"] = [guess / sum(guesses) for guess in guesses]
            means["max_class_frequency"] = max(means["guesses"])
            means["effective_num_classes"] = effective_num_classes(means["guesses"])
        return means
