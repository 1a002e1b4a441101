"""SoRA: a gate on every rank, closed a little at every step (Ding et al. 2023, arXiv 2311.11696)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop

PROXES = ("exact", "released")


@dataclass
class SoRA(LoRA):
    """LoRA with a gate on every rank, of which only those survive that the task keeps open.

    Each step closes all gates a little. The update is s·B diag(g) A with trained gates g ~ N(0, 1) and B = 0.
    How many ranks survive is an outcome, not a budget. It costs one number per rank beyond LoRA, and no pass.

    Parameters
    ----------
    weight_decay : float
        On A and B alone. Without it B may grow while its gate shrinks, which evades the penalty. The default
        is the released script's.
    xi : float
        What a step takes off every gate, as a multiple of the learning rate; 0 prunes nothing. The default is
        the released script's 3e-4 at a learning rate of 8e-4. The task moves a gate by about one learning
        rate in a step, so no gate survives an xi of 1 or more; a gate that the task leaves alone is closed
        after |g|/xi learning rates.
    prox : str
        `"exact"`, the proximal step of xi·‖g‖₁, whose threshold follows the schedule; `"released"`, as in the
        authors' code: the threshold of the peak learning rate all along, and twice the dead zone.
    sparse_lambda : float
        Weight of the mean |g| over all gates, added to the gradient (the released script adds 10; 0 leaves
        all pruning to the proximal step).

    References
    ----------
    Ding et al. 2023, arXiv 2311.11696; `TsinghuaC3I/SoRA` on GitHub, commit c275ac2.
    """

    weight_decay: float = 0.1
    xi: float = option(0.375, low=0)
    prox: str = option("exact", choices=PROXES)
    sparse_lambda: float = option(0.0, low=0)

    name: ClassVar[str] = "sora"

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        generator = seeds.generator("gates", loop.seed)
        return {
            name: LowRank(b.A.detach(), b.B.detach(), b.scale, self.first_gates(generator).to(b.A))
            for name, b in super().make_boosters(loop).items()
        }

    def first_gates(self, generator: torch.Generator) -> Tensor:
        """One module's gates (r,) at the start."""
        return torch.randn(self.rank, generator=generator)

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        gates = [p for p in parameters if p.ndim == 1]
        optimizer = super().new_optimizer([p for p in parameters if p.ndim == 2])
        optimizer.add_param_group({"params": gates, "weight_decay": 0.0})
        return optimizer

    def gates(self) -> list[nn.Parameter]:
        """The gates (r,) of all modules."""
        return [b.gate for b in self.boosters.values() if b.gate is not None]

    @torch.no_grad()
    def after_backward(self, loop: Loop) -> None:
        count = sum(gate.numel() for gate in self.gates())
        for gate in self.gates():
            if self.sparse_lambda and gate.grad is not None:
                gate.grad.add_(gate.sign(), alpha=self.sparse_lambda / count)

    @torch.no_grad()
    def after_step(self, loop: Loop) -> None:
        assert self.optimizer is not None
        rate = self.optimizer.param_groups[1]["lr"] if self.prox == "exact" else self.lr
        for gate in self.gates():
            gate.copy_(shrunk(gate, self.xi * rate, self.prox))

    def end_round(self, loop: Loop, index: int) -> Boosters:
        return {name: open_factors(booster) for name, booster in self.boosters.items()}


def shrunk(gates: Tensor, threshold: float, prox: str = "exact") -> Tensor:
    """Gates after the proximal step, sign(g)·max(|g| − threshold, 0).

    Parameters
    ----------
    gates : Tensor
        (r,).
    threshold : float
        What is taken off each.
    prox : str
        Where `"released"`, what would be left within the threshold is 0 too, so that everything below twice
        the threshold vanishes.
    """
    soft = F.softshrink(gates, threshold)
    return F.hardshrink(soft, threshold) if prox == "released" else soft


def open_factors(booster: LowRank) -> tuple[Tensor, Tensor]:
    """(B, A) as `LowRank.factors`, of the ranks whose gate is not 0: the same update, in fewer numbers."""
    B, A = booster.factors()
    gates = booster.gates()
    assert gates is not None
    kept = gates.detach() != 0
    return B[:, kept], A[kept]
