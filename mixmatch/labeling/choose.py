"""Which pictures are worth a label first (active learning)."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Choice = Literal["mixed", "margin", "uncertain", "diverse", "random"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
MAX_CLUSTERS = 200  # of k-means, whose time grows with their number
CANDIDATES = 3  # for each picture that ``mixed`` chooses, see docs/labeling.md


def choose(
    probabilities: NDArray[np.floating], features: NDArray[np.floating], count: int, how: Choice, seed: int = 0
) -> NDArray[np.intp]:
    """Return the indices of ``count`` of n pictures, or of all if there are fewer, the least certain ones first.

    Args:
        probabilities: (n, C), of the classes.
        features: (n, D), of the network.
        count: 1 or more.
        how: ``uncertain``: the lowest confidence; ``margin``: the smallest difference between the two most likely
            classes; ``diverse``: in turn from each cluster of k-means over the features that nearest to its center;
            ``mixed``: diverse among three times as many of the smallest margin (Zhdanov, arXiv:1901.05954);
            ``random``.
        seed: of ``random`` and k-means.
    """
    count = min(count, len(probabilities))
    ordered = np.sort(probabilities, axis=1)
    margins, confidences = ordered[:, -1] - ordered[:, -2], ordered[:, -1]
    if how == "random":
        return np.random.default_rng(seed).permutation(len(probabilities))[:count]
    if how == "uncertain":
        return np.argsort(confidences, kind="stable")[:count]
    by_margin = np.argsort(margins, kind="stable")
    if how == "margin":
        return by_margin[:count]
    candidates = by_margin[: CANDIDATES * count] if how == "mixed" else by_margin
    chosen = candidates[_nearest_to_centers(features[candidates], count, seed)]
    return chosen[np.argsort(margins[chosen], kind="stable")]


def _nearest_to_centers(features: NDArray[np.floating], count: int, seed: int) -> NDArray[np.intp]:
    """Return the indices of ``count`` of (n, D) features: in turn from each cluster the nearest to its center."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    means = MiniBatchKMeans(min(count, MAX_CLUSTERS), n_init=1, random_state=seed).fit(scaled)
    distances = means.transform(scaled).min(axis=1)
    turns = np.empty(len(features), int)  # of each feature within its cluster
    for cluster in range(means.n_clusters):
        members = np.flatnonzero(means.labels_ == cluster)
        turns[members[np.argsort(distances[members], kind="stable")]] = np.arange(len(members))
    return np.lexsort((means.labels_, turns))[:count]
