"""LoRA: one pair per module, trained from the first step to the last (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.base import Continued, booster_parameters, fresh_boosters

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench
    from xgblora_lab.lowrank.live_weights import Boosters


@dataclass
class LoRA(Continued):
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
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be positive, or None for alpha = rank; got {self.alpha}.")
        if self.scaling not in ("lora", "rslora"):
            raise ValueError(
                f"Unknown scaling {self.scaling!r}; accepted: 'lora' (alpha/r), 'rslora' (alpha/√r)."
            )

    def rank_bound(self, modules: int) -> int | None:
        return self.rank if self.low_rank else None

    def scale_of(self, rank: int) -> float:
        """The scale of a pair of this rank."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (rank if self.scaling == "lora" else math.sqrt(rank))

    def start(self, bench: Bench) -> None:
        super().start(bench)
        self.boosters = self.make_boosters(bench)
        for name, booster in self.boosters.items():
            booster.attach(bench.modules[name])

    def make_boosters(self, bench: Bench) -> dict[str, LowRank]:
        """The pairs that are attached for the whole run."""
        return fresh_boosters(bench.modules, self.rank, self.scale_of, self.init, bench.seed, 0)

    def begin_round(self, bench: Bench, index: int) -> Iterable[str]:
        return self.boosters

    def trainable(self) -> dict[str, nn.Parameter]:
        return booster_parameters(self.boosters)

    def end_round(self, bench: Bench, index: int) -> Boosters:
        return {name: booster.factors() for name, booster in self.boosters.items()}

    def close(self, bench: Bench) -> None:
        for booster in self.boosters.values():
            booster.detach()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, booster in self.boosters.items():
            rank = state[f"{name}.B"].shape[1]
            if rank != booster.rank:  # methods that move rank between modules
                booster.resize(rank)
                booster.scale = self.scale_of(rank)
        super().load_state(state)


def check_rank(rank: int) -> None:
    """ValueError unless `rank` is a whole number from 1."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number from 1, got {rank!r}.")
