"""LoRA: one pair per module, trained from the first step to the last (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from xgblora_lab.lowrank.booster import INITS, LowRank
from xgblora_lab.methods.base import Continued, booster_parameters
from xgblora_lab.methods.options import RANKS, option
from xgblora_lab.methods.weak_learner import fresh_boosters

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop


@dataclass
class LoRA(Continued):
    """W + s·B A with B = 0 at the start; only A (rank, k) and B (d, rank) are trained.

    Parameters
    ----------
    rank : int
        r, of every pair.
    alpha : float or None
        The scale is alpha / rank; None means alpha = rank, a scale of 1.
    scaling : str
        `"lora"`, or `"rslora"` for a scale of alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732).
    init : str
        How A starts, see `lowrank.booster.init_A`.
    """

    rank: int = option(8, low=1, most=RANKS)
    alpha: float | None = option(None, above=0)
    scaling: str = option("lora", choices=("lora", "rslora"))
    init: str = option("kaiming", choices=INITS)

    name: ClassVar[str] = "lora"

    def rank_bound(self, modules: int) -> int | None:
        return self.rank if self.low_rank else None

    def scale_of(self, rank: int) -> float:
        """The scale of a pair of this rank."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (rank if self.scaling == "lora" else math.sqrt(rank))

    def start(self, loop: Loop) -> None:
        super().start(loop)
        self.boosters = self.make_boosters(loop)
        for name, booster in self.boosters.items():
            booster.attach(loop.modules[name])

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        """The pairs that are attached for the whole run."""
        return fresh_boosters(loop.modules, self.rank, self.scale_of, self.init, loop.seed, 0)

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        return self.boosters

    def trainable(self) -> dict[str, nn.Parameter]:
        return booster_parameters(self.boosters)

    def end_round(self, loop: Loop, index: int) -> Boosters:
        return {name: booster.factors() for name, booster in self.boosters.items()}

    def close(self, loop: Loop) -> None:
        for booster in self.boosters.values():
            booster.detach()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, booster in self.boosters.items():
            rank = state[f"{name}.B"].shape[1]
            if rank != booster.rank:  # methods that move rank between modules
                booster.resize(rank)
                booster.scale = self.scale_of(rank)
        super().load_state(state)
