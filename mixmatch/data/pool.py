"""The images on the device, and what a training step draws from them: usable by itself, without a trainer.

    pool = Pool(load_data(settings, device), split, device, seed=1)
    generator = torch.Generator(device).manual_seed(step_seed(1, step))
    batch = pool.batch(pool.places(step, 64, 64), pool.draw(64, 64, num_views=2, generator=generator))

Orders are drawn by numpy's legacy RandomState, whose streams are frozen for good, and are functions of (seed, step):
the state of a pool is which images serve as labeled, and nothing else.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from mixmatch.data.dataset import ImageData
from mixmatch.data.split import Split
from mixmatch.data.strong_augmentation import StrongParams, sample_strong_params, strong_augment
from mixmatch.data.weak_augmentation import WeakParams, sample_weak_params, views
from mixmatch.errors import UserError

# Batches are looked up this many steps ahead, so that the host is asked for them rarely.
STEPS_PER_REFILL = 256
REFILL_AT = 225  # first refilled before this step: not on one that logs or evaluates
LABELED_STREAM, UNLABELED_STREAM = 0, 1


class Places(NamedTuple):
    """Which images a step's batch is made of."""

    x_index: Tensor  # (B,) int64, the labeled images
    x_labels: Tensor  # (B,) int64, their labels
    x_added: Tensor  # (B,) bool, whether a label was added to the split's by ``add_labels``
    u_index: Tensor  # (M,) int64, the unlabeled images


class Draws(NamedTuple):
    """The random numbers of a step's batch."""

    x: WeakParams  # of B views
    added: StrongParams | None  # of B views, if images with added labels are distorted
    u: WeakParams | None  # of K * M views, view by view, if there are unlabeled images
    s: tuple[WeakParams, StrongParams] | None  # of S * M strong views, view by view, if the method wants such


class Batch(NamedTuple):
    """What a method trains on in a step: a labeled batch X, and K + S views of each image of an unlabeled batch U."""

    x: Tensor  # (B, c, h, w) float32 in [-1, 1], one view of each labeled image
    p: Tensor  # (B, C), its label as a distribution
    u: Tensor  # (K, M, c, h, w), K views of each unlabeled image
    s: Tensor  # (S, M, c, h, w), S strong views of each


