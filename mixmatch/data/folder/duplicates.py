"""Search for near duplicates among the thumbnails of many photographs."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Thumbnails are of the same picture if their RMS difference is at most NEAR times their standard deviation (of the one
# with less contrast; at least MIN_CONTRAST gray levels). Copies that are saved as JPEG of quality 50 or scaled to half
# their size are within 0.15, and none of 2 million pairs of different hand signs.
NEAR, MIN_CONTRAST = 0.15, 4.0
# These change the time and memory, not the result.
SMALL_PART = 1024  # pictures that are compared without dividing them further
MAX_PAIRS = 2**20  # compared at once
NUM_COMPONENTS = 12  # principal components to divide along


def find_near_duplicates(thumbnails: Tensor) -> list[list[int]]:
    """Find pictures that are the same but for their size, compression or small changes.

    Args:
        thumbnails: (n, h, w) uint8, gray.

    Returns:
        Groups of two or more indices. The pictures of a group are connected by pairs of near duplicates.
    """
    if len(thumbnails) < 2:
        return []
    values = thumbnails.flatten(1).float() - 128  # smaller numbers have smaller rounding errors
    contrast = values.std(1, correction=0).clamp(min=MIN_CONTRAST)
    edges = [torch.empty(2, 0, dtype=torch.long)]
    for part in _divide(values, contrast):
        joined = _join_near_duplicates(values[part], contrast[part])
        edges.append(torch.stack([part, part[joined]])[:, joined != torch.arange(len(part))])
    groups: dict[int, list[int]] = {}
    for number, first in enumerate(_join(torch.arange(len(values)), torch.cat(edges, 1)).tolist()):
        groups.setdefault(first, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _divide(values: Tensor, contrast: Tensor) -> Iterator[Tensor]:
    """Divide pictures into overlapping parts, so that each pair of near duplicates is together in at least one.

    If a and b are two thumbnails minus their means, then |a - b|² = (|a| - |b|)² + |a| |b| |a / |a| - b / |b||².
    So those of near duplicates, divided by their contrast, differ by at most NEAR, and so does the logarithm of their
    contrast. That holds below MIN_CONTRAST too. Their means differ by at most NEAR times the contrast.
    """
    scale = math.sqrt(values.shape[1])  # from RMS differences to distances
    mean = values.mean(1, keepdim=True)
    standardized = (values - mean) / contrast[:, None]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))  # the first ones are a sample
    sample = standardized[order[:20_000]]
    directions = torch.linalg.eigh(sample.T @ sample)[1][:, -NUM_COMPONENTS:]
    places = torch.cat([standardized @ directions, scale * contrast[:, None].log(), scale * mean], 1)
    del standardized
    parts = [order]
    while parts:
        part = parts.pop()
        reach = torch.full((places.shape[1],), 1.01 * NEAR * scale)  # 1.01: rounding errors
        reach[-1] *= contrast[part].max()
        some = places[part[:256]]
        middle = some.median(0).values
        cost, best = ((some <= middle + reach).sum(0).square() + (some > middle).sum(0).square()).min(0)
        if len(part) <= SMALL_PART or cost > 0.9 * len(some) ** 2:
            yield part
        else:
            place = places[part, best]
            parts += [part[place <= middle[best] + reach[best]], part[place > middle[best]]]


def _join_near_duplicates(values: Tensor, contrast: Tensor) -> Tensor:
    """Compare the pictures of a part and return, for each, the first picture that it is connected with.

    Pictures of a component of more than half the part, such as scans of white pages, are not compared with each other.
    """
    squares, limit = values.square().mean(1), (NEAR * contrast).square()
    joined = rest = torch.arange(len(values))
    while len(rest):
        rows, rest = rest.tensor_split([max(1, MAX_PAIRS // len(values))])
        distance = torch.addmm(squares, values[rows], values.T, alpha=-2 / values.shape[1]).add_(squares[rows, None])
        row, second = (distance <= limit[rows, None]).nonzero().T
        first = rows[row]
        edges = torch.stack([first, second])[:, (distance[row, second] <= limit[second]) & (first != second)]
        if edges.numel():
            joined = _join(joined, edges)
            largest = joined.mode().values
            if (joined == largest).sum() > len(values) / 2:
                rest = rest[joined[rest] != largest]
    return joined


def _join(joined: Tensor, edges: Tensor) -> Tensor:
    """Join the components of each pair of pictures in ``edges`` (2, m); ``joined`` (n) is the first of a component."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = torch.cat([edges, torch.stack([torch.arange(len(joined)), joined])], 1)
    graph = coo_array((np.ones(edges.shape[1], bool), edges.numpy()), shape=(len(joined), len(joined)))
    _, components = connected_components(graph, directed=False)
    _, first = np.unique(components, return_index=True)
    return torch.from_numpy(first[components])
