"""Full fine-tuning: every weight of the model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.linear import can_merge, dense_weight
from xgblora_lab.methods.base import Continued
from xgblora_lab.stored import refuse_packed, refuse_sharded

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop


@dataclass
class Full(Continued):
    """The reference that low rank is measured against.

    Its update has no small factors, so only the current one is kept: a run can be saved and resumed, but not
    rewound to an earlier round. It costs 6 instead of 4 floating-point operations per token and weight, and
    a gradient and two moments as large as the model.

    Parameters
    ----------
    lr : float
        A tenth of LoRA's, because every weight moves.

    Raises
    ------
    ValueError
        At the start of a run, where a weight is quantised.
    """

    lr: float = 1e-4

    name: ClassVar[str] = "full"
    rewindable: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    flops_per_weight: ClassVar[int] = 6  # 2 more for the weights' own gradients

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parameters: dict[str, nn.Parameter] = {}
        self.before: dict[str, Tensor] = {}

    def start(self, loop: Loop) -> None:
        super().start(loop)
        loop.weights.snapshot()
        head = {id(p) for p in loop.head.values()}
        trained = {
            n: p for n, p in loop.model.named_parameters() if id(p) not in head and p.is_floating_point()
        }
        frozen = [n for n, p in loop.model.named_parameters() if not p.is_floating_point()]
        frozen += [n for n, module in loop.modules.items() if not can_merge(module)]
        refuse_packed(frozen, "full fine-tuning needs floating-point weights; use lora.")
        refuse_sharded(trained, "full fine-tuning would train every process's part apart; use lora.")
        self.before = {n: p.detach().to("cpu", copy=True) for n, p in trained.items()}
        self.parameters = trained
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.parameters

    def end_round(self, loop: Loop, index: int) -> Boosters:
        return {}

    def close(self, loop: Loop) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.before[name])
            parameter.grad = None
            parameter.requires_grad_(False)

    def update(self, loop: Loop, module: str) -> Tensor:
        base = loop.weights.base(module)
        live = dense_weight(loop.modules[module]).detach().cpu()
        return live.to(torch.promote_types(base.dtype, torch.float32)) - base
