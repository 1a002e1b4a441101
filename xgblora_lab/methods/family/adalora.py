"""AdaLoRA: an update in SVD-like form, whose smallest parts are masked by importance.

Zhang et al. 2023, arXiv 2303.10512. PEFT's own allocator decides which ranks are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.family.sora import open_factors
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.lowrank.live_weights import Boosters
    from xgblora_lab.methods.base import Loop


class Triplets(LowRank):
    """A booster of triplets (column of B, gate, row of A); the gate is PEFT's `lora_E`, (r, 1)."""

    def gates(self) -> Tensor:
        assert self.gate is not None
        return self.gate[:, 0]


class Shown(nn.Module):
    """A booster's parameters under the names that PEFT's allocator looks for; the tensors are the same."""

    def __init__(self, booster: LowRank) -> None:
        super().__init__()
        self.lora_A = nn.ParameterDict({"default": booster.A})
        self.lora_E = nn.ParameterDict({"default": booster.gate})
        self.lora_B = nn.ParameterDict({"default": booster.B})


@dataclass
class AdaLoRA(LoRA):
    """LoRA that starts with more ranks than it may keep and masks the least important ones.

    The update is s·B diag(E) A, with A and B pushed towards orthonormal. The importance of a triplet (column
    of B, entry of E, row of A) is its smoothed |weight · gradient|. A and B start as N(0, 0.02²) and E at 0,
    so `init` must stay as it is.

    Beyond LoRA it costs the ranks above the target, three numbers per trained one for the importance, and no
    pass. The budget follows the bench's planned steps.

    Parameters
    ----------
    lr : float
        Ten times LoRA's, because A and B start small.
    rank : int
        Of every module at the start; the default is PEFT's.
    target_rank : int or None
        The average rank kept, below `rank`; None: two thirds of `rank` (PEFT keeps 8 of 12).
    tinit, tfinal : float
        Steps before the budget falls, and steps at the end with fixed ranks; below 1 a part of the run. In
        between the budget falls as a cubic. The defaults are ours; PEFT's are 0.
    deltaT : int
        Steps between two maskings; the default is PEFT's. A masked rank can return before the last phase.
    beta1, beta2 : float
        Smoothing of the importance and of its deviation; the defaults are PEFT's.
    orth_reg_weight : float
        Weight of the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖ over all factors, added to the gradient, not to the
        recorded loss; the default is PEFT's.

    Raises
    ------
    ValueError
        Where an option is refused; at the start of a run, where `tinit` and `tfinal` leave no step between.

    References
    ----------
    Zhang et al. 2023, arXiv 2303.10512; ranks are given out by `peft.tuners.adalora.layer.RankAllocator`.
    """

    lr: float = 1e-2
    rank: int = 12
    target_rank: int | None = option(None, low=1)
    tinit: float = option(0.1, low=0)
    tfinal: float = option(0.3, low=0)
    deltaT: int = option(1, low=1)
    beta1: float = option(0.85, above=0, below=1)
    beta2: float = option(0.85, above=0, below=1)
    orth_reg_weight: float = option(0.5, low=0)

    name: ClassVar[str] = "adalora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept_rank >= self.rank:
            raise ValueError(
                f"target_rank must be below rank, got {self.kept_rank} and {self.rank}; to keep all ranks "
                "use lora."
            )
        if self.init != "kaiming":
            raise ValueError(f"adalora has its own start, N(0, 0.02²); leave init out, got {self.init!r}.")

    @property
    def kept_rank(self) -> int:
        """The average rank that the budget ends at."""
        return max(1, round(self.rank * 2 / 3)) if self.target_rank is None else self.target_rank

    def start(self, loop: Loop) -> None:
        from peft import AdaLoraConfig
        from peft.tuners.adalora.layer import RankAllocator

        super().start(loop)
        tinit, tfinal = (int(t * loop.steps) if t < 1 else int(t) for t in (self.tinit, self.tfinal))
        if tinit >= loop.steps - tfinal:
            raise ValueError(
                f"tinit={tinit} and tfinal={tfinal} leave none of the {loop.steps} steps for the budget to "
                "fall; lower one of them or plan more steps."
            )
        config = AdaLoraConfig(
            init_r=self.rank,
            target_r=self.kept_rank,
            tinit=tinit,
            tfinal=tfinal,
            deltaT=self.deltaT,
            beta1=self.beta1,
            beta2=self.beta2,
            total_step=loop.steps,
        )
        self.shown = nn.ModuleList(Shown(booster) for booster in self.boosters.values())
        self.allocator = RankAllocator(self.shown, config, "default")
        self.pattern: dict[str, list[bool]] = {}  # the triplets kept at the last masking, by PEFT's names

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        generator = seeds.generator("triplets", loop.seed)
        boosters: dict[str, LowRank] = {}
        for name, b in super().make_boosters(loop).items():
            A, B = (0.02 * torch.randn(p.shape, generator=generator) for p in (b.A, b.B))
            boosters[name] = Triplets(A.to(b.A), B.to(b.B), b.scale, b.A.new_zeros(self.rank, 1))
        return boosters

    def after_backward(self, loop: Loop) -> None:
        if self.orth_reg_weight:
            with torch.enable_grad():
                factors = [p for b in self.boosters.values() for p in (b.A, b.B.T)]  # each (r, …)
                (self.orth_reg_weight * orthogonality(factors)).backward()

    def after_step(self, loop: Loop) -> None:
        """What `AdaLoraModel.update_and_allocate` does, in its three phases."""
        step, last = loop.trained_steps, loop.steps - self.allocator.peft_config.tfinal
        if step > last:
            self.allocator.mask_using_rank_pattern(self.shown, self.pattern)
            return
        _, pattern = self.allocator.update_and_allocate(self.shown, step, force_mask=step == last)
        self.pattern = pattern or self.pattern
        if step == last:
            self.allocator.reset_ipt()

    def end_round(self, loop: Loop, index: int) -> Boosters:
        return {name: open_factors(booster) for name, booster in self.boosters.items()}

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for kind, averages in self._averages().items():
            tensors |= {f"{kind}/{n}": t.detach().to("cpu", copy=True) for n, t in averages.items()}
        return tensors | {f"pattern/{n}": torch.tensor(kept) for n, kept in self.pattern.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        parameters = dict(self.shown.named_parameters())
        self.allocator.reset_ipt()
        for kind, averages in self._averages().items():
            for key, value in state.items():
                if key.startswith(f"{kind}/"):
                    name = key[len(kind) + 1 :]
                    averages[name] = value.to(parameters[name], copy=True)
                    # The allocator starts anew where it sees no last importance, which it never reads.
                    self.allocator.ipt[name] = torch.zeros_like(parameters[name])
        self.pattern = {
            k[len("pattern/") :]: v.tolist() for k, v in state.items() if k.startswith("pattern/")
        }

    def _averages(self) -> dict[str, dict[str, Tensor]]:
        return {"importance": self.allocator.exp_avg_ipt, "deviation": self.allocator.exp_avg_unc}


def orthogonality(factors: list[Tensor]) -> Tensor:
    """The mean of ‖PPᵀ − I‖ (Frobenius) over factors P.

    Parameters
    ----------
    factors : list of Tensor
        Each (r, …), all of one r.

    Returns
    -------
    Tensor
        A scalar with gradient.
    """
    identity = torch.eye(factors[0].shape[0]).to(factors[0])
    grams = torch.stack([P @ P.T - identity for P in factors])
    return torch.linalg.matrix_norm(grams).mean()
