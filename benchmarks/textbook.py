"""The training loop as public implementations write it, and measures that make it faster; for benchmarks/step.py."""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from mixmatch.data.augmentation import Augmenter
from mixmatch.data.dataset import DataSettings
from mixmatch.models import Network, WideResNet, build_network

CLASSES = 10
# Each measure is added to the textbook loop on top of those before it.
MEASURES = {
    "device data": "views cropped in one gather from the data set on the device, no loader",
    "one pass": "one forward pass guesses all views, another one trains all K + 1 batches",
    "channels_last": "weights and images in channels_last order",
    "multi-tensor": "EMA and weight decay for all tensors at once, losses stay on the device, fused Adam on a GPU",
}


def make_network(options: argparse.Namespace) -> Network:
    """Return the network that is timed."""
    settings = WideResNet.settings_type(depth=options.depth, width=options.width)
    return build_network(settings, CLASSES, (3, 32, 32), torch.Generator().manual_seed(1))


class TwoTransforms:
    """Apply a transform several times, for as many views."""

    def __init__(self, transform: Callable, times: int) -> None:
        self.transform, self.times = transform, times

    def __call__(self, image: object) -> list:
        """Return the views."""
        return [self.transform(image) for _ in range(self.times)]


class PilImages(torch.utils.data.Dataset):
    """Images one by one, as PIL images, transformed."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable) -> None:
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def textbook_step(
    measures: list[str], images: torch.Tensor, labels: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return a step as public implementations write it, with some of ``MEASURES``; and a function for its last loss.

    Without measures: image-by-image transforms in DataLoaders with workers, a forward pass for each view and each
    interleaved batch, float32 (TF32 where available), a synchronization for each logged loss, EMA and weight decay
    tensor by tensor.
    """
    batch_size, views, on_gpu = options.batch_size, options.num_views, device.type == "cuda"
    resident, joined, last, multi = (measure in measures for measure in MEASURES)
    order_in_memory = torch.channels_last if last else torch.contiguous_format
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if resident:
        batches_of_images = views_on_device(images.to(device), labels.to(device), options)
    else:
        batches_of_images = views_from_loaders(images, labels, options)
    model = make_network(options).to(device, memory_format=order_in_memory)
    ema_model = make_network(options).to(device)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002, fused=multi and on_gpu)
    logged = {"loss": math.nan, "steps": 0}

    def step() -> None:
        x, y, u = next(batches_of_images)
        x = x.to(device, memory_format=order_in_memory)
        u = [view.to(device, memory_format=order_in_memory) for view in u]
        y = F.one_hot(y.to(device), CLASSES).float()
        with torch.no_grad():
            if joined:
                logits = model(torch.cat(u), num_batches=views, update_statistics=False)
                p = logits.softmax(dim=1).unflatten(0, (views, batch_size)).mean(dim=0)
            else:
                p = sum(torch.softmax(model(view, update_statistics=False), dim=1) for view in u) / views
            q = p**2 / (p**2).sum(dim=1, keepdim=True)
        inputs, targets = torch.cat([x, *u]), torch.cat([y] + [q] * views)
        lam = torch.distributions.Beta(0.75, 0.75).sample((len(inputs),)).to(device)
        lam = torch.max(lam, 1 - lam)
        order = torch.randperm(len(inputs), device=device)
        inputs = lam.view(-1, 1, 1, 1) * inputs + (1 - lam.view(-1, 1, 1, 1)) * inputs[order]
        targets = lam.view(-1, 1) * targets + (1 - lam.view(-1, 1)) * targets[order]
        if joined:
            logits = model(inputs, num_batches=views + 1, update_statistics=True)
        else:
            batches = inputs.split(batch_size)
            logits = torch.cat([model(batch, update_statistics=i == 0) for i, batch in enumerate(batches)])
        loss_x = -(targets[:batch_size] * F.log_softmax(logits[:batch_size], dim=1)).sum(dim=1).mean()
        loss_u = ((torch.softmax(logits[batch_size:], dim=1) - targets[batch_size:]) ** 2).mean()
        loss = loss_x + 75 * min(1, logged["steps"] / 16000) * loss_u
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_ema_and_decay(model, ema_model, weights if multi else None)
        logged["loss"] = loss.detach()
        if not multi:
            loss.item(), loss_x.item(), loss_u.item()
        logged["steps"] += 1

    return step, lambda: float(logged["loss"])


@torch.no_grad()
def update_ema_and_decay(model: nn.Module, ema_model: nn.Module, weights: list[nn.Parameter] | None) -> None:
    """Update the EMA and decay ``weights``, each in one operation; or all weights tensor by tensor."""
    if weights is not None:
        torch._foreach_mul_(weights, 1 - 0.02 * 0.002)
        torch._foreach_lerp_(list(ema_model.parameters()), list(model.parameters()), 0.001)
        return
    for slow, fast in zip(ema_model.parameters(), model.parameters(), strict=True):
        slow.mul_(0.999)
        slow.add_(fast * 0.001)
        fast.mul_(1 - 0.02 * 0.002)


def views_from_loaders(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> Iterator[tuple]:
    """Yield labeled images, their labels, and K views of unlabeled ones, from DataLoaders with workers."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(options.size, padding=options.size // 8, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def loader(part: slice, change: Callable) -> Iterator:
        dataset = PilImages(images[part], labels[part], change)
        # 250 labels are an epoch every 3 steps: starting workers for each would be unfair.
        batches = torch.utils.data.DataLoader(
            dataset, options.batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
        )
        return itertools.chain.from_iterable(itertools.repeat(batches))

    labeled = loader(slice(0, max(250, options.batch_size)), transform)
    unlabeled = loader(slice(0, None), TwoTransforms(transform, options.num_views))
    for (x, y), (u, _) in zip(labeled, unlabeled, strict=True):
        yield x, y, u


def views_on_device(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> Iterator[tuple]:
    """Yield the same from the data set on its device."""
    augmenter = Augmenter(options.size, flip=True, settings=DataSettings())
    generator = torch.Generator(images.device).manual_seed(1)
    batch_size, labeled = options.batch_size, max(250, options.batch_size)
    while True:
        index = torch.randint(labeled, (batch_size,), generator=generator, device=images.device)
        x = augmenter.weak_views(images, index, generator)
        others = torch.randint(len(images), (batch_size,), generator=generator, device=images.device)
        views = augmenter.weak_views(images, others.repeat(options.num_views), generator)
        yield x, labels[index], views.split(batch_size)
