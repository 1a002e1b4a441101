"""LoRA-Pro: steps of A and B whose joint effect on W is as close as it can be to full fine-tuning's.

Wang et al. 2024, arXiv 2407.18242. For W + s·B A with gradient G of W, steps hA, hB move W along
s(B hA + hB A). The nearest they reach is G − (I − P_B) G (I − P_A), where P_B projects on B's columns and P_A
on A's rows. It is reached with the gradients gA = s BᵀG and gB = s G Aᵀ alone; G is never needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.methods.family.pairs import PairOptimizer, Stack, decomposed, descend
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

MODES = ("full", "efficient")


@dataclass
class LoRAPro(LoRA):
    """LoRA whose steps imitate full fine-tuning as well as two thin matrices can.

    Beyond LoRA it costs d·k·r operations and two r × r eigendecompositions per module and step, with
    `mode="full"` two moments as large as W, and no further passes over data. `weight_decay` must stay at 0.

    Parameters
    ----------
    lr : float
        A unit of W's change, as in full fine-tuning; for `mode="efficient"` use LoRA's, 1e-3.
    mode : str
        `"full"`, the published method: Adam runs on the imitated gradient of W, so two moments as large as W
        are kept for every module (and, on the CPU, for every round that can be rewound to); `"efficient"`:
        Adam runs on the steps of A and B, with LoRA's memory and less theory behind it.
    eps : float
        Adam's.

    References
    ----------
    Wang et al. 2024, arXiv 2407.18242; the equations are in `adjusted`.
    """

    lr: float = 1e-4
    mode: str = option("full", choices=MODES)
    eps: float = option(1e-8, above=0)

    name: ClassVar[str] = "lora-pro"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay:
            raise ValueError(
                f"LoRA-Pro steps W as a whole, where weight decay would shrink the frozen base too; "
                f"leave weight_decay at 0, got {self.weight_decay}."
            )

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return ProAdam(self.boosters.values(), self.lr, self.betas, self.eps, self.mode)


class ProAdam(PairOptimizer):
    """Adam on the equivalent gradient or on the adjusted steps.

    Parameters
    ----------
    boosters : iterable of LowRank
        The pairs.
    lr, betas, eps : float, tuple of float, float
        Adam's.
    mode : str
        `"full"`, on the equivalent gradient, or `"efficient"`, on the adjusted steps.
    """

    def __init__(
        self, boosters: Any, lr: float, betas: tuple[float, float], eps: float = 1e-8, mode: str = "full"
    ) -> None:
        super().__init__(boosters, lr, betas, eps)
        self.mode = mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        for stack in self.stacks():
            A, B, s = stack.A, stack.B, stack.scale
            step = self.next_step(stack)
            if self.mode == "full":
                G = equivalent_gradient(A, B, *adjusted(A, B, stack.gA, stack.gB, s, closest=False), s)
                U = self._adam(stack, "B", G, step)  # (g, d, k)
                hA, hB = adjusted(A, B, s * B.mT @ U, s * U @ A.mT, s)
            else:
                hA, hB = adjusted(A, B, stack.gA, stack.gB, s)
                hA, hB = self._adam(stack, "A", hA, step), self._adam(stack, "B", hB, step)
            descend(stack, hA, hB, group["lr"])

    def _adam(self, stack: Stack, factor: str, gradient: Tensor, step: Tensor) -> Tensor:
        """Adam's direction for a gradient (g, …), its moments kept with the factor."""
        (beta1, beta2), eps = self.param_groups[0]["betas"], self.param_groups[0]["eps"]
        fresh = torch.zeros_like(gradient[0])
        first = self.load(stack, factor, "exp_avg", fresh).lerp_(gradient, 1 - beta1)
        second = self.load(stack, factor, "exp_avg_sq", fresh)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self.keep(stack, factor, exp_avg=first, exp_avg_sq=second)
        return (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)


def equivalent_gradient(A: Tensor, B: Tensor, hA: Tensor, hB: Tensor, scale: float) -> Tensor:
    """What steps hA and hB do to W to first order: s(B hA + hB A), (…, d, k).

    Parameters
    ----------
    A, hA : Tensor
        (…, r, k).
    B, hB : Tensor
        (…, d, r).
    scale : float
        s.
    """
    return scale * (B @ hA + hB @ A)


def adjusted(
    A: Tensor, B: Tensor, gA: Tensor, gB: Tensor, scale: float, closest: bool = True
) -> tuple[Tensor, Tensor]:
    """Steps whose effect on W is nearest to G, from gA = s BᵀG and gB = s G Aᵀ.

    With K_A = A Aᵀ and K_B = BᵀB,

        hA = K_B⁻¹ gA / s² + X A,      hB = (I − B K_B⁻¹ Bᵀ) gB K_A⁻¹ / s² − B X.

    Any X (…, r, r) has the same effect on W.

    Parameters
    ----------
    A, gA : Tensor
        (…, r, k).
    B, gB : Tensor
        (…, d, r).
    scale : float
        s.
    closest : bool
        Take the X that stays nearest to LoRA's own gradients, the solution of K_B X + X K_A = −K_B⁻¹ gA Aᵀ /
        s²; otherwise X = 0.

    Returns
    -------
    tuple of Tensor
        hA (…, r, k) and hB (…, d, r).
    """
    gram_A, gram_B = Gram(A @ A.mT), Gram(B.mT @ B)
    hA = gram_B.solve(gA) / scale**2
    rest = gB - B @ gram_B.solve(B.mT @ gB)  # never the d × d projector
    hB = gram_A.solve(rest.mT).mT / scale**2
    if closest:
        X = sylvester(gram_B, gram_A, -hA @ A.mT)
        hA, hB = hA + X @ A, hB - B @ X
    return hA, hB


class Gram:
    """A Gram matrix by its eigenvalues, with a ridge relative to its own size.

    The ridge is 8 machine epsilons of the mean eigenvalue, 1e-6 in float32: an absolute one, as in the
    released code, would decide the step by itself right after B = 0.

    Parameters
    ----------
    K : Tensor
        (…, r, r), symmetric.
    """

    def __init__(self, K: Tensor) -> None:
        values, self.vectors = decomposed(torch.linalg.eigh, K)
        ridge = 8 * torch.finfo(K.dtype).eps * values.mean(-1, keepdim=True)
        self.values = values.clamp_min(0) + ridge.clamp_min(0)
        # B = 0, the start: no column space. Its inverse is 0, so A rests and B alone moves.
        self.inverse = torch.where(self.values > 0, 1 / self.values, 0)

    def solve(self, right: Tensor) -> Tensor:
        """K⁻¹ right, (…, r, n)."""
        return self.vectors @ (self.inverse[..., None] * (self.vectors.mT @ right))


def sylvester(left: Gram, right: Gram, C: Tensor) -> Tensor:
    """X with left X + X right = C, in the eigenvectors of both symmetric matrices.

    Parameters
    ----------
    left, right : Gram
        Of (…, r, r) matrices.
    C : Tensor
        (…, r, r), as X.
    """
    sums = left.values[..., :, None] + right.values[..., None, :]
    rotated = left.vectors.mT @ C @ right.vectors
    return left.vectors @ torch.where(sums > 0, rotated / sums, 0) @ right.vectors.mT
