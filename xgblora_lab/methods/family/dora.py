"""DoRA: direction by LoRA, length by a trained number for each output (Liu et al. 2024, arXiv 2402.09353)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.lowrank.linear import dense_weight
from xgblora_lab.methods.family.row_norms import row_norms
from xgblora_lab.methods.lora import LoRA

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop


class Decomposed(LowRank):
    """y = c ⊙ (W x + s B A x) + bias with c = magnitude / ‖rows of W + sBA‖, the norm taken as a constant.

    Parameters
    ----------
    A, B : Tensor
        (r, k) and (d, r), as they start.
    scale : float
        s.
    module : nn.Module
        The linear map, whose row norms (d,) the trained magnitude starts from.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float, module: nn.Module) -> None:
        super().__init__(A, B, scale)
        self.frozen = row_norms(module, self)
        self.magnitude = nn.Parameter(self.frozen.clone())

    def ratio(self, module: nn.Module) -> Tensor:
        """c (d,), with gradient to the magnitude alone (section 4.3 of the paper)."""
        return self.magnitude / row_norms(module, self, self.frozen)

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        mapped = output if bias is None else output - bias
        mapped = self.ratio(module) * (mapped.to(self.A.dtype) + self(args[0]))
        return (mapped if bias is None else mapped + bias).to(output.dtype)


@dataclass
class DoRA(LoRA):
    """LoRA changes the direction of each output, and one more number changes its length.

    It costs d numbers for each module beside the pair, and the norms of W + sBA one more thin product in each
    forward pass. The accumulated update has full rank: no PEFT LoRA can hold it, so export with
    `export_merged`. A packed weight is refused.

    References
    ----------
    Liu et al. 2024, arXiv 2402.09353: W' = m · (W + BA) / ‖W + BA‖, and section 4.3 for the norm as a
    constant.
    """

    name: ClassVar[str] = "dora"
    low_rank: ClassVar[bool] = False

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        plain = super().make_boosters(loop)
        return {n: Decomposed(b.A.data, b.B.data, b.scale, loop.modules[n]) for n, b in plain.items()}

    def end_round(self, loop: Loop, index: int) -> Boosters:
        return {}

    @torch.no_grad()
    def update(self, loop: Loop, module: str) -> Tensor:
        booster, base = self.boosters[module], loop.modules[module]
        assert isinstance(booster, Decomposed)
        W = dense_weight(base).detach().to(booster.A.dtype)
        B, A = booster.factors()
        return (booster.ratio(base)[:, None] * (W + B @ A) - W).cpu()
