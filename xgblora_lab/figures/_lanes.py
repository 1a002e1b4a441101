"""The runs of a race brought together: one entry per method and learning rate, one lane per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xgblora_lab.bench.records import History
from xgblora_lab.figures._read import Array, array, number, residual, variants
from xgblora_lab.figures._style import Style, style
from xgblora_lab.racing.summary import best, median, spread, steps_until

AXES = {  # what a race may be run against: name → title with its unit
    "step": "optimizer steps",
    "adapter_steps": "adapter-steps (steps × modules trained)",
    "tokens": "tokens",
    "seconds": "wall time (s)",
    "flops": "floating-point operations",
    "peak_parameters": "peak trainable parameters",
    "total_parameters": "total trained parameters",
}


@dataclass(frozen=True)
class Measure:
    """What a race is judged by.

    Parameters
    ----------
    y : str
        What is drawn: "residual", a field of `Round` or a scalar measurement.
    greater : bool
        Whether a greater `y` is better.
    score : str or None
        The key of `History.scores` that learning rates are ranked by; None for the last `y`.
    ranked : bool
        Whether a greater score is better.
    """

    y: str
    greater: bool
    score: str | None
    ranked: bool

    def final(self, history: History) -> float:
        """What a run ended with, as learning rates are ranked by it; nan where it diverged."""
        if self.score is not None:
            return number(history.scores.get(self.score))
        return float(series(history, self.y)[-1])

    def middle(self, entry: Entry) -> float:
        """Median over seeds of `final`."""
        return median([self.final(h) for h in entry.runs], self.ranked)

    def steps(self, entry: Entry, goal: float) -> float:
        """Median over seeds of the steps until `y` has reached the goal; nan where it never did."""
        reached = [
            steps_until([r.step for r in h], series(h, self.y).tolist(), goal, self.greater)
            for h in entry.runs
        ]
        return median(reached)


@dataclass(frozen=True)
class Entry:
    """The runs of one method at one learning rate, which differ in their seed."""

    label: str
    method: str
    variant: int
    lr: float  # -1 where it is not known
    runs: tuple[History, ...]
    marked: bool  # the race chose this learning rate


@dataclass(frozen=True)
class Lane:
    """One method's chosen entry: its median curve, its range over seeds, its sweep."""

    entry: Entry
    sweep: tuple[Entry, ...]  # over the seeds that every learning rate has
    tuned: bool  # the race marked the learning rate (else it is picked here)
    mid: Array
    low: Array
    high: Array
    spent: dict[str, Array]  # axis → median over seeds of what was spent by every round's end

    @property
    def label(self) -> str:
        """The method's name in the figure."""
        return self.entry.label

    @property
    def look(self) -> Style:
        """How the method is drawn."""
        return style(self.entry.method, self.entry.variant)


def lanes(runs: Sequence[History], measure: Measure) -> list[Lane]:
    """One lane per label, in the order of the runs.

    The entry that counts is the one that the race marked; without a mark, the one with the best median.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries(runs):
        groups.setdefault(entry.label, []).append(entry)
    found = []
    for group in groups.values():
        marked = [entry for entry in group if entry.marked]
        sweep = alike(group)
        ends = [measure.middle(entry) for entry in sweep]
        entry = marked[0] if marked else group[best(ends, measure.ranked)]
        curves = _by_round([series(h, measure.y) for h in entry.runs], measure.greater)
        spent = {axis: _by_round([cost(h, axis) for h in entry.runs], True)[0] for axis in AXES}
        found.append(Lane(entry, tuple(sweep), bool(marked) or len(group) == 1, *curves, spent))
    return found


def entries(histories: Sequence[History]) -> list[Entry]:
    """Group runs by label and learning rate, in the order of their labels, learning rates ascending."""
    groups: dict[tuple[str, float], list[History]] = {}
    for history in histories:
        groups.setdefault((history.label, learning_rate(history)), []).append(history)
    names = variants(histories)
    found = [
        Entry(name, *names[name], lr, tuple(runs), any(h.settings.chosen for h in runs))
        for (name, lr), runs in groups.items()
    ]
    order = list(names)
    return sorted(found, key=lambda e: (order.index(e.label), e.lr))


def alike(tried: Sequence[Entry]) -> list[Entry]:
    """The entries over the seeds that all have; the chosen rate has more, which had no part in the choice."""
    shared = set.intersection(*({h.settings.seed for h in entry.runs} for entry in tried))
    if not shared:
        return list(tried)
    return [replace(e, runs=tuple(h for h in e.runs if h.settings.seed in shared)) for e in tried]


def learning_rate(history: History) -> float:
    """The run's learning rate: its setting, else the largest that a round used, else -1 (unknown)."""
    if math.isfinite(history.settings.lr):
        return history.settings.lr
    return max((v for r in history for v in r.learning_rates if math.isfinite(v)), default=-1.0)


