"""Where and in how many processes a run computes: as accelerate says, or without it this process alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from xgblora_lab.precision import fastest, width_of

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


def accelerator_of(given: Accelerator | str | None, model: nn.Module) -> Accelerator:
    """The one given, or accelerate's own, which knows how processes were launched, or without it `Alone`."""
    if given is not None and not isinstance(given, str):
        return given
    try:
        from accelerate import Accelerator
    except ImportError:
        return cast("Accelerator", Alone())
    return Accelerator(mixed_precision=fastest(width_of(model)) if given == "auto" else given)
