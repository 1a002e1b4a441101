"""XGBLoRA: boosting with rank-1 adapters (arXiv 2410.19694).

"Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of LLMs". Each round trains
fresh low-rank pairs on some modules, and the bench merges them. Rank 1, fresh pairs, random layers and the
merge are the paper's; when to merge, schedule, optimizer policy and the initialisations are our choices, and
called so in the options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.methods.base import Method, booster_parameters
from xgblora_lab.methods.optimizers import load_optimizer_tensors, optimizer_tensors
from xgblora_lab.methods.options import RANKS, option
from xgblora_lab.methods.weak_learner import (
    chosen_units,
    earlier_directions,
    fresh_boosters,
    hardest_rows,
    has_stopped_falling,
    last_directions,
    residual_A,
    train_further,
)

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop

MERGES = ("fixed", "plateau")
SELECTIONS = ("all", "random", "cyclic", "contiguous", "top")
UNITS = ("module", "block")
POLICIES = ("fresh", "keep_B", "keep", "zero_moments")
STARTS = ("kaiming", "gaussian", "orthogonal", "residual", "previous")
EXAMPLES = ("all", "hardest")
SUBSPACES = ("free", "orthogonal")


@dataclass
class XGBLoRA(Method):
    """Boosting rounds.

    Parameters
    ----------
    rank : int
        Of each booster; the paper's is 1.
    alpha : float or None
        The scale is alpha / rank; None means alpha = rank.
    merge : str
        When a booster is merged: `"fixed"`, after `steps_per_round` steps; or `"plateau"`, when it is fitted:
        every `steps_per_round` steps the training losses of the last stretch are compared with those of the
        stretch before, and the round ends where their mean has not fallen beyond its standard error.
    max_steps_per_round : int or None
        With `"plateau"`, the longest round; None: as long as the run.
    selection : str
        Which units get a booster in a round: `"all"`; `"random"` without replacement; `"cyclic"` in the
        model's order; `"contiguous"`, neighbours at a random place; `"top"`, the last ones. All but `"all"`
        save memory and time, not steps.
    unit : str
        What is selected: single matrices (`"module"`) or whole transformer blocks (`"block"`, as in the
        paper).
    modules_per_round : float
        L_s, how many units get a booster in a round: a number, or a fraction of all. Not for `"all"`.
    shrinkage : float
        α_t, factor on a booster at its merge. Below 1 the loss jumps up at every merge, because the booster
        was fitted at full strength.
    backfit : int or None
        The most boosters that a module has. Later rounds take the one that was trained longest ago and train
        it further, with all others fixed, as backfitting does with the terms of an additive model (Friedman
        and Stuetzle 1981); the peak stays that of one booster. None: no end, and none is trained again.
    norm_penalty : float
        λ in λ(‖A‖² + ‖B‖²), added to the gradient, not to the recorded loss.
    round_warmup : int
        Steps of linear re-warm-up at the start of each round.
    optimizer_state : str
        `"fresh"` for each round; `"keep_B"` carries Adam's moments of B to the next booster on the module,
        which is sound where A is kept too (`init="previous"`). Harmful, for a lesson: `"keep"` carries all
        moments, `"zero_moments"` only the step counter.
    init : str
        How A starts: `"kaiming"`, `"gaussian"`, `"orthogonal"`; `"previous"`, along the last booster's A on
        the module; or `"residual"`, see `weak_learner.residual_A`.
    examples : str
        `"all"`, in the plan's order; or `"hardest"`: of the rows planned for the next 2κ steps, the half
        that the model gets most wrong; their losses cost forward passes.
    subspace : str
        `"free"`, or `"orthogonal"`: each A stays orthogonal to the earlier ones' on its module, so that each
        round adds rank. This and `examples` are our reading of the abstract of BoostLoRA (arXiv 2604.27308),
        not its algorithm.
    """

    lr: float = 1e-2
    rank: int = option(1, low=1, most=RANKS)
    alpha: float | None = option(None, above=0)
    merge: str = option("fixed", choices=MERGES)
    max_steps_per_round: int | None = option(None, low=1)
    selection: str = option("all", choices=SELECTIONS)
    unit: str = option("module", choices=UNITS)
    modules_per_round: float = option(1 / 3, above=0)
    shrinkage: float = option(1.0, above=0, high=1)
    backfit: int | None = option(None, low=1)
    norm_penalty: float = option(0.0, low=0)
    round_warmup: int = option(0, low=0)
    optimizer_state: str = option("fresh", choices=POLICIES)
    init: str = option("kaiming", choices=STARTS)
    examples: str = option("all", choices=EXAMPLES)
    subspace: str = option("free", choices=SUBSPACES)

    name: ClassVar[str] = "xgblora"
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        L = self.modules_per_round
        if L > 1 and int(L) != L:
            raise ValueError(f"modules_per_round is a whole number from 1 or a fraction below 1, got {L!r}.")
        if self.merge == "plateau" and self.examples == "hardest":
            raise ValueError(
                "The hardest examples are picked for a known number of steps: use merge='fixed'."
            )

        if self.backfit is not None and (self.shrinkage < 1 or self.subspace == "orthogonal"):
            raise ValueError(
                "Boosters are trained further as they are: backfit needs shrinkage=1, subspace='free'."
            )

    @classmethod
    def knobs(cls, steps: int) -> list[dict[str, Any]]:
        """Rounds of several lengths, two boosters trained in turn, and merging at a plateau."""
        first, *others = super().knobs(steps)
        pair = {"steps_per_round": max(1, round(steps / 6)), "backfit": 2}
        return [first, pair, *others[:2], {"merge": "plateau", "steps_per_round": 25}, *others[2:]]

    def rank_bound(self, modules: int) -> int | None:
        return self.rank

    def scale_of(self, rank: int) -> float:
        """The scale of a booster of this rank."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def rate(self, step: int, round_step: int, total: int) -> float:
        factor = super().rate(step, round_step, total)
        return factor * min(1.0, (round_step + 1) / self.round_warmup) if self.round_warmup else factor

    def start(self, loop: Loop) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.carried: dict[str, Tensor] = {}  # optimizer state by parameter, for the policies that keep it

    def choose(self, names: list[str], seed: int, index: int) -> list[str]:
        """The modules of round `index`, in the model's order; depends on the seed and the round alone."""
        return chosen_units(names, self.selection, self.unit, self.modules_per_round, seed, index)

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        names = self.choose(list(loop.modules), loop.seed, index)
        modules = {name: loop.modules[name] for name in names}
        init = "kaiming" if self.init in ("residual", "previous") else self.init
        self.boosters = fresh_boosters(modules, self.rank, self.scale_of, init, loop.seed, index)
        starts: Mapping[str, Tensor] = {}
        if self.init == "residual":
            starts = residual_A(loop, modules, self.rank, index)
        elif self.init == "previous":
            starts = last_directions(loop.ensemble, names)
        for name, A in starts.items():
            self.boosters[name].A.data.copy_(A)
        if self.backfit is not None:
            train_further(loop.ensemble, self.boosters, self.backfit)
        if self.subspace == "orthogonal":
            self.taken = {name: earlier_directions(loop, name, self.rank) for name in names}
            self.leave_taken()
        for name, booster in self.boosters.items():
            booster.attach(modules[name])
        return names

    def new_parameters(self, index: int) -> int:
        return sum(p.numel() for b in self.boosters.values() if b.start is None for p in b.parameters())

    def pick_rows(self, loop: Loop) -> Mapping[int, list[int]]:
        return hardest_rows(loop, self.steps_per_round) if self.examples == "hardest" else {}

    def trainable(self) -> dict[str, nn.Parameter]:
        return booster_parameters(self.boosters)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        self.optimizer = super().make_optimizer(parameters)
        if self.carried:
            load_optimizer_tensors(self.optimizer, self.trainable(), self.carried)
        return self.optimizer

    def after_backward(self, loop: Loop) -> None:
        if self.norm_penalty:
            for parameter in self.trainable().values():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach(), alpha=2 * self.norm_penalty)

    def after_step(self, loop: Loop) -> None:
        if self.subspace == "orthogonal":
            self.leave_taken()

    def is_fitted(self, loop: Loop, losses: Sequence[Tensor]) -> bool:
        if self.merge == "fixed":
            return super().is_fitted(loop, losses)
        if self.max_steps_per_round is not None and len(losses) >= self.max_steps_per_round:
            return True
        stretch = self.steps_per_round
        if len(losses) < 2 * stretch or len(losses) % stretch:
            return False
        return has_stopped_falling(torch.stack(list(losses[-2 * stretch :])).double().cpu())

    @torch.no_grad()
    def leave_taken(self) -> None:
        """Project every A onto the complement of the directions taken by earlier rounds."""
        for name, Q in self.taken.items():
            A = self.boosters[name].A
            Q = Q.to(A)
            A.sub_((A @ Q) @ Q.T)

    def end_round(self, loop: Loop, index: int) -> Boosters:
        if self.optimizer_state != "fresh" and self.optimizer is not None:
            state = optimizer_tensors(self.optimizer, self.trainable())
            self.carried |= self.carry(state, loop.seed, index)
        boosters = {name: booster.factors(self.shrinkage) for name, booster in self.boosters.items()}
        self.close(loop)
        return boosters

    def carry(self, state: dict[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
        """What the next boosters inherit of the optimizer's state, which may be changed in place."""
        if self.optimizer_state == "keep_B":
            return {key: value for key, value in state.items() if ".B/" in key}
        if self.optimizer_state == "zero_moments":
            for key, value in state.items():
                if not key.endswith("/step"):
                    value.zero_()
        return state

    def close(self, loop: Loop) -> None:
        for booster in self.boosters.values():
            booster.detach()
        self.boosters = {}
        self.optimizer = None

    def state(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.carried.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.carried = {key: value.clone() for key, value in state.items()}
