"""How the learning rate changes over a run: five shapes, the same for every method."""

from __future__ import annotations

import math

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
