"""How the learning rate changes over a run, and the lengths of rounds to try."""

from __future__ import annotations

import math
from typing import Any

SCHEDULES = ("constant", "linear", "cosine", "sqrt", "trapezoid")
DECAY = 0.3  # the share of the run over which a trapezoid decays


def scheduled(schedule: str, step: int, total: int) -> float:
    """The factor on the peak learning rate at a step.

    Parameters
    ----------
    schedule : str
        Of `SCHEDULES`; KeyError for another.
    step : int
        From 0. A step past the plan has the factor of the plan's last one.
    total : int
        K, the planned steps.

    Returns
    -------
    float
        In (0, 1]; no schedule comes to 0 within the plan.
    """
    left = 1 - min(step, total - 1) / total  # from 1 down to 1/K
    shapes = {
        "constant": 1.0,
        "linear": left,
        "cosine": (1 - math.cos(math.pi * left)) / 2,
        "sqrt": math.sqrt(left),
        "trapezoid": min(1.0, left / DECAY),
    }
    return shapes[schedule]


def round_lengths(steps: int) -> list[dict[str, Any]]:
    """Options for rounds of K/20, K/6, K, K/3 and K/2 steps, in the order in which a race tries them."""
    lengths = dict.fromkeys(max(1, round(steps / part)) for part in (20, 6, 1, 3, 2))
    return [{"steps_per_round": length} for length in lengths]
