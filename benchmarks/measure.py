"""How things are timed: interleaved, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, against what, and what was to be reached.

    ratio: ours over theirs. reach: at most so much (at least, where `faster`). spread: the quartiles of the
    ratio over repeats; None where it is exact or was taken once. counted: whether there is a verdict. limit:
    what prevents more, where something is known to. detail: absolute figures, with units in their names.
    """

    what: str
    against: str
    ratio: float
    reach: float
    faster: bool = False
    limit: str = ""
    spread: tuple[float, float] | None = None
    counted: bool = True
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        return self.ratio >= self.reach if self.faster else self.ratio <= self.reach

    @property
    def quartiles(self) -> str:
        """The spread in words."""
        return "" if self.spread is None else f"{self.spread[0]:.3g} to {self.spread[1]:.3g}"

    @property
    def verdict(self) -> str:
        """Whether it was reached, in a word."""
        return ("reached" if self.reached else "NOT reached") if self.counted else "not counted"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reached": self.reached}


def seconds() -> float:
    """A clock: processor time of this process, or on a GPU wall time once it has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = seconds()
    work()
    return seconds() - began


def interleaved(
    works: Mapping[str, Callable[[], Any]], times: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every piece of work, one call of each after the other, `times` times over."""
    for work in works.values():
        for _ in range(warmup):
            work()
    if times > 3:  # a look at the numbers need not begin in a tidy memory
        gc.collect()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            found[name].append(timed(work))
    return found


def quotients(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """The pairs' ratios."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(quotients(ours, theirs))


def quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Lower and upper quartile; None of a single value."""
    if len(values) < 2:
        return None
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def compared(what: str, against: str, found: Sequence[float], reach: float, **more: Any) -> Row:
    """The row of a ratio that was measured several times: its median, and its quartiles."""
    return Row(what, against, statistics.median(found), reach, spread=quartiles(found), **more)


def in_a_process(code: str, *arguments: str) -> list[float]:
    """The numbers that a fresh Python prints on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split("\n")[-2].split()]
