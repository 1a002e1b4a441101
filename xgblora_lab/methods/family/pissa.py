"""PiSSA: train the weight's own leading part (Meng, Wang and Zhang 2024, arXiv 2404.02948)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from xgblora_lab.lowrank.linear import can_merge, factor_dtype, weight_shape
from xgblora_lab.methods.family.offset import OffsetLoRA, leading

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop


@dataclass
class PiSSA(OffsetLoRA):
    """LoRA that trains the largest singular directions of W and freezes the rest.

    With W = U S Vᵀ, s·B₀A₀ is W cut to rank r: B₀ = U√(S/s), A₀ = √(S/s)Vᵀ. LoRA starts at zero beside a
    frozen W.

    Beyond LoRA it costs one SVD per module at the start, and what `OffsetLoRA` keeps. No pass over data.

    Parameters
    ----------
    lr : float
        The larger the weight's singular values, the further a step goes.
    rank : int
        At most the smaller side of every module.

    Raises
    ------
    ValueError
        At the start of a run, where a weight is packed (quantised) or too small for the rank.

    References
    ----------
    Meng, Wang and Zhang 2024, arXiv 2404.02948.
    """

    lr: float = 3e-4

    name: ClassVar[str] = "pissa"

    def check_shapes(self, loop: Loop) -> None:
        for name, module in loop.modules.items():
            if not can_merge(module):
                raise ValueError(
                    f"PiSSA takes the weight itself apart, but that of {name!r} is packed (quantised): load "
                    "the model unquantised, or use lora."
                )
            directions = min(weight_shape(module))
            if self.rank > directions:
                raise ValueError(
                    f"PiSSA needs rank singular directions of a weight, but {name!r} has {directions}: "
                    f"use a rank of at most {directions}, or leave it out of the targets."
                )

    def first_factors(self, loop: Loop) -> dict[str, tuple[Tensor, Tensor]]:
        factors = {}
        scale = self.scale_of(self.rank)
        for name, module in loop.modules.items():
            weight = loop.weights.base(name).to(factor_dtype(module))
            U, s, V = leading(weight, self.rank, loop.seed)
            root = s.sqrt() / math.sqrt(scale)
            factors[name] = (U * root, root[:, None] * V.T)
        return factors
