"""Full fine-tuning: every weight of the model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.methods.base import Method, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from xgblora_lab.bench import Bench
    from xgblora_lab.weights import Boosters


@dataclass
class Full(Method):
    """The reference that low rank is measured against. Its update has no small factors, so only the current
    one is kept: a run can be saved and resumed, but not rewound to an earlier round.
    """

    lr: float = 1e-4

    name: ClassVar[str] = "full"
    rewindable: ClassVar[bool] = False
    flops_per_weight: ClassVar[int] = 6  # 2 more for the weights' own gradients

    def start(self, bench: Bench) -> None:
        bench.weights.snapshot()
        head = {id(p) for p in bench.head.values()}
        self.parameters = {
            n: p for n, p in bench.model.named_parameters() if id(p) not in head and p.is_floating_point()
        }
        frozen = [n for n, p in bench.model.named_parameters() if not p.is_floating_point()]
        if frozen:
            raise ValueError(
                f"Full fine-tuning needs floating-point weights, but {frozen[0]!r} is quantised."
            )
        self.before = {n: p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer: torch.optim.Optimizer | None = None

    def begin_round(self, bench: Bench, index: int) -> Iterable[str]:
        return bench.modules

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.parameters

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = super().make_optimizer(parameters)
        return self.optimizer

    def end_round(self, bench: Bench, index: int) -> Boosters:
        return {}

    def close(self, bench: Bench) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.before[name])
            parameter.grad = None
            parameter.requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        tensors = {n: p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}
        if self.optimizer is not None:
            tensors |= optimizer_tensors(self.optimizer, self.parameters, "optimizer/")
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])
        self.optimizer = None
        if any(key.startswith("optimizer/") for key in state):
            optimizer = self.make_optimizer(list(self.parameters.values()))
            load_optimizer_tensors(optimizer, self.parameters, state, "optimizer/")
