"""Several runs of a race brought together: one entry per method and learning rate, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgblora_lab.bench.records import History
from xgblora_lab.figures._read import Array, array, label, number, residual, setting, variants

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
class Entry:
    """The runs of one method at one learning rate; they differ in their seed."""

    label: str
    method: str
    variant: int
    lr: float  # nan where the history does not say
    runs: tuple[History, ...]
    marked: bool  # the race chose this learning rate


def entries(histories: Sequence[History]) -> list[Entry]:
    """Group runs by label and learning rate, in the order of their labels, learning rates ascending."""
    groups: dict[tuple[str, float], list[History]] = {}
    for history in histories:
        groups.setdefault((label(history), learning_rate(history)), []).append(history)
    names = variants(histories)
    found = [
        Entry(name, *names[name], lr, tuple(runs), any(bool(h.settings.get("chosen")) for h in runs))
        for (name, lr), runs in groups.items()
    ]
    order = list(names)
    return sorted(found, key=lambda e: (order.index(e.label), e.lr if math.isfinite(e.lr) else math.inf))


def learning_rate(history: History) -> float:
    """The run's learning rate: its setting, else the largest that a round used, else -1 (unknown)."""
    given = number(setting(history, "lr"))
    used = [v for r in history for v in r.learning_rates if math.isfinite(v)]
    return given if math.isfinite(given) else max(used, default=-1.0)


def best(group: Sequence[Entry], score: Callable[[History], float], greater: bool) -> tuple[Entry, bool]:
    """The entry that counts, and whether the race marked it; without a mark, the best median score's."""
    marked = [e for e in group if e.marked]
    if marked:
        return marked[0], True
    return min(group, key=lambda e: _worst_last(middle([score(h) for h in e.runs], greater), greater)), False


def _worst_last(value: float, greater: bool) -> float:
    return math.inf if math.isnan(value) else -value if greater else value


def series(history: History, name: str) -> Array:
    """One value per round of `"residual"`, a field of the record, or a scalar measurement; nan if missing."""
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
            counted = series(history, "tokens") * number(setting(history, "flops_per_token"))
        return np.cumsum(counted)
    if axis in ("tokens", "seconds"):
        return np.cumsum(series(history, axis))
    return series(history, axis)


def middle(values: Sequence[float], greater: bool) -> float:
    """Median over seeds in which a diverged seed (nan) counts as the worst, so that it cannot hide."""
    worst = -math.inf if greater else math.inf
    found = statistics.median([v if math.isfinite(v) else worst for v in values]) if len(values) else math.nan
    return found if math.isfinite(found) else math.nan


def spread(rows: Sequence[Array], greater: bool) -> tuple[Array, Array, Array]:
    """Median, lowest and highest over seeds, round by round; seeds may have run for different lengths."""
    longest = max(len(row) for row in rows)
    table: list[tuple[float, float, float]] = []
    for t in range(longest):
        here = [float(row[t]) for row in rows if t < len(row)]
        finite = [v for v in here if math.isfinite(v)] or [math.nan]
        table.append((middle(here, greater), min(finite), max(finite)))
    columns: Any = np.array(table).T
    return columns[0], columns[1], columns[2]