def series(history: History, name: str) -> Array:
    """One value per round of "residual", a field of the record, or a measurement; nan where missing."""
    if name == "residual":
        return residual(history)[0]
    return array(getattr(r, name, r.measurements.get(name)) for r in history)


def cost(history: History, axis: str) -> Array:
    """What a run had spent by the end of every round, on one of `AXES`."""
    if axis == "adapter_steps":
        return np.cumsum(array(len(r.losses) * len(r.modules) for r in history))
    if axis == "flops":
        counted = series(history, "flops")
        if not np.isfinite(counted).all():
            counted = series(history, "tokens") * number(history.settings.flops_per_token)
        return np.cumsum(counted)
    if axis in ("tokens", "seconds"):
        return np.cumsum(series(history, axis))
    return series(history, axis)


def _by_round(rows: Sequence[Array], greater: bool) -> tuple[Array, Array, Array]:
    """Median, lowest and highest over seeds, round by round; seeds may have run for different lengths."""
    table = []
    for t in range(max(len(row) for row in rows)):
        here = spread([float(row[t]) for row in rows if t < len(row)], greater)
        table.append((here.median, here.low, here.high))
    columns: Any = np.array(table).T
    return columns[0], columns[1], columns[2]


def rises(history: History, name: str) -> bool:
    """Whether a greater value is better, of a score or a measurement with this name."""
    settings = history.settings
    if name in ("dev", "test"):  # `race` keeps the metric's value on a split under the split's name
        return settings.greater_is_better
    losses = ("loss", "residual", "probe", "perplexity", "error", "distance")
    if any(word in name for word in losses):
        return False
    return settings.greater_is_better or not settings.metric


def measure_of(
    runs: Sequence[History], y: str = "residual", score: str | None = None, greater: bool | None = None
) -> Measure:
    """What runs are judged by, where the caller left it open.

    Parameters
    ----------
    runs : sequence of History
        At least one.
    y, score, greater
        As `Measure`; `greater` None takes the direction that the task names.

    Raises
    ------
    ValueError
        Where no run has a `y`.
    """
    if y != "residual" and not any(hasattr(r, y) or y in r.measurements for h in runs for r in h):
        raise ValueError(
            f"No history measured {y!r}: use 'residual', a field of Round, or a hook's measurement."
        )
    if score is None and y == "residual" and all("dev" in h.scores for h in runs):
        score = "dev"  # what `race` tunes by
    if greater is not None:
        return Measure(y, greater, score, greater)
    return Measure(y, rises(runs[0], y), score, rises(runs[0], score or y))


def in_words(history: History, measure: Measure) -> str:
    """What the sweep is ranked by, in words."""
    if measure.score is None:
        return "last residual loss" if measure.y == "residual" else f"last {measure.y.replace('_', ' ')}"
    return score_name(history, measure.score)


def score_name(history: History, score: str) -> str:
    """`race` keeps the metric's value on a split under the split's name."""
    if score in ("dev", "test"):
        return f"{score} {history.settings.metric}".strip()
    return score.replace("_", " ")
