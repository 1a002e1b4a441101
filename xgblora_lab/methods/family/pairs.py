"""An optimizer that sees A and B together: pairs of one shape are stepped as one batch of small matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora_lab.lowrank.booster import LowRank


@dataclass(frozen=True)
class Stack:
    """Pairs of one shape and scale, side by side.

    Attributes
    ----------
    boosters : list of LowRank
        The g pairs.
    A, gA : Tensor
        (g, r, k), and the gradient of the loss by A as it is.
    B, gB : Tensor
        (g, d, r), and the gradient of the loss by B as it is.
    scale : float
        s.
    """

    boosters: list[LowRank]
    A: Tensor
    B: Tensor
    gA: Tensor
    gB: Tensor
    scale: float


class PairOptimizer(torch.optim.Optimizer):
    """Base of the optimizers whose step for A needs B, and the other way round.

    State is kept per parameter, as tensors only, so it is saved and loaded like that of any optimizer.

    Parameters
    ----------
    boosters : iterable of LowRank
        The pairs; A and B belong together because they are one object's, not because of an order.
    lr : float
        Set by the loop at every step.
    betas, eps : tuple of float, float
        As in Adam.
    """

    def __init__(
        self, boosters: Iterable[LowRank], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        self.boosters = list(boosters)
        parameters = [p for b in self.boosters for p in (b.A, b.B)]
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    def stacks(self) -> Iterator[Stack]:
        """The pairs that have gradients, by shape; a pair that the loss did not reach is left alone."""
        groups: dict[tuple[object, ...], list[LowRank]] = {}
        for booster in self.boosters:
            if booster.A.grad is not None and booster.B.grad is not None:
                key = booster.A.shape, booster.B.shape, booster.scale, booster.A.dtype, booster.A.device
                groups.setdefault(key, []).append(booster)
        for group in groups.values():
            yield Stack(
                group,
                torch.stack([b.A.detach() for b in group]),
                torch.stack([b.B.detach() for b in group]),
                torch.stack([b.A.grad for b in group if b.A.grad is not None]),
                torch.stack([b.B.grad for b in group if b.B.grad is not None]),
                group[0].scale,
            )

    def load(self, stack: Stack, factor: str, key: str, fresh: Tensor) -> Tensor:
        """State of a stack's factors, (g, …).

        Parameters
        ----------
        stack : Stack
        factor : str
            `"A"` or `"B"`.
        key : str
            Which state.
        fresh : Tensor
            (…), taken where a pair has none yet.
        """
        states = [self.state[getattr(b, factor)] for b in stack.boosters]
        return torch.stack([state.get(key, fresh) for state in states])

    def keep(self, stack: Stack, factor: str, **values: Tensor) -> None:
        """Keep state of a stack's factors: each pair a view of its own part.

        Parameters
        ----------
        stack : Stack
        factor : str
            `"A"` or `"B"`.
        **values : Tensor
            (g, …) by key.
        """
        for key, value in values.items():
            for booster, part in zip(stack.boosters, value, strict=True):
                self.state[getattr(booster, factor)][key] = part

    def next_step(self, stack: Stack) -> Tensor:
        """The number of the present step of each pair, from 1: (g, 1, 1); kept with A."""
        step = self.load(stack, "A", "step", stack.A.new_zeros(())) + 1
        self.keep(stack, "A", step=step)
        return step[:, None, None]


def descend(stack: Stack, dA: Tensor, dB: Tensor, lr: float) -> None:
    """A -= lr·dA and B -= lr·dB for every pair of the stack, both from the same point.

    Parameters
    ----------
    stack : Stack
    dA, dB : Tensor
        (g, r, k) and (g, d, r).
    lr : float
        Length of the step.
    """
    for booster, step_A, step_B in zip(stack.boosters, dA, dB, strict=True):
        booster.A.sub_(step_A, alpha=lr)
        booster.B.sub_(step_B, alpha=lr)


def decomposed(decompose: Callable[[Tensor], tuple[Tensor, ...]], matrices: Tensor) -> tuple[Tensor, ...]:
    """A decomposition of a batch; on Apple's GPU, which lacks them, by way of the CPU.

    Parameters
    ----------
    decompose : callable
        `torch.linalg.qr` or `torch.linalg.eigh`.
    matrices : Tensor
        (…, n, q).
    """
    if matrices.device.type != "mps":
        return tuple(decompose(matrices))
    return tuple(part.to(matrices.device) for part in decompose(matrices.cpu()))
