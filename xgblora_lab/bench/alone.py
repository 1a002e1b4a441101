"""Where and in how many processes a run computes: as accelerate says, or without it this process alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Alone:
    """One process in full precision, with what of accelerate's `Accelerator` a bench asks for.

    It serves where accelerate is not installed, as in a browser's Python.
    """

    num_processes: ClassVar[int] = 1
    process_index: ClassVar[int] = 0
    is_main_process: ClassVar[bool] = True
    mixed_precision: ClassVar[str] = "no"
    scaler: ClassVar[None] = None

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def autocast(self) -> AbstractContextManager[None]:
        """Arithmetic is that of the weights."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        loss.backward()


def default_accelerator() -> Accelerator:
    """accelerate's own, which knows how the processes were launched; without accelerate an `Alone`."""
    try:
        from accelerate import Accelerator
    except ImportError:
        return cast("Accelerator", Alone())
    return Accelerator()
