"""LoRA: one pair per module, trained from the first step to the last (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.adapters import LowRank
from xgblora_lab.methods.base import (
    Method,
    booster_parameters,
    fresh_boosters,
    load_optimizer_tensors,
    optimizer_tensors,
)

if TYPE_CHECKING:
    from xgblora_lab.bench import Bench
    from xgblora_lab.weights import Boosters


@dataclass
class LoRA(Method):
    """W + s·B A with B = 0 at the start; only A (rank, k) and B (d, rank) are trained.

    rank: r. alpha: the scale is alpha/rank, or alpha/√rank with `scaling="rslora"` (Kalajdzievski 2023,
    arXiv 2312.03732); None means alpha = rank, a scale of 1 for plain LoRA. init: how A starts.
    """

    rank: int = 8
    alpha: float | None = None
    scaling: str = "lora"
    init: str = "kaiming"

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        if self.scaling not in ("lora", "rslora"):
            raise ValueError(
                f"Unknown scaling {self.scaling!r}; accepted: 'lora' (alpha/r), 'rslora' (alpha/√r)."
            )

    @property
    def scale(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank if self.scaling == "lora" else math.sqrt(self.rank))

    def start(self, bench: Bench) -> None:
        self.boosters = self.make_boosters(bench)
        for name, booster in self.boosters.items():
            booster.attach(bench.modules[name])
        self.optimizer: torch.optim.Optimizer | None = None

    def make_boosters(self, bench: Bench) -> dict[str, LowRank]:
        """The pairs that are attached for the whole run."""
        return fresh_boosters(bench.modules, self.rank, self.scale, self.init, bench.seed, 0)

    def begin_round(self, bench: Bench, index: int) -> Iterable[str]:
        return self.boosters

    def trainable(self) -> dict[str, nn.Parameter]:
        return booster_parameters(self.boosters)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = super().make_optimizer(parameters)
        return self.optimizer

    def end_round(self, bench: Bench, index: int) -> Boosters:
        return {name: booster.factors() for name, booster in self.boosters.items()}

    def close(self, bench: Bench) -> None:
        for booster in self.boosters.values():
            booster.detach()

    def state(self) -> dict[str, Tensor]:
        tensors = {n: p.detach().to("cpu", copy=True) for n, p in self.trainable().items()}
        if self.optimizer is not None:
            tensors |= optimizer_tensors(self.optimizer, self.trainable(), "optimizer/")
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable().items():
            parameter.data.copy_(state[name])
        self.optimizer = None
        if any(key.startswith("optimizer/") for key in state):
            optimizer = self.make_optimizer(list(self.trainable().values()))
            load_optimizer_tensors(optimizer, self.trainable(), state, "optimizer/")


def check_rank(rank: int) -> None:
    """ValueError unless `rank` is a whole number from 1."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number from 1, got {rank!r}.")
