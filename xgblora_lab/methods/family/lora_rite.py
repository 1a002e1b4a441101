"""LoRA-RITE: an Adam-like optimizer that takes the same steps however the product B A is written.

Yen et al. 2024, arXiv 2410.20625. (A, B) and (R⁻¹A, B R) are one update, but Adam treats them differently.
Here everything that is remembered lives in orthonormal bases of the two factors, which follow the factors
from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.methods.family.pairs import PairOptimizer, Stack, decomposed, descend
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option


@dataclass
class LoRARITE(LoRA):
    """LoRA with an optimizer that cannot tell two ways to write the same B A apart.

    Beyond LoRA it costs three thin QR and two r × r eigendecompositions per module and step, and the previous
    bases as state; no further passes over data. `max_grad_norm` would measure the gradient in the factors'
    own coordinates and must stay at None.

    Parameters
    ----------
    lr : float
        About four times that of full fine-tuning (the reference's default is 1e-3).
    eps : float
        Added to the root of the second moment; the default is the reference's.
    clip : float or None
        Largest norm of the unmagnified gradient over all pairs together, 1 in the reference; None: no limit.
    skip : float or None
        A factor whose unmagnified gradient has a larger root mean square rests for the step; 1 in the
        reference, None: no factor rests.
    escape : bool
        Whether the part of the second moment that the moving bases lose is added back: the paper's escaped
        mass, off in the reference.

    References
    ----------
    Yen et al. 2024, arXiv 2410.20625, and the reference that its authors published with it.
    """

    lr: float = 4e-4
    eps: float = option(1e-6, above=0)
    clip: float | None = option(1.0, above=0)
    skip: float | None = option(1.0, above=0)
    escape: bool = option(False)

    name: ClassVar[str] = "lora-rite"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_grad_norm is not None:
            raise ValueError(
                f"LoRA-RITE clips the unmagnified gradient itself; leave max_grad_norm at None and use clip, "
                f"got max_grad_norm={self.max_grad_norm}."
            )

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return RITE(
            self.boosters.values(),
            self.lr,
            self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            clip=self.clip,
            skip=self.skip,
            escape=self.escape,
        )


@dataclass(frozen=True)
class Side:
    """One factor of a stack of pairs, thin side up.

    Attributes
    ----------
    factor, other_factor : str
        `"A"` or `"B"`, and the other of the two.
    basis, other : Tensor
        Orthonormal (g, n, q), with n the factor's own length (k or d) and own = basis · T; the other
        factor's.
    pinv : Tensor
        (g, r, q), the other factor's T⁺.
    gradient : Tensor
        (g, n, q), unmagnified: it depends on the subspaces alone.
    """

    factor: str
    basis: Tensor
    other: Tensor
    other_factor: str
    pinv: Tensor
    gradient: Tensor


class RITE(PairOptimizer):
    """The optimizer.

    Parameters
    ----------
    boosters : iterable of LowRank
        The pairs.
    lr : float
        Set by the loop at every step.
    betas : tuple of float
        As in Adam, corrected for their bias by β(1 − βᵗ⁻¹)/(1 − βᵗ).
    eps, clip, skip, escape
        As in `LoRARITE`.
    weight_decay : float
        Decoupled, as AdamW's.
    """

    def __init__(
        self,
        boosters: Any,
        lr: float,
        betas: tuple[float, float],
        *,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
        skip: float | None = 1.0,
        escape: bool = False,
    ) -> None:
        super().__init__(boosters, lr, betas, eps)
        self.weight_decay, self.clip, self.skip, self.escape = weight_decay, clip, skip, escape

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        lr = self.param_groups[0]["lr"]
        stacks = [(stack, self.sides(stack)) for stack in self.stacks()]
        shrink = self._shrink([side for _, sides in stacks for side in sides])
        for stack, sides in stacks:
            step = self.next_step(stack)
            left, right = (self._direction(stack, side, shrink, step) for side in sides)
            decay = self.weight_decay
            descend(stack, left.mT + decay * stack.A, right + decay * stack.B, lr)
            for side in sides:
                self.keep(stack, side.factor, basis=side.basis)

    def sides(self, stack: Stack) -> tuple[Side, Side]:
        """Both factors of a stack in orthonormal coordinates, with their unmagnified gradients."""
        U_A, T_A = decomposed(torch.linalg.qr, stack.A.mT)
        U_B, T_B = decomposed(torch.linalg.qr, stack.B)
        inverse_A, inverse_B = torch.linalg.pinv(T_A), torch.linalg.pinv(T_B)  # 0 at the start, where B = 0
        return (
            Side("A", U_A, U_B, "B", inverse_B, self._skipped(stack.gA.mT @ inverse_B)),
            Side("B", U_B, U_A, "A", inverse_A, self._skipped(stack.gB @ inverse_A)),
        )

    def _skipped(self, gradient: Tensor) -> Tensor:
        if self.skip is None:
            return gradient
        large = gradient.square().mean((-2, -1), keepdim=True).sqrt() > self.skip
        return gradient.masked_fill(large, 0)

    def _shrink(self, sides: Sequence[Side]) -> Tensor | float:
        """The factor that brings the unmagnified gradient of all pairs together below `clip`."""
        if self.clip is None or not sides:
            return 1.0
        norm = torch.nn.utils.get_total_norm([side.gradient for side in sides])
        return (self.clip / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)

    def _direction(self, stack: Stack, side: Side, shrink: Tensor | float, step: Tensor) -> Tensor:
        """What a factor descends along, (g, n, r): moments are moved to the new basis, then updated."""
        (beta1, beta2), eps = self.param_groups[0]["betas"], self.param_groups[0]["eps"]
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in (beta1, beta2))
        gradient = side.gradient * shrink.to(side.gradient) if isinstance(shrink, Tensor) else side.gradient
        n, q = gradient.shape[-2:]
        P = self._transport(stack, side)
        V = self.load(stack, side.factor, "second", gradient.new_zeros(q, q))
        moved = P @ V @ P.mT
        escaped = self.load(stack, side.factor, "escaped", gradient.new_zeros(1, 1))
        if self.escape:
            escaped = beta2 * (escaped + lost(V, moved))
        V = beta2 * moved + (1 - beta2) * (gradient.mT @ gradient) / n
        V = (V + V.mT) / 2
        M = self.load(stack, side.factor, "first", torch.zeros_like(gradient[0]))
        M = beta1 * M @ P.mT + (1 - beta1) * gradient @ inverse_root(V, escaped, eps)
        self.keep(stack, side.factor, first=M, second=V)
        if self.escape:
            self.keep(stack, side.factor, escaped=escaped)
        return M @ side.pinv.mT

    def _transport(self, stack: Stack, side: Side) -> Tensor:
        """From coordinates in the other factor's previous basis to its present one, (g, q, q)."""
        before = self.load(stack, side.other_factor, "basis", torch.zeros_like(side.other[0]))
        return side.other.mT @ before


def inverse_root(V: Tensor, escaped: Tensor, eps: float) -> Tensor:
    """(V + escaped·I)^(−1/2) with `eps` beside the root.

    Parameters
    ----------
    V : Tensor
        (…, q, q), symmetric.
    escaped : Tensor
        (…, 1, 1), the mass added back.
    eps : float
        Added to the root.
    """
    values, vectors = decomposed(torch.linalg.eigh, V)
    # Below one rounding of the largest, an eigenvalue says nothing (it may be negative): a floor, not eps,
    # has to bound the step there.
    floor = torch.finfo(V.dtype).eps * values[..., -1:].clamp_min(0)
    roots = (torch.maximum(values, floor) + escaped[..., 0]).sqrt() + eps
    return (vectors / roots[..., None, :]) @ vectors.mT


def lost(V: Tensor, moved: Tensor) -> Tensor:
    """The escaped mass between a second moment and what is left of it in the new basis, (…, 1, 1).

    Parameters
    ----------
    V, moved : Tensor
        (…, q, q), symmetric.
    """
    before, _ = decomposed(torch.linalg.eigh, V)
    after, _ = decomposed(torch.linalg.eigh, (moved + moved.mT) / 2)
    largest = (before - after).max(-1).values.clamp_min(0)
    return torch.minimum(largest, (before - after).sum(-1).clamp_min(0))[..., None, None]
