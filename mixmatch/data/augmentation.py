"""The augmentation of a training step: weak and strong views of labeled and unlabeled images."""

from typing import NamedTuple

from torch import Generator, Tensor

from mixmatch.data.dataset import DataSettings
from mixmatch.data.strong_augmentation import StrongParams, sample_strong_params, strong_augment
from mixmatch.data.weak_augmentation import WeakParams, sample_weak_params, weak_augment
from mixmatch.errors import UserError


class AugmentParams(NamedTuple):
    """The random parameters of a step's views."""

    x: WeakParams  # of B views
    x_strong: StrongParams | None  # of the same views; None if they are weak
    u: WeakParams | None  # of K * M views, view by view; None without unlabeled images
    u_strong: tuple[WeakParams, StrongParams] | None  # of S * M strong views, view by view


class Augmenter:
    """Samples and applies the augmentation of training batches."""

    def __init__(self, image_size: int, flip: bool, settings: DataSettings) -> None:
        """Set the kind of augmentation.

        Args:
            image_size: pixels of an image's side.
            flip: flip half of the views.
            settings: the ``data`` section.

        Raises:
            UserError: if the padding is not less than the side.
        """
        self.flip, self.settings = flip, settings
        self.padding = image_size // 8 if settings.crop_padding == "auto" else settings.crop_padding
        if self.padding >= image_size:
            raise UserError(f"data.crop_padding: must be less than the image's {image_size} pixels, got {self.padding}")

    def sample(
        self,
        num_labeled: int,
        num_unlabeled: int,
        num_strong: int,
        generator: Generator,
        strong_labeled: bool = False,
    ) -> AugmentParams:
        """Sample the parameters of a step.

        Args:
            num_labeled: B.
            num_unlabeled: K * M, weak views of unlabeled images.
            num_strong: S * M, strong views.
            generator: on the device of the images.
            strong_labeled: whether labeled images are strongly augmented.
        """
        x = self._sample_weak(num_labeled, generator)
        x_strong = self._sample_strong(num_labeled, generator) if strong_labeled else None
        u = self._sample_weak(num_unlabeled, generator) if num_unlabeled else None
        u_strong = None
        if num_strong:
            u_strong = self._sample_weak(num_strong, generator), self._sample_strong(num_strong, generator)
        return AugmentParams(x, x_strong, u, u_strong)

    def weak_views(self, images: Tensor, index: Tensor, generator: Generator) -> Tensor:
        """Return a random weak view of each of the images ``index``, (n, c, h, w) in [-1, 1]."""
        return weak_augment(images, index, self._sample_weak(len(index), generator), self.padding)

    def strong_views(self, images: Tensor, index: Tensor, generator: Generator) -> Tensor:
        """Return a random strong view of each of the images ``index``, (n, c, h, w) in [-1, 1]."""
        return strong_augment(self.weak_views(images, index, generator), self._sample_strong(len(index), generator))

    def apply(
        self, images: Tensor, x_index: Tensor, u_index: Tensor, params: AugmentParams
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the views of a batch, float32 in [-1, 1].

        Args:
            images: (count, h, w, c) uint8, the whole data set.
            x_index, u_index: (B,) and (M,) int64, labeled and unlabeled images.
            params: from ``sample``.

        Returns:
            x (B, c, h, w), u (K, M, c, h, w), u_strong (S, M, c, h, w); the latter with K or S = 0 if not wanted.
        """
        x = weak_augment(images, x_index, params.x, self.padding)
        if params.x_strong is not None:
            x = strong_augment(x, params.x_strong)
        u = u_strong = x.new_empty(0, len(u_index), *x.shape[1:])
        if params.u is not None:
            u = self._views(images, u_index, params.u).unflatten(0, (-1, len(u_index)))
        if params.u_strong is not None:
            weak, strong = params.u_strong
            u_strong = strong_augment(self._views(images, u_index, weak), strong).unflatten(0, (-1, len(u_index)))
        return x, u, u_strong

    def _sample_weak(self, n: int, generator: Generator) -> WeakParams:
        return sample_weak_params(
            n,
            self.flip,
            self.padding,
            generator,
            self.settings.rotate,
            self.settings.degrees,
            self.settings.color_jitter,
        )

    def _sample_strong(self, n: int, generator: Generator) -> StrongParams:
        params = sample_strong_params(n, self.settings.strong_operations, generator)
        if self.settings.cutout == "half":
            params.cutout[0] = 1
        return params

    def _views(self, images: Tensor, index: Tensor, params: WeakParams) -> Tensor:
        """Return as many views of each image as there are parameters, view by view."""
        return weak_augment(images, index.repeat(len(params.top) // len(index)), params, self.padding)
