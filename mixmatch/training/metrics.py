"""What steps add up on the device, to be read back now and then: losses, and how sure and how right guesses are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixmatch.data.pool import one_hot
from mixmatch.evaluation import effective_classes
from mixmatch.methods.base import Loss


class RunningMetrics:
    """Sums over steps.

    Attributes:
        sums: one tensor on the device, which checkpoints keep: steps, loss, the parts of the loss; with guesses also
            confidence, how many were right of how many known, and how many went to each class.
    """

    def __init__(self, parts: Sequence[str], num_classes: int, device: torch.device) -> None:
        """Start at zero.

        Args:
            parts: names of the parts of the loss.
            num_classes: of the guesses; 0 if there are none.
            device: where the sums are made.
        """
        self.parts, self.num_classes = tuple(parts), num_classes
        self.sizes = {"steps": 1, "loss": 1, **dict.fromkeys(parts, 1)}
        if num_classes:
            self.sizes |= {"confidence": 1, "correct": 1, "known": 1, "guesses": num_classes}
        self.sums = torch.zeros(sum(self.sizes.values()), device=device)

    def of_step(self, loss: Loss, guesses: Tensor | None, truth: Tensor) -> Tensor:
        """Return what a step adds to ``sums``.

        Args:
            loss: of the step.
            guesses: (M, C) of the unlabeled images, if there are any.
            truth: (M,) int64, their classes, -1 where unknown: for these statistics and nothing else.
        """
        sums = [torch.ones_like(loss.total), loss.total, *(loss.parts[name] for name in self.parts)]
        if not self.num_classes:
            return torch.stack(sums).detach()
        if guesses is None:
            raise ValueError("the method guesses no labels: let it say guesses = False")
        confidence, guess = guesses.max(dim=1)
        sums += [confidence.mean(), (guess == truth).sum(), (truth >= 0).sum()]
        return torch.cat([torch.stack(sums), one_hot(guess, self.num_classes).sum(0)]).detach()

    def read(self) -> dict[str, Any]:
        """Return the means over the steps since the last call, and start anew.

        Returns:
            ``loss`` and its parts. With guesses also ``confidence`` (mean largest entry of the guesses),
            ``guess_accuracy`` (percent, None where no class is known), ``guesses`` (share of each class among them),
            the largest of these, ``max_class_frequency``, and ``effective_num_classes``, how many classes equally used would
            spread as widely.
        """
        values = dict(zip(self.sizes, self.sums.clone().cpu().split(list(self.sizes.values())), strict=True))
        self.sums.zero_()
        steps = values["steps"].item()
        means: dict[str, Any] = {name: values[name].item() / steps for name in ("loss", *self.parts)}
        if self.num_classes:
            known, guesses = values["known"].item(), values["guesses"].tolist()
            means["confidence"] = values["confidence"].item() / steps
            means["guess_accuracy"] = 100 * values["correct"].item() / known if known else None
            means["guesses"] = [guess / sum(guesses) for guess in guesses]
            means["max_class_frequency"] = max(means["guesses"])
            means["effective_num_classes"] = effective_classes(means["guesses"])
        return means
