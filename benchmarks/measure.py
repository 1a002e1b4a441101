"""How things are timed: interleaved, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, against what, and what was to be reached.

    ratio: ours over theirs. reach: at most so much (at least, where `faster`). limit: what prevents more, or
    None where nothing is known to. detail: absolute figures, with their units in their names.
    """

    what: str
    against: str
    ratio: float
    reach: float
    faster: bool = False
    limit: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        return self.ratio >= self.reach if self.faster else self.ratio <= self.reach

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
    gc.collect()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            found[name].append(timed(work))
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def in_a_process(code: str, *arguments: str) -> list[float]:
    """The numbers that a fresh Python prints on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split("\n")[-2].split()]