class Pool:
    """Training images with their split, on a device.

    Attributes:
        images: (n, h, w, c) uint8.
        labels: (n,) int64, -1 where the class is not known.
        truth: the same, with -1 also where the class is trained on: what guesses are compared with, for statistics
            alone.
        num_classes: C.
        split_labeled, split_unlabeled: (count,) int64, the split's.
        held_out: images and labels that accuracy is measured on, by name (``validation``, ``test``). Neither is
            trained on, and an empty set is left out.
    """

    def __init__(
        self,
        data: ImageData,
        split: Split,
        device: torch.device,
        seed: int,
        flip: bool | Literal["auto"] = "auto",
        crop_padding: int | Literal["auto"] = "auto",
        distort_added: bool = False,
        rotate: bool = False,
    ) -> None:
        """Put the images on ``device``.

        Args:
            data: the images.
            split: what they are used for.
            device: where they will live.
            seed: of the orders in which they are drawn.
            flip: mirror half of the views; ``auto``: as the data set allows.
            crop_padding: pixels of reflection before the crop; ``auto``: an eighth of the side.
            distort_added: views of images that ``add_labels`` made labeled are strongly distorted.
            rotate: turn views by 0 to 3 quarters.

        Raises:
            UserError: if ``crop_padding`` is not below the side.
        """
        self.device, self.seed, self.distort_added, self.rotate = device, seed, distort_added, rotate
        self.num_classes = len(data.classes)
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.split_labeled, self.split_unlabeled, validation = (
            torch.tensor(indices, dtype=torch.int64, device=device)
            for indices in (split.labeled, split.unlabeled, split.validation)
        )
        self.truth = self.labels.index_fill(0, self.split_labeled, -1)
        self.held_out: dict[str, tuple[Tensor, Tensor]] = {}
        if len(validation):
            self.held_out["validation"] = self.images[validation], self.labels[validation]
        if data.test_images is not None and data.test_labels is not None:
            self.held_out["test"] = data.test_images.to(device), data.test_labels.to(device)
        self.flip = data.flip if flip == "auto" else flip
        size = self.images.shape[1]
        self.padding = size // 8 if crop_padding == "auto" else crop_padding
        if self.padding >= size:
            raise UserError(f"data.crop_padding: must be below the image's {size} pixels, got {self.padding}")
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        self.add_labels(nothing, nothing)

    def add_labels(self, index: Tensor, labels: Tensor) -> None:
        """Let these images serve as labeled from now on, in place of those given before, and not as unlabeled.

        Should no image be left unlabeled, all stay it.

        Args:
            index: (n,) int64, training images, none of them labeled in the split.
            labels: (n,) int64, their labels.
        """
        self.added_index, self.added_labels = index.to(self.device), labels.to(self.device)
        self.labeled = torch.cat([self.split_labeled, self.added_index])
        self.targets = torch.cat([self.labels[self.split_labeled], self.added_labels])
        left = ~torch.isin(self.split_unlabeled, self.added_index)
        self.unlabeled = self.split_unlabeled[left] if left.any() else self.split_unlabeled
        # For each stream what was looked up last, and the orders (STEPS_PER_REFILL, n).
        self._orders: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def class_shares(self) -> Tensor:
        """Return the shares of the classes among the split's labeled images, (C,) float64 on the CPU."""
        counts = self.labels[self.split_labeled].cpu().bincount(minlength=self.num_classes).double()
        return counts / counts.sum()

    def places(self, step: int, num_labeled: int, num_unlabeled: int, rank: int = 0, world: int = 1) -> Places:
        """Look up which images step ``step`` trains on, a function of the seed and the step alone.

        Args:
            step: completed steps.
            num_labeled: B, of all processes together.
            num_unlabeled: M, of all processes together; may be 0.
            rank, world: which share of them is wanted, 0 <= rank < world; world divides both numbers.
        """
        x = self._draw(len(self.labeled), LABELED_STREAM, step, num_labeled, rank, world)
        u = x[:0]
        if num_unlabeled:
            u = self.unlabeled[self._draw(len(self.unlabeled), UNLABELED_STREAM, step, num_unlabeled, rank, world)]
        return Places(self.labeled[x], self.targets[x], x >= len(self.split_labeled), u)

    def draw(
        self, num_labeled: int, num_unlabeled: int, num_views: int, generator: Generator, num_strong: int = 0
    ) -> Draws:
        """Draw what sets the views of a batch apart, in a fixed order.

        Args:
            num_labeled: B.
            num_unlabeled: M, not used if ``num_views`` is 0.
            num_views: K, views of each unlabeled image.
            generator: on this pool's device.
            num_strong: S, strong views of each.
        """
        x = sample_weak_params(num_labeled, self.flip, self.padding, generator, self.rotate)
        added = sample_strong_params(num_labeled, generator) if self.distort_added else None
        u = s = None
        if num_views:
            u = sample_weak_params(num_views * num_unlabeled, self.flip, self.padding, generator, self.rotate)
        if num_strong:
            n = num_strong * num_unlabeled
            s = (
                sample_weak_params(n, self.flip, self.padding, generator, self.rotate),
                sample_strong_params(n, generator),
            )
        return Draws(x, added, u, s)

    def random_views(self, index: Tensor, generator: Generator) -> Tensor:
        """Cut a random view of each of the images ``index``, (n, c, h, w) in [-1, 1]."""
        offsets = sample_weak_params(len(index), self.flip, self.padding, generator, self.rotate)
        return views(self.images, index, offsets, self.padding)

    def batch(self, places: Places, draws: Draws) -> Batch:
        """Cut the views of the images at ``places``."""
        x = views(self.images, places.x_index, draws.x, self.padding)
        if draws.added is not None:
            x = torch.where(places.x_added[:, None, None, None], strong_augment(x, draws.added), x)
        u = s = x[:0].unsqueeze(0)
        if draws.u is not None:
            u = self._views_of(places.u_index, draws.u).unflatten(0, (-1, len(places.u_index)))
        if draws.s is not None:
            offsets, distortions = draws.s
            s = strong_augment(self._views_of(places.u_index, offsets), distortions)
            s = s.unflatten(0, (-1, len(places.u_index)))
        return Batch(x, one_hot(places.x_labels, self.num_classes), u, s)

    def _views_of(self, index: Tensor, offsets: WeakParams) -> Tensor:
        """Cut as many views of each image as there are offsets, view by view."""
        return views(self.images, index.repeat(len(offsets.top) // len(index)), offsets, self.padding)

    def state(self) -> dict[str, Tensor]:
        """Return what ``add_labels`` was given last."""
        return {"index": self.added_index, "labels": self.added_labels}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned.

        Raises:
            ValueError: if it is nothing that ``add_labels`` can have been given.
        """
        index, labels = (state.get(name, torch.zeros(0, 0)) for name in ("index", "labels"))
        ranges = ((index, len(self.images)), (labels, self.num_classes))
        if index.shape != labels.shape or not all(
            values.dim() == 1 and values.dtype == torch.int64 and bool(((values >= 0) & (values < end)).all())
            for values, end in ranges
        ):
            raise ValueError("its pseudo-labels are not of these images")
        self.add_labels(index, labels)

    def _draw(self, count: int, stream: int, step: int, size: int, rank: int, world: int) -> Tensor:
        """Return a rank's share of a step's ``size`` places out of ``count``, (size / world,) in 0 .. count - 1."""
        first = max(0, step - (step - REFILL_AT) % STEPS_PER_REFILL)
        key = first, count, size, rank, world
        if stream not in self._orders or self._orders[stream][0] != key:
            span = first * size, (first + STEPS_PER_REFILL) * size
            order = torch.from_numpy(shuffled_stream(count, *span, self.seed, stream))
            mine = order.view(STEPS_PER_REFILL, world, size // world)[:, rank]
            self._orders[stream] = key, mine.to(self.device)
        return self._orders[stream][1][step - first]


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Map class numbers (n,) int64 to distributions (n, C) of torch's default type."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.get_default_dtype())


def shuffled_stream(count: int, start: int, stop: int, seed: int, stream: int) -> np.ndarray:
    """Return entries ``start`` .. ``stop`` - 1 of an endless stream of shuffles of 0 .. count - 1.

    Shuffle follows shuffle without a gap, so every image is drawn once before any is drawn again, also where
    batches don't divide ``count``. Position in the data is thus the step number and nothing else.

    Args:
        count: how many images, at least 1.
        start, stop: positions in the stream, 0 <= start <= stop.
        seed: the run's.
        stream: tells streams of one seed apart.

    Returns:
        (stop - start,) int64.
    """
    passes = range(start // count, -(-stop // count))
    shuffles = [np.random.RandomState([seed, stream, number]).permutation(count) for number in passes]
    offset = passes.start * count
    return np.concatenate([np.empty(0, np.int64), *shuffles])[start - offset : stop - offset]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of all that training step ``step`` draws on ``rank``: a 64-bit hash of the three.

    Reseeding at every step makes any step repeatable from its number, so that a resumed run on the same kind of
    device goes on with the very draws it would have made.
    """
    return int(np.random.SeedSequence([seed, step] + [rank] * (rank > 0)).generate_state(1, np.uint64)[0])
