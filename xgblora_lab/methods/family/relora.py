"""ReLoRA: LoRA that is merged and restarted, with most of Adam's memory pruned (arXiv 2307.05695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xgblora_lab import seeds
from xgblora_lab.methods.xgblora import XGBLoRA

PRUNINGS = ("magnitude", "random")


@dataclass
class ReLoRA(XGBLoRA):
    """Boosting rounds of rank r on all modules; the optimizer forgets most, but not all, at every restart.

    rank: of each restart's pair (8 as LoRA here; the paper pre-trains with 128). lr: LoRA's unit, 1e-3.
    steps_per_round: steps between restarts (the paper's are thousands; 20 is the bench's default, ours).
    prune: share of Adam's moments that a restart sets to zero; the step counter continues. The released code
        prunes 0.8 to 0.9 by magnitude or 0.999 at random; 0.99 is ours.
    pruning: `"magnitude"` keeps the entries whose first moment is largest, `"random"` a random choice. Both
        moments of an entry go together (ours): a first moment without its second is divided by zero.
    round_warmup: steps of linear re-warm-up, which the running step counter needs (50 to 100 in the paper;
        5 of 20 is ours).
    Cost beyond LoRA: one merge a round. The other options are XGBLoRA's.
    """

    lr: float = 1e-3
    rank: int = 8
    selection: str = "all"
    optimizer_state: str = "keep"
    round_warmup: int = 5
    prune: float = 0.99
    pruning: str = "magnitude"

    name: ClassVar[str] = "relora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer_state != "keep":
            raise ValueError(
                f"ReLoRA keeps what `prune` leaves; leave optimizer_state at 'keep' (cola is the method that "
                f"starts afresh), got {self.optimizer_state!r}."
            )
        if not 0 <= self.prune <= 1:
            raise ValueError(f"prune is a share from 0 to 1, got {self.prune}.")
        if self.pruning not in PRUNINGS:
            raise ValueError(f"Unknown pruning {self.pruning!r}; accepted: {', '.join(PRUNINGS)}.")

    def carry(self, state: dict[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
        generator = seeds.generator("pruning", seed, index)
        for key, moment in state.items():
            if key.endswith("/exp_avg"):
                order = (
                    moment.abs()
                    if self.pruning == "magnitude"
                    else torch.rand(moment.shape, generator=generator)
                )
                pruned = order.flatten().argsort(stable=True)[: int(self.prune * moment.numel())]
                for entry in (moment, state[f"{key}_sq"]):
                    entry.view(-1)[pruned] = 0
        return state
