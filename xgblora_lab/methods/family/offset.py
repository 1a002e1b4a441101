"""Pairs start away from zero, and their start is taken out of the weight: at first nothing changes.

W + s·B₀A₀ would be another model, so the live weight becomes W − s·B₀A₀. Factors of what was learned are then
[sB, −sB₀] and [A; A₀], of rank 2r.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xgblora_lab.methods.lora import LoRA

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop

EXACT = 512  # a whole SVD of 512 × 2048 takes about half a second on one core


@dataclass
class OffsetLoRA(LoRA):
    """A LoRA whose pairs get their start from `first_factors`, at the beginning of the first round.

    Beyond LoRA it costs a copy of the base on the CPU, and the pairs' start. On a half-precision base it also
    costs a float32 copy, to which the offset is added before it is rounded once: there the model moves by
    that rounding. The options are LoRA's.
    """

    def rank_bound(self, modules: int) -> int | None:
        return 2 * self.rank  # what was learned, and the start that was taken out

    def start(self, loop: Loop) -> None:
        self.check_shapes(loop)
        super().start(loop)
        self.weights = loop.weights
        self.offset: dict[str, tuple[Tensor, Tensor]] = {}  # (−s·B₀, A₀) by module, CPU; none before round 0

    def check_shapes(self, loop: Loop) -> None:
        """ValueError where a module cannot have such a start."""

    def first_factors(self, loop: Loop) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(B₀ (d, r), A₀ (r, k)) by module, the same on all processes."""
        raise NotImplementedError

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        if index == 0:
            for name, (B, A) in self.first_factors(loop).items():
                self.boosters[name].B.data.copy_(B)
                self.boosters[name].A.data.copy_(A)
            # From the factors as they are now, not as they were computed: what is taken out is what is there.
            pairs = {name: booster.factors() for name, booster in self.boosters.items()}
            self.take_out({name: (-B.cpu(), A.cpu()) for name, (B, A) in pairs.items()})
        return super().begin_round(loop, index)

    def take_out(self, offset: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Make the live weights the base plus this offset.

        Parameters
        ----------
        offset : mapping of str to tuple of Tensor
            (−s·B₀, A₀) by module, on the CPU.
        """
        self.offset = dict(offset)
        self.weights.replay([self.offset])

    def end_round(self, loop: Loop, index: int) -> Boosters:
        factors = {}
        for name, (B, A) in super().end_round(loop, index).items():
            if name in self.offset:
                B0, A0 = self.offset[name]
                B, A = torch.cat([B.cpu(), B0], 1), torch.cat([A.cpu(), A0], 0)
            factors[name] = (B, A)
        return factors

    def close(self, loop: Loop) -> None:
        super().close(loop)
        loop.weights.restore()

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for name, (B, A) in self.offset.items():  # never changed in place, so every round may share it
            tensors |= {f"{name}.offset.B": B, f"{name}.offset.A": A}
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        names = [name for name in self.boosters if f"{name}.offset.B" in state]
        self.take_out({n: (state[f"{n}.offset.B"], state[f"{n}.offset.A"]) for n in names})
        super().load_state(state)


def leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` singular directions of a matrix.

    Exact where a side is at most 512; else by random projection onto min(2·count + 8, d, k) directions with
    four power iterations, seeded; the global generator is left alone.

    Parameters
    ----------
    matrix : Tensor
        (d, k).
    count : int
        How many directions, at most min(d, k).
    seed : int
        Of the random projection.

    Returns
    -------
    tuple of Tensor
        U (d, count), s (count,) and V (k, count).

    References
    ----------
    Halko, Martinsson and Tropp 2011, arXiv 0909.4061.
    """
    if min(matrix.shape) <= EXACT:
        U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
        V = Vh.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            U, s, V = torch.svd_lowrank(matrix, q=min(2 * count + 8, *matrix.shape), niter=4)
    return U[:, :count], s[:count], V[:, :count]
