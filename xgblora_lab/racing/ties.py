"""Races that say nothing: nobody beats the majority class, or the reference has not left its start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xgblora_lab.racing.summary import median

if TYPE_CHECKING:
    from xgblora_lab.bench.records import History


def majority_score(task: Any, split: str, limit: int | None = None) -> float | None:
    """The score of always answering with one class, the most frequent one of the rows that are scored.

    Parameters
    ----------
    task : Task
        Of any kind.
    split : str
        Such as "dev".
    limit : int, optional
        Score the first rows alone, as in `Task.evaluate`.

    Returns
    -------
    float or None
        In the task's own metric; None for other kinds than classification, for the loss, and for an unknown
        kind of task.
    """
    if task.kind != "classification" or task.metric == "loss" or not task.size(split):
        return None
    if not hasattr(task, "splits"):
        return None
    from xgblora_lab.tasks.scores import classification_scores

    truth = np.array([example.label for example in task.splits[split][:limit]])
    constant = np.full_like(truth, np.bincount(truth).argmax())
    return float(classification_scores(truth, constant, len(task.labels))[task.metric])


def tie(
    scores: Mapping[str, Sequence[float]],
    greater_is_better: bool,
    majority: float | None = None,
    reference: Sequence[History] = (),
) -> str:
    """Why a race says nothing, in one sentence; empty where nothing speaks against it.

    Parameters
    ----------
    scores : mapping of str to sequence of float
        Label → scores by seed.
    greater_is_better : bool
        Of the scores.
    majority : float, optional
        What `majority_score` gave for the rows that are scored.
    reference : sequence of History
        The runs of the method that the others are compared with.

    Returns
    -------
    str
        No method's median is better than the majority class; or the reference's probe loss has fallen by less
        than 1 %.
    """
    if majority is not None and scores:
        middles = [median(values, greater_is_better) for values in scores.values()]
        if not any(m > majority if greater_is_better else m < majority for m in middles):
            return (
                "This race says nothing: no method does better than always answering with "
                f"the majority class ({majority:.4g})."
            )
    runs = [h for h in reference if len(h)]
    start, end = (
        median([h[0].probe_before for h in runs]),
        median([h[-1].probe_after for h in runs]),
    )
    if runs and math.isfinite(start) and not end < start - 0.01 * abs(start):
        return (
            f"This race says nothing: the reference has not left its start "
            f"(probe loss {start:.4g} before, {end:.4g} after)."
        )
    return ""
