"""`first_look`: the stepper over one matrix, ready to press."""

from __future__ import annotations

from collections.abc import Sequence

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.xgblora import XGBLoRA
from xgblora_lab.tasks.matrix import matrix
from xgblora_lab.widgets.stepper import Stepper


def first_look(
    spectrum: str | Sequence[float] = "1/i", *, size: int = 16, rounds: int = 12, seed: int = 0
) -> Stepper:
    """Make a stepper that looks for one matrix by boosting, with LoRA of rank 4 beside it.

    Parameters
    ----------
    spectrum : str or sequence of float, default "1/i"
        Of the matrix to find: "1/i", "exponential", "flat", or the singular values themselves.
    size : int, default 16
        Its rows and columns.
    rounds : int, default 12
        How many are planned, of 60 optimizer steps each.
    seed : int, default 0
        Of the matrix and of everything that is drawn.

    Returns
    -------
    Stepper
        Display it, and press “Next round”.

    Raises
    ------
    ValueError
        Where the spectrum is unknown or does not fit the size, or `rounds` is below 1.
    """
    steps_per_round = 60

    def bench(method: XGBLoRA | LoRA) -> Bench:
        model, task = matrix(spectrum, d=size, k=size, seed=seed)
        return Bench(model, task, method, steps=rounds * steps_per_round, batch_size=1, seed=seed)

    boosting = bench(XGBLoRA(rank=1, lr=0.05, steps_per_round=steps_per_round))
    lora = bench(LoRA(rank=4, lr=0.02, steps_per_round=steps_per_round))
    lora.history.label = "LoRA of rank 4"
    return Stepper(boosting, beside=lora)
