"""How well predictions fit: accuracy, Matthews, F1 and Pearson, 0 where undefined."""

from __future__ import annotations

import numpy as np


def classification_scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Score predicted classes.

    Parameters
    ----------
    truth, predicted : array of int, (n,)
        Class indices.
    classes : int
        How many classes there are.

    Returns
    -------
    dict of str to float
        "accuracy"; "matthews", a correlation, for several classes as Gorodkin defines it, 0 where undefined;
        "f1", of class 1 where there are two, else the mean over classes.

    References
    ----------
    Gorodkin (2004). Comparing two K-category assignments by a K-category correlation coefficient.
    """
    from sklearn import metrics  # a second to import, which only an evaluation needs

    f1 = metrics.f1_score(truth, predicted, labels=range(classes), average=None, zero_division=0.0)
    several = len(np.union1d(truth, predicted)) > 1  # with one class alone scikit-learn warns
    return {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "matthews": float(metrics.matthews_corrcoef(truth, predicted)) if several else 0.0,
        "f1": float(f1[1] if classes == 2 else f1.mean()),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation.

    Parameters
    ----------
    a, b : array of float, (n,)
        Two series.

    Returns
    -------
    float
        0 where one of them is constant; nan where one holds nan.
    """
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0
