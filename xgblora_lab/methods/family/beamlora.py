"""BeamLoRA: the ranks of an adapter compete, and the weakest restart as copies of the strongest.

Gu et al. 2025, arXiv 2502.13604; details are from the authors' code, gccnlp/BeamLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop

SCOPES = ("global", "module")
MOMENTS = ("inherit", "keep", "zero")


class Competing(LowRank):
    """A booster whose gates are r·softmax(scores / tau): positive, and r in all, whatever the scores."""

    tau = 0.05

    def gates(self) -> Tensor:
        assert self.gate is not None
        return self.rank * torch.softmax(self.gate / self.tau, dim=0)


@dataclass
class BeamLoRA(LoRA):
    """LoRA whose ranks compete: the weakest restart as slightly older copies of the strongest.

    So useful directions get more ranks at the same size. The update is s·B diag(r·softmax(scores/tau)) A,
    with one trained score per rank, 0 at the start, so it starts as LoRA. An event finds the weak ranks: all
    but the largest gates, which together make up the share p of all gates. Each takes the factors that a
    strong rank of its module had half a period ago, and both take the mean of their scores. An event changes
    the function.

    The defaults of `tau` and `top_p`, and those of `top_p_until` and `beam_every` as parts of the run, are
    the released script's (LLaMA-2-7B). Rank, alpha and learning rate are the bench's, as for LoRA; that
    script has rank 64, alpha 128 and a rate of 3e-4 with a cosine schedule.

    An event zeroes Adam's moments of the scores in the modules where a rank restarts, and only there. The
    released code zeroes them in every module at every event.

    Beyond LoRA it costs one number per rank, and a copy of adapter and moments on the CPU; no pass.

    Parameters
    ----------
    tau : float
        Temperature of the softmax; lower makes the competition fiercer.
    top_p : float
        p at the start; it rises to 1, where nothing is weak, along a half cosine.
    top_p_until : float
        The part of the run over which p rises.
    beam_every : float
        T, steps between events: a whole number, or below 1 a part of the run. No event in the last T steps.
    scope : str
        `"global"` compares gates over all modules, as the released code does, `"module"` within each. No more
        than half of a module's ranks restart in one event (our limit: beyond it a rank could be both weak and
        strong).
    moments : str
        Adam's moments of a restarted pair: `"inherit"`, the strong rank's of half a period ago, as the
        authors intend; `"keep"`, the weak one's, as their code does because one of its writes is lost;
        `"zero"`.

    References
    ----------
    Gu et al. 2025, arXiv 2502.13604; `gccnlp/BeamLoRA` on GitHub, commit 2610c6a.
    """

    tau: float = option(0.05, above=0)
    top_p: float = option(0.95, above=0, high=1)
    top_p_until: float = option(2 / 3, above=0, high=1)
    beam_every: float = option(0.08, above=0)
    scope: str = option("global", choices=SCOPES)
    moments: str = option("inherit", choices=MOMENTS)

    name: ClassVar[str] = "beamlora"

    def __post_init__(self) -> None:
        super().__post_init__()
        T = self.beam_every
        if T >= 1 and (T < 2 or int(T) != T):
            raise ValueError(
                f"beam_every must be a whole number of steps from 2 or a fraction below 1; got {T!r}."
            )

    def start(self, loop: Loop) -> None:
        super().start(loop)
        self.snapshot: dict[str, Tensor] = {}  # the state half a period before the next event

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        boosters: dict[str, LowRank] = {}
        for name, b in super().make_boosters(loop).items():
            scores = b.A.new_zeros(self.rank).detach()
            boosters[name] = booster = Competing(b.A.detach(), b.B.detach(), b.scale, scores)
            booster.tau = self.tau
        return boosters

    def period(self, steps: int) -> int:
        """Steps between events, at least 2."""
        return max(2, round(self.beam_every * steps)) if self.beam_every < 1 else int(self.beam_every)

    def share(self, step: int, steps: int) -> float:
        """p after `step` of `steps` steps: from top_p to 1."""
        progress = min(1.0, step / (self.top_p_until * steps))
        return 1 - (1 - self.top_p) * (1 + math.cos(math.pi * progress)) / 2

    def after_step(self, loop: Loop) -> None:
        done, T = loop.trained_steps + 1, self.period(loop.steps)
        if done % T == T // 2:
            self.snapshot = super().state()
        elif done % T == 0 and loop.steps - done >= T:
            self.compete(loop, done)

    @torch.no_grad()
    def compete(self, loop: Loop, done: int) -> None:
        """One event after `done` steps."""
        gates = [booster.gates().detach().cpu() for booster in self.competing().values()]
        p = self.share(done, loop.steps)
        compared = [gates] if self.scope == "global" else [[gate] for gate in gates]
        counts = [count for group in compared for count in weak_counts(group, p)]
        generator = seeds.generator("beams", loop.seed, done)
        for name, gate, count in zip(self.boosters, gates, counts, strict=True):
            count = min(count, self.rank // 2)
            if count:
                order = gate.argsort(descending=True, stable=True)
                strong = order[:count][torch.randperm(count, generator=generator)]
                self.restart(name, order[-count:], strong)

    def restart(self, name: str, weak: Tensor, strong: Tensor) -> None:
        """In one module make the weak ranks the older copies of the strong ones, pair by pair."""
        booster = self.competing()[name]
        scores = booster.gate
        assert scores is not None
        assert self.optimizer is not None
        for factor, parameter in (("A", booster.A), ("B", booster.B)):
            overwrite(factor, parameter.data, weak, self.snapshot[f"{name}.{factor}"], strong)
            for key, moment in self.optimizer.state[parameter].items():
                if moment.ndim < 2 or self.moments == "keep":  # the step counter, or as the released code
                    continue
                source = self.snapshot[f"optimizer/{name}.{factor}/{key}"]
                overwrite(factor, moment, weak, source * (self.moments == "inherit"), strong)
        mean = (scores[weak] + scores[strong]) / 2
        scores[weak] = mean
        scores[strong] = mean
        for moment in self.optimizer.state[scores].values():
            if moment.ndim == 1:
                moment.zero_()

    def competing(self) -> dict[str, Competing]:
        """The boosters by module, with their own type."""
        return {name: b for name, b in self.boosters.items() if isinstance(b, Competing)}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"snapshot/{key}": value for key, value in self.snapshot.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        prefix = "snapshot/"
        self.snapshot = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def weak_counts(gates: Sequence[Tensor], p: float) -> list[int]:
    """How many weak ranks each of the modules has that are compared.

    Sorted from the largest, a rank is weak from where the running sum exceeds the share p of the whole on.

    Parameters
    ----------
    gates : sequence of Tensor
        (r,) of each module.
    p : float
        The share of the whole that the strong ranks make up; from 1 on nothing is weak.
    """
    if p >= 1:  # rounding could find one
        return [0] * len(gates)
    values, order = torch.cat(list(gates)).double().sort(descending=True, stable=True)
    weak = order[values.cumsum(0) > p * len(values)]  # gates are 1 on average
    owner = torch.repeat_interleave(torch.arange(len(gates)), torch.tensor([len(g) for g in gates]))
    return torch.bincount(owner[weak], minlength=len(gates)).tolist()


def overwrite(factor: str, target: Tensor, weak: Tensor, source: Tensor, strong: Tensor) -> None:
    """Put the strong ranks of `source` at the weak places of `target`, in place.

    Parameters
    ----------
    factor : str
        `"A"`, where ranks are rows, or `"B"`, where they are columns.
    target, source : Tensor
        Of the factor's shape, (r, k) or (d, r).
    weak, strong : Tensor
        (n,) numbers of ranks, pair by pair.
    """
    if factor == "B":
        target, source = target.T, source.T
    target[weak] = source[strong].to(target)
