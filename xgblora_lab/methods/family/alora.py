"""ALoRA: ranks move from where they are not needed to where they are (Liu et al. 2024, arXiv 2403.16187)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank, init_A
from xgblora_lab.lowrank.linear import weight_shape
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop


class Switched(LowRank):
    """A booster whose ranks can be switched off for a look.

    Attributes
    ----------
    mask : Tensor or None
        (r,), 1 for a rank that is on and 0 for one that is off; None: all on.
    """

    mask: Tensor | None = None

    def gates(self) -> Tensor | None:
        return self.mask


@dataclass
class ALoRA(LoRA):
    """LoRA that moves ranks from the modules that do not need them to those that need all of theirs.

    It switches off one rank at a time to see whether the model gets worse. A rank's score (AB-LoRA) is the
    loss without it minus the loss with it alone, on a fixed batch of training rows, so that dev and test stay
    clean (the paper uses dev rows). The lowest are removed with their Adam moments, and as many new ones go
    to the modules that lost none. New ranks have B = 0, so growth changes nothing at that instant. The scale
    stays that of the starting rank, so that it does not jump when a rank moves. A module may lose all its
    ranks.

    A new rank starts with moments of zero, but it inherits the step counter of its module's factor; the paper
    says nothing about it. Adam's bias correction then acts as if the moments were old, so the first steps are
    too large. Under a constant gradient, a rank that is born after 200 steps moves by 1.35 times the learning
    rate at first, and by up to 2.9 times some 15 steps later.

    Beyond LoRA it costs two forwards of the fixed batch per rank and reallocation, counted in the record.

    Parameters
    ----------
    every : int
        Rounds between reallocations; the first is at the start of round `every` (our choice).
    reallocations : int
        How many there are at most; the default is the paper's.
    moved : float
        The part of all ranks that moves in one. 1/8 is one per module at the paper's rank of 8; its text
        leaves open whether that is meant.
    score_rows : int
        Rows of the fixed batch, the first of the training split; the default is the paper's number.

    References
    ----------
    Liu et al. 2024, arXiv 2403.16187. Its score is S(M) − S(M∖i) + S(M_i) with S minus the loss; S(M) is the
    same for all ranks and is left out here.
    """

    every: int = option(2, low=1)
    reallocations: int = option(8, low=0)
    moved: float = option(1 / 8, above=0, below=1)
    score_rows: int = option(32, low=1)

    name: ClassVar[str] = "alora"

    def rank_bound(self, modules: int) -> int | None:
        # One module may get every rank that moves; the ranks of all modules together never grow.
        total = self.rank * modules
        return min(total, self.rank + self.reallocations * self.moving(total))

    def moving(self, total: int) -> int:
        """How many of `total` ranks a reallocation moves."""
        return max(1, round(self.moved * total))

    def scale_of(self, rank: int) -> float:
        return super().scale_of(self.rank)

    def start(self, loop: Loop) -> None:
        super().start(loop)
        self.grown = 0  # numbers that this round's new ranks added

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        fresh = super().make_boosters(loop)
        return {name: Switched(b.A.detach(), b.B.detach(), b.scale) for name, b in fresh.items()}

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        self.grown = 0
        if index and index % self.every == 0 and index // self.every <= self.reallocations:
            self.reallocate(loop, index)
        return self.boosters

    def new_parameters(self, index: int) -> int:
        return super().new_parameters(index) if index == 0 else self.grown

    def reallocate(self, loop: Loop, index: int) -> None:
        """Score, prune and grow, deterministically in (state, seed, index)."""
        scores = self.scores(loop)
        kept, added = plan(scores, self.moving(self.rank * len(scores)))
        generator = seeds.generator("new ranks", loop.seed, index)
        rows = {
            name: init_A(self.init, n, weight_shape(loop.modules[name])[1], generator)
            for name, n in added.items()
        }
        state = self.state()
        self.load_state({key: resized_tensor(key, value, kept, rows) for key, value in state.items()})
        self.grown = sum(n * sum(weight_shape(loop.modules[name])) for name, n in added.items())

    def scores(self, loop: Loop) -> dict[str, Tensor]:
        """AB-LoRA scores (r,) by module: high where the model needs the rank and it helps on its own."""
        size, rows = loop.batch_size, range(min(self.score_rows, loop.task.size("train")))
        batches = [loop.task.batch("train", rows[i : i + size]) for i in rows[::size]]
        boosters = {n: b for n, b in self.boosters.items() if isinstance(b, Switched)}
        scores = {name: torch.zeros(b.rank, dtype=torch.float64) for name, b in boosters.items()}
        try:
            for on in (True, False):  # all but one, then one alone
                for booster in boosters.values():
                    booster.mask = booster.A.new_full((booster.rank,), float(on))
                for name, booster in boosters.items():
                    assert booster.mask is not None
                    for i in range(booster.rank):
                        booster.mask[i] = float(not on)
                        loss = loop.probe_forward(batches)
                        booster.mask[i] = float(on)
                        scores[name][i] += loss if on else -loss
        finally:
            for booster in boosters.values():
                booster.mask = None
        return scores


def plan(scores: Mapping[str, Tensor], count: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Which ranks stay and where new ones go when the ranks with the lowest scores are pruned.

    The modules that lost none share the new ranks evenly, the remainder going to the highest mean scores.
    Where every module lost one, none are added and the total shrinks. One rank is always left.

    Parameters
    ----------
    scores : mapping of str to Tensor
        (r,) by module.
    count : int
        How many ranks are pruned.

    Returns
    -------
    kept : dict of str to Tensor
        The numbers of the ranks kept, by module.
    added : dict of str to int
        How many new ranks a module gets; modules that get none are left out.
    """
    names = list(scores)
    flat = torch.cat([scores[name] for name in names])
    count = min(count, len(flat) - 1)
    alive = torch.ones(len(flat), dtype=torch.bool)
    alive[flat.argsort(stable=True)[:count]] = False
    parts = dict(zip(names, alive.split([len(scores[n]) for n in names]), strict=True))
    kept = {name: part.nonzero()[:, 0] for name, part in parts.items()}
    whole = [name for name in names if parts[name].all() and len(parts[name])]
    whole.sort(key=lambda name: -float(scores[name].mean()))
    share, rest = divmod(count, len(whole)) if whole else (0, 0)
    added = {name: share + (place < rest) for place, name in enumerate(whole)}
    return kept, {name: n for name, n in added.items() if n}


def resized_tensor(key: str, value: Tensor, kept: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
    """A tensor of the method's state without the pruned ranks and with new ones, which are 0 but for A's.

    Parameters
    ----------
    key : str
        Its name in the state. Moments are shaped like their factor.
    value : Tensor
        (r, k) of A, (d, r) of B, or Adam's step counter, which comes back as it is.
    kept : mapping of str to Tensor
        The numbers of the ranks kept, by module.
    rows : mapping of str to Tensor
        New rows (n, k) of A, by module.
    """
    if value.ndim != 2:  # Adam's step counter
        return value
    name, factor = key.removeprefix("optimizer/").partition("/")[0].rsplit(".", 1)
    dim = 0 if factor == "A" else 1
    old = value.index_select(dim, kept[name])
    if key == f"{name}.A" and name in rows:
        return torch.cat([old, rows[name].to(old)], dim)
    shape = list(old.shape)
    shape[dim] = len(rows.get(name, ()))
    return torch.cat([old, old.new_zeros(shape)], dim)
