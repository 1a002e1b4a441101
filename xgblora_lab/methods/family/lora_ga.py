"""LoRA-GA: start where full fine-tuning would go first (Wang, Yu and Li 2024, arXiv 2407.05000)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from xgblora_lab.lowrank.linear import weight_shape
from xgblora_lab.methods.family.gradient import mean_gradients
from xgblora_lab.methods.family.offset import OffsetLoRA, leading
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop


@dataclass
class LoRAGA(OffsetLoRA):
    """LoRA whose A and B start along the gradient's leading directions.

    So its first SGD step is the best rank-2r copy of full fine-tuning's. With the gradient G = U S Vᵀ:
    A₀ = c·(v₁ … v_r)ᵀ and B₀ = c·(u_{r+1} … u_2r), c = d^¼/√gamma (the authors' "ArB2r" and "stable"). One
    SGD step of length η moves the weight by −η s²c²·G cut to rank 2r.

    Beyond LoRA it costs `passes` gradient passes and one SVD per module at the start, d·k numbers per module
    meanwhile, and what `OffsetLoRA` keeps.

    Parameters
    ----------
    lr : float
        The best rate is near that of full fine-tuning, not near LoRA's.
    rank : int
        At most half of the smaller side of every module.
    scaling : str
        As in LoRA; c is made for `"rslora"`.
    gamma : float
        How small the start is; the offset's entries are alpha/(gamma·√k) in the root mean square under
        rsLoRA's scaling. The authors use 16 and 64. Raise it where that is above half of the weight's.
    passes : int
        Batches that the gradient is averaged over; the default is that of the authors' reproduction.

    Raises
    ------
    ValueError
        Where an option is refused; at the start of a run, where a module is too small for the rank; in the
        first round, where a gradient is not finite.

    References
    ----------
    Wang, Yu and Li 2024, arXiv 2407.05000.
    """

    lr: float = 2e-4
    scaling: str = "rslora"
    gamma: float = option(64.0, above=0)
    passes: int = option(8, low=1)

    name: ClassVar[str] = "lora-ga"

    def check_shapes(self, loop: Loop) -> None:
        for name, module in loop.modules.items():
            directions = min(weight_shape(module))
            if 2 * self.rank > directions:
                raise ValueError(
                    f"LoRA-GA starts from 2·rank directions of a gradient, but {name!r} has {directions}: "
                    f"use a rank of at most {directions // 2}, or leave it out of the targets."
                )

    def first_factors(self, loop: Loop) -> dict[str, tuple[Tensor, Tensor]]:
        gradients = mean_gradients(loop, loop.modules, self.passes)
        return {name: self.split(G, loop.seed) for name, G in gradients.items()}

    def split(self, G: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The start that a gradient asks for.

        Parameters
        ----------
        G : Tensor
            (d, k).
        seed : int
            Of the random projection, where the matrix is large.

        Returns
        -------
        tuple of Tensor
            B₀ (d, r) and A₀ (r, k).
        """
        U, _, V = leading(G, 2 * self.rank, seed)
        c = G.shape[0] ** 0.25 / math.sqrt(self.gamma)
        return c * U[:, self.rank :], c * V[:, : self.rank].T
