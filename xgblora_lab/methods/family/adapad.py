"""AdaPaD: all rank-1 parts at once, each on what the earlier ones leave (arXiv 2605.10741, our reading)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.lora import LoRA

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop


class Deflated(LowRank):
    """A booster whose input row i trains one part, against the sum of that part and the earlier ones.

    Attributes
    ----------
    shift : int or None
        Row i of the input trains part (i + shift) mod r; None: the plain sum of all parts.
    """

    shift: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The booster's part of the output: (N, …, k) -> (N, …, d), in the factors' dtype."""
        if self.shift is None:
            return super().forward(x)
        linear = nn.functional.linear
        x = x.to(self.A.dtype)
        part = torch.arange(self.shift, self.shift + len(x), device=x.device) % self.rank  # (N,)
        part = part.view(-1, *[1] * (x.ndim - 1))  # (N, …, 1)
        every = torch.arange(self.rank, device=x.device)  # (r,)
        own = linear(x, self.A) * (every == part) * self.scale  # (N, …, r)
        earlier = linear(x, self.A.detach()) * (every < part) * self.scale
        return linear(own, self.B) + linear(earlier.detach(), self.B.detach())


@dataclass
class AdaPaD(LoRA):
    """All r rank-1 parts trained in parallel, each on the residual that the parts before it leave now.

    Boosting fits one part after the other and never mends an early one. Here an early part goes on learning,
    and the later ones follow it: the control that tells what greedy rounds cost. Our reading of the abstract
    spreads a batch over the parts, row i to part (i + step) mod r, so that a step costs what LoRA's does; its
    authors' code was not available to us. The trained model is the sum of all parts.

    Parameters
    ----------
    rank, alpha, scaling, init
        As in `LoRA`.

    References
    ----------
    AdaPaD, arXiv 2605.10741 (abstract).
    """

    name: ClassVar[str] = "adapad"

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        plain = super().make_boosters(loop)
        return {n: Deflated(b.A.data, b.B.data, b.scale) for n, b in plain.items()}

    def before_backward(self, loop: Loop) -> None:
        self._shift(loop.trained_steps)

    def after_backward(self, loop: Loop) -> None:
        self._shift(None)

    def close(self, loop: Loop) -> None:
        self._shift(None)  # a step that was interrupted may have left one
        super().close(loop)

    def _shift(self, shift: int | None) -> None:
        for booster in self.boosters.values():
            if isinstance(booster, Deflated):
                booster.shift = shift
