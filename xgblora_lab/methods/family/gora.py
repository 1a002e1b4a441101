"""GoRA: ranks and a first step from one look at the gradient (He et al. 2025, arXiv 2502.12171)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xgblora_lab.lowrank.linear import can_merge
from xgblora_lab.methods.family.gradient import mean_gradients
from xgblora_lab.methods.family.lora_plus import LoRAPlus
from xgblora_lab.methods.options import option
from xgblora_lab.methods.weak_learner import fresh_boosters

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop

ROUNDINGS = ("nearest", "floor")


@dataclass
class GoRA(LoRAPlus):
    """LoRA that gives more rank to the modules that matter most, and whose B starts as one descent step.

    With the mean gradient G of a module: its importance is mean|W∘G| (W∘G entry by entry), its rank its share
    of the budget Σ√(d+k)·rank over √(d+k), and B₀ = −ξ G A₀ᵀ(A₀A₀ᵀ)⁻¹, so that s·B₀A₀ is −G projected on
    A₀'s rows, with about gamma times the norm of G. The base stays as it is. The minus is the paper's; later
    code lost it. The released scripts put d+k where the paper and this file have √(d+k).

    It costs `passes` gradient passes at the start beyond LoRA, and d·k numbers per module meanwhile.

    Parameters
    ----------
    lr : float
        As for rsLoRA.
    rank : int
        The mean rank that the budget is made of; alpha counts over each module's own rank.
    scaling : str
        As in LoRA; the paper's is `"rslora"`.
    ratio : float
        As in LoRA+. The authors' scripts add LoRA+ with 16; a race against `lora+` tells the two apart.
    r_min, r_max : int or None
        Bounds of a module's rank; None: rank/2 and 4·rank (4 and 32 for 8, as the authors). No rank exceeds
        min(d, k). What a bound cuts off is not given to other modules, so the budget is met only roughly.
    gamma : float
        Length of the first step; the default is that of the authors' scripts. 0 leaves B at zero.
    passes : int
        Batches that the gradient is averaged over (the authors: 32, in longer runs).
    rounding : str
        How a share becomes a rank: `"nearest"`, as in the paper; `"floor"`, as in the released code, which
        rounds the module's part of the budget and then divides by √(d+k) without remainder. With the
        lab model and `pydocs` that makes 11 of 28 ranks one lower.

    Raises
    ------
    ValueError
        Where an option is refused; at the start of a run, where a weight is packed (quantised); in the first
        round, where no module gets a gradient.

    References
    ----------
    He et al. 2025, arXiv 2502.12171; `common/lora_modules/gora.py` in hhnqqq/MyTransformers on GitHub.
    """

    lr: float = 3e-4
    scaling: str = "rslora"
    ratio: float = 1.0
    r_min: int | None = option(None, low=1)
    r_max: int | None = option(None, low=1)
    gamma: float = option(0.05, low=0)
    passes: int = option(8, low=1)
    rounding: str = option("nearest", choices=ROUNDINGS)

    name: ClassVar[str] = "gora"

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bounds()
        if low > high:
            raise ValueError(f"r_min must be at most r_max; got {low} and {high}.")

    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest rank of a module."""
        low = max(1, self.rank // 2) if self.r_min is None else self.r_min
        return low, 4 * self.rank if self.r_max is None else self.r_max

    def rank_bound(self, modules: int) -> int | None:
        return self.bounds()[1]

    def start(self, loop: Loop) -> None:
        packed = [name for name, module in loop.modules.items() if not can_merge(module)]
        if packed:
            raise ValueError(
                f"GoRA weighs the weight against its gradient, but that of {packed[0]!r} is packed "
                "(quantised): load the model unquantised, or use lora."
            )
        super().start(loop)

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        if index == 0:
            gradients = mean_gradients(loop, loop.modules, self.passes)
            importance = {n: float((loop.weights.base(n) * G).abs().mean()) for n, G in gradients.items()}
            ranks = self.share(importance, loop.ensemble.shapes)
            start = fresh_boosters(loop.modules, ranks, self.scale_of, self.init, loop.seed, 0)
            for name, booster in self.boosters.items():
                booster.resize(ranks[name])
                booster.scale = start[name].scale
                booster.A.data.copy_(start[name].A)
                booster.B.data.copy_(self.first_step(gradients[name], start[name].A.detach().cpu()))
        return super().begin_round(loop, index)

    def share(self, importance: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Which rank every module gets.

        Parameters
        ----------
        importance : mapping of str to float
            Of each module; at least one above 0.
        shapes : mapping of str to (int, int)
            (d, k) of each module.

        Raises
        ------
        ValueError
            Where no module has any importance.
        """
        total = sum(importance.values())
        if not total > 0:
            raise ValueError("GoRA found no gradient to give ranks by: check that the loss uses the modules.")
        low, high = self.bounds()
        size = {name: math.sqrt(sum(shapes[name])) for name in importance}
        budget = sum(size.values()) * self.rank
        ranks = {}
        for name, value in importance.items():
            part = budget * value / total
            r = round(part / size[name]) if self.rounding == "nearest" else int(round(part) // size[name])
            ranks[name] = min(max(low, r), high, *shapes[name])
        return ranks

    def first_step(self, G: Tensor, A: Tensor) -> Tensor:
        """B₀ (d, r), for which s·B₀A is the part of −G in the range of A's rows, times gamma·√(k/r).

        Parameters
        ----------
        G, A : Tensor
            (d, k) and (r, k).
        """
        r, k = A.shape
        xi = self.gamma * math.sqrt(k / r) / self.scale_of(r)  # E‖GP‖² = r/k·‖G‖² for a random projection P
        gram = (A @ A.T).double()
        gram.diagonal().add_(1e-8)
        return -xi * torch.linalg.solve(gram, (A @ G.T).double()).T.to(G.dtype)
