"""Labels that the other labels contradict."""

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


def predict_out_of_fold(features: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.floating] | None:
    """Return class probabilities of labeled pictures by classifiers that were not trained on them.

    A network remembers the labels that it was trained on, wrong ones too. So its features are classified by logistic
    regression, trained on all folds but one, of at most five, to predict that.

    Args:
        features: (n, D).
        labels: (n,).

    Returns:
        (n, C), for the labels that occur, in ascending order; None if a label occurs once only, or all are the same.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return None
    folds = StratifiedKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    probabilities: NDArray[np.floating] = cross_val_predict(
        classifier, features, labels, cv=folds, method="predict_proba"
    )
    return probabilities
