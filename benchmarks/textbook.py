"""The training loop as public implementations write it, and what can be done against each of its costs.

benchmarks/step.py times it.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from mixmatch.data.weak_augmentation import random_views
from mixmatch.models import WideResNet

CLASSES = 10
# What makes the step fast, one thing after another, each put into the textbook loop on top of those before it.
MEASURES = {
    "device data": "views cut in one gather from the data set on the device, no loader",
    "one pass": "all views guessed in one pass, the K + 1 batches trained in another",
    "channels_last": "weights and images in channels_last order",
    "multi-tensor": "EMA and decay for all tensors at once, losses left on the device, Adam fused on a GPU",
}


def make_network(options: argparse.Namespace) -> WideResNet:
    """Return the network that is timed."""
    return WideResNet(WideResNet.settings_type(depth=options.depth, width=options.width), CLASSES, in_channels=3)


class TwoTransforms:
    """Apply a transform several times, as public implementations do."""

    def __init__(self, transform: Callable, times: int) -> None:
        self.transform, self.times = transform, times

    def __call__(self, image: object) -> list:
        """Return as many views."""
        return [self.transform(image) for _ in range(self.times)]


class PilImages(torch.utils.data.Dataset):
    """Images one by one, as PIL images through a transform."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable) -> None:
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def textbook_step(
    measures: list[str], images: torch.Tensor, labels: torch.Tensor, device: torch.device, options: argparse.Namespace
) -> tuple[Callable[[], None], Callable[[], float], torch.dtype]:
    """Return a step in the manner of the public implementations, its last loss, and its precision.

    Image-by-image transforms in DataLoaders with workers, a pass for each view and each interleaved batch, float32
    (TF32 where there is), a synchronisation for each logged loss, EMA and weight decay tensor by tensor; but for the
    ``measures`` taken against it.
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
    averaged = make_network(options).to(device)
    averaged.load_state_dict(model.state_dict())
    kernels = [parameter for parameter in model.parameters() if parameter.dim() > 1]
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
        share = torch.distributions.Beta(0.75, 0.75).sample((len(inputs),)).to(device)
        share = torch.max(share, 1 - share)
        order = torch.randperm(len(inputs), device=device)
        inputs = share.view(-1, 1, 1, 1) * inputs + (1 - share.view(-1, 1, 1, 1)) * inputs[order]
        targets = share.view(-1, 1) * targets + (1 - share.view(-1, 1)) * targets[order]
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
        average_and_decay(model, averaged, kernels if multi else None)
        logged["loss"] = loss.detach()
        if not multi:
            loss.item(), loss_x.item(), loss_u.item()
        logged["steps"] += 1

    return step, lambda: float(logged["loss"]), torch.float32


@torch.no_grad()
def average_and_decay(model: nn.Module, averaged: nn.Module, kernels: list[nn.Parameter] | None) -> None:
    """Move the averages and decay weights: ``kernels`` and averages in one operation each, or tensor by tensor."""
    if kernels is not None:
        torch._foreach_mul_(kernels, 1 - 0.02 * 0.002)
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 0.001)
        return
    for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
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
        # Workers that stay between passes: 250 labels are a pass every 3 steps, starting workers anew would be unfair.
        batches = torch.utils.data.DataLoader(
            dataset, options.batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
        )
        return itertools.chain.from_iterable(itertools.repeat(batches))

    labeled = loader(slice(0, max(250, options.batch_size)), transform)
    unlabeled = loader(slice(0, None), TwoTransforms(transform, options.num_views))
    for (x, y), (u, _) in zip(labeled, unlabeled, strict=True):
        yield x, y, u


def views_on_device(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> Iterator[tuple]:
    """Yield the same, cut from the data set on its device."""
    generator = torch.Generator(images.device).manual_seed(1)
    batch_size, labeled = options.batch_size, max(250, options.batch_size)
    while True:
        index = torch.randint(labeled, (batch_size,), generator=generator, device=images.device)
        x = random_views(images, index, True, options.size // 8, generator)
        others = torch.randint(len(images), (batch_size,), generator=generator, device=images.device)
        views = random_views(images, others.repeat(options.num_views), True, options.size // 8, generator)
        yield x, labels[index], views.split(batch_size)
