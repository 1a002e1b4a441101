"""Which arithmetic is the faster one here: a short product in float32 against bfloat16, measured once."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

ROWS = 256  # of the product's input, as of a small batch of short texts
REPEATS = 5
FASTER = 0.9  # bfloat16 has to take less of the time: what is as fast is better done exactly


def fastest(width: int) -> str:
    """The faster mixed precision on this machine's device, at a model's width.

    Parameters
    ----------
    width : int
        Inputs and outputs of the product that is timed.

    Returns
    -------
    str
        "bf16" or "no", as accelerate calls them. A process has one precision: where accelerate has been asked
        for one already, it is that.
    """
    state = sys.modules.get("accelerate.state")
    if state is not None and state.is_initialized():
        return str(state.AcceleratorState().mixed_precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return "bf16" if relative_time(device, width) < FASTER else "no"


@cache
def relative_time(device: str, width: int) -> float:
    """Seconds of a product under autocast to bfloat16, over those in float32; the least of five each.

    Parameters
    ----------
    device : str
        "cpu" or "cuda".
    width : int
        The product is that of a linear map from `width` to `width`, on 256 rows.
    """
    x, W = torch.ones(ROWS, width, device=device), torch.ones(width, width, device=device)

    def halved() -> None:
        with torch.autocast(device, torch.bfloat16):  # as in a step, a frozen weight is cast every time
            nn.functional.linear(x, W)

    works: tuple[Callable[[], object], ...] = (lambda: nn.functional.linear(x, W), halved)
    with torch.no_grad():
        for work in works:
            work()
        times = [[_seconds(work, device) for work in works] for _ in range(REPEATS)]
    exact, half = (min(column) for column in zip(*times, strict=True))
    return half / exact


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def width_of(model: nn.Module) -> int:
    """The usual number of inputs of a model's weight matrices; 1 where it has none."""
    return statistics.median_low([p.shape[-1] for p in model.parameters() if p.ndim == 2] or [1])
