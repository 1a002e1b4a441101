"""ReLoRA: LoRA is merged and restarted, most of Adam's memory pruned (Lialin et al., arXiv 2307.05695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xgblora_lab import seeds
from xgblora_lab.methods.options import option
from xgblora_lab.methods.xgblora import XGBLoRA

PRUNINGS = ("magnitude", "random")


@dataclass
class ReLoRA(XGBLoRA):
    """Boosting rounds of rank r on all modules; the optimizer forgets most, but not all, at every restart.

    It costs one merge a round beyond LoRA. The other options are XGBLoRA's.

    Parameters
    ----------
    lr : float
        LoRA's unit.
    rank : int
        Of each restart's pair, as LoRA's (the paper pre-trains with 128).
    steps_per_round : int
        Steps between restarts. The paper's are thousands; the default is the bench's.
    optimizer_state : str
        Stays at `"keep"`.
    round_warmup : int
        Steps of linear re-warm-up, which the running step counter needs (50 to 100 in the paper; the default
        is ours).
    prune : float
        Share of Adam's moments that a restart sets to zero; the step counter continues. The released code
        prunes 0.8 to 0.9 by magnitude or 0.999 at random; the default is ours.
    pruning : str
        `"magnitude"` keeps the entries whose first moment is largest, `"random"` a random choice. Both
        moments of an entry go together (ours): a first moment without its second is divided by zero.

    References
    ----------
    Lialin et al. 2023, arXiv 2307.05695.
    """

    lr: float = 1e-3
    rank: int = 8
    selection: str = "all"
    optimizer_state: str = "keep"
    round_warmup: int = 5
    prune: float = option(0.99, low=0, high=1)
    pruning: str = option("magnitude", choices=PRUNINGS)

    name: ClassVar[str] = "relora"

    @classmethod
    def knobs(cls, steps: int) -> list[dict[str, Any]]:
        return super(XGBLoRA, cls).knobs(steps)  # restarts at equal distances, and no pair is trained again

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer_state != "keep":
            raise ValueError(
                f"ReLoRA keeps what `prune` leaves; leave optimizer_state at 'keep' (cola is the method that "
                f"starts afresh), got {self.optimizer_state!r}."
            )

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
