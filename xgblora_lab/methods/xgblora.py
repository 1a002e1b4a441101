"""XGBLoRA: boosting with rank-1 adapters ("Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient
Finetuning of LLMs", arXiv 2410.19694).

Each round trains fresh low-rank pairs on some modules for κ steps, and the bench merges them. Rank 1, fresh
pairs, random modules and the merge are the paper's; κ, schedule, optimizer policy and the residual
initialisation are our choices, and called so in the options.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import INITS, LowRank, watched
from xgblora_lab.lowrank.linear import factor_dtype, weight_shape
from xgblora_lab.methods.base import (
    Method,
    booster_parameters,
    fresh_boosters,
    load_optimizer_tensors,
    optimizer_tensors,
)
from xgblora_lab.methods.lora import check_rank

if TYPE_CHECKING:
    from xgblora_lab.bench.bench import Bench
    from xgblora_lab.lowrank.live_weights import Boosters

SELECTIONS = ("random", "cyclic", "all")
POLICIES = ("fresh", "keep", "zero_moments")
EXAMPLES = ("all", "hardest")
SUBSPACES = ("free", "orthogonal")


@dataclass
class XGBLoRA(Method):
    """Boosting rounds.

    rank: of each booster (the paper's is 1). alpha: scale = alpha/rank; None means alpha = rank.
    modules_per_round: L_s, how many modules get a booster in a round: a number, or a fraction of all.
    selection: `"random"` without replacement, `"cyclic"` in the model's order, or `"all"`.
    shrinkage: α_t, factor on a booster at its merge. Below 1 the loss jumps up at every merge, because the
        booster was fitted at full strength.
    norm_penalty: λ in λ(‖A‖² + ‖B‖²), added to the gradient, not to the recorded loss.
    round_warmup: steps of linear re-warm-up at the start of each round.
    optimizer_state: `"fresh"` for each round; the harmful ones, for a lesson: `"keep"` carries Adam's moments
        and step counter over to the next booster on the module, `"zero_moments"` carries only the counter.
    init: how A starts: `"kaiming"`, `"gaussian"`, `"orthogonal"`, or `"residual"`, see `residual_A`.
    examples: `"all"`, in the plan's order; or `"hardest"`: of the rows planned for the next 2κ steps, the
        half that the model gets most wrong; their losses cost forward passes.
    subspace: `"free"`, or `"orthogonal"`: each A stays orthogonal to the earlier ones' on its module,
        so that each round adds rank. This and `examples` are our reading of the abstract of BoostLoRA (arXiv
        2604.27308), not its algorithm.
    """

    lr: float = 1e-2
    rank: int = 1
    alpha: float | None = None
    modules_per_round: float = 1 / 3
    selection: str = "random"
    shrinkage: float = 1.0
    norm_penalty: float = 0.0
    round_warmup: int = 0
    optimizer_state: str = "fresh"
    init: str = "kaiming"
    examples: str = "all"
    subspace: str = "free"

    name: ClassVar[str] = "xgblora"
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        for option, accepted in (
            ("selection", SELECTIONS),
            ("optimizer_state", POLICIES),
            ("init", INITS),
            ("examples", EXAMPLES),
            ("subspace", SUBSPACES),
        ):
            if getattr(self, option) not in accepted:
                raise ValueError(
                    f"Unknown {option} {getattr(self, option)!r}; accepted: {', '.join(accepted)}."
                )
        L = self.modules_per_round
        if not (0 < L < 1 or (L >= 1 and int(L) == L)):
            raise ValueError(f"modules_per_round is a whole number from 1 or a fraction below 1, got {L!r}.")
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shrinkage must be above 0 and at most 1, got {self.shrinkage}.")
        if self.norm_penalty < 0:
            raise ValueError(f"norm_penalty must be 0 or more, got {self.norm_penalty}.")

    def rank_bound(self, modules: int) -> int | None:
        return self.rank

    def scale_of(self, rank: int) -> float:
        """The scale of a booster of this rank."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def rate(self, step: int, round_step: int, total: int) -> float:
        factor = super().rate(step, round_step, total)
        return factor * min(1.0, (round_step + 1) / self.round_warmup) if self.round_warmup else factor

    def start(self, bench: Bench) -> None:
        self.boosters: dict[str, LowRank] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.carried: dict[str, Tensor] = {}  # optimizer state by parameter, for the policies that keep it

    def choose(self, names: list[str], seed: int, index: int) -> list[str]:
        """The modules of round `index`, in the model's order; depends on the seed and the round alone."""
        N = len(names)
        if self.selection == "all":
            return names
        L = self.modules_per_round
        L_s = max(1, round(L * N)) if L < 1 else min(int(L), N)
        if self.selection == "cyclic":
            picked = {(index * L_s + i) % N for i in range(L_s)}
        else:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            picked = set(torch.randperm(N, generator=generator)[:L_s].tolist())
        return [name for i, name in enumerate(names) if i in picked]

    def begin_round(self, bench: Bench, index: int) -> Iterable[str]:
        names = self.choose(list(bench.modules), bench.seed, index)
        modules = {name: bench.modules[name] for name in names}
        init = "kaiming" if self.init == "residual" else self.init
        self.boosters = fresh_boosters(modules, self.rank, self.scale_of, init, bench.seed, index)
        if self.init == "residual":
            for name, A in residual_A(bench, modules, self.rank, index).items():
                self.boosters[name].A.data.copy_(A)
        if self.subspace == "orthogonal":
            self.taken = {name: earlier_directions(bench, name, self.rank) for name in names}
            self.leave_taken()
        for name, booster in self.boosters.items():
            booster.attach(modules[name])
        if self.examples == "hardest":
            bench.trainer.picked = hardest_rows(bench, self.steps_per_round)
        return names

    def trainable(self) -> dict[str, nn.Parameter]:
        return booster_parameters(self.boosters)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        self.optimizer = super().make_optimizer(parameters)
        if self.carried:
            load_optimizer_tensors(self.optimizer, self.trainable(), self.carried)
        return self.optimizer

    def after_backward(self, bench: Bench) -> None:
        if self.norm_penalty:
            for parameter in self.trainable().values():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach(), alpha=2 * self.norm_penalty)

    def after_step(self, bench: Bench) -> None:
        if self.subspace == "orthogonal":
            self.leave_taken()

    @torch.no_grad()
    def leave_taken(self) -> None:
        """Project every A onto the complement of the directions taken by earlier rounds."""
        for name, Q in self.taken.items():
            A = self.boosters[name].A
            Q = Q.to(A)
            A.sub_((A @ Q) @ Q.T)

    def end_round(self, bench: Bench, index: int) -> Boosters:
        if self.optimizer_state != "fresh" and self.optimizer is not None:
            state = optimizer_tensors(self.optimizer, self.trainable())
            self.carried |= self.carry(state, bench.seed, index)
        boosters = {name: booster.factors(self.shrinkage) for name, booster in self.boosters.items()}
        self.close(bench)
        return boosters

    def carry(self, state: dict[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
        """What the next boosters inherit of the optimizer's state at a round's end; changed in place."""
        if self.optimizer_state == "zero_moments":
            for key, value in state.items():
                if not key.endswith("/step"):
                    value.zero_()
        return state

    def close(self, bench: Bench) -> None:
        for booster in self.boosters.values():
            booster.detach()
        self.boosters = {}
        self.optimizer = None
        bench.trainer.picked = {}

    def state(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.carried.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.carried = {key: value.clone() for key, value in state.items()}


def residual_A(
    bench: Bench, modules: Mapping[str, nn.Module], rank: int, index: int, ridge: float = 0.03
) -> dict[str, Tensor]:
    """A (r, k) per module, fitted to the negative functional gradient (our own idea, not the paper's).

    For y = W x the functional gradient at the outputs is D (n, d), the inputs are X (n, k). The best linear
    weak learner is the ridge regression of D on X, C⁻¹XᵀD with C = XᵀX + λI; A takes random directions of its
    range, A ∝ (C⁻¹XᵀDω)ᵀ with ω (d, r) random, at the norm that kaiming has on average. λ is `ridge` times
    the mean diagonal of XᵀX. One forward-backward pass on the round's first batch, counted in the record.
    """
    generator = torch.Generator().manual_seed(bench.seed * 1_000_003 + index + 500_009)
    omegas = {}
    for name, module in modules.items():
        omega = torch.randn(weight_shape(module)[0], rank, generator=generator)
        omegas[name] = omega.to(device=bench.accelerator.device, dtype=factor_dtype(module))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def collect(name: str, X: Tensor, D: Tensor) -> None:
        used = D.any(dim=1)  # padding has no gradient and is not part of the regression
        X, D = X[used].to(omegas[name]), D[used].to(omegas[name])
        seen[name].append((X, D @ omegas[name]))

    with watched(dict(modules), collect):
        bench.probe_gradients()
    fitted = {}
    for name in modules:
        X = torch.cat([x for x, _ in seen[name]])
        target = torch.cat([t for _, t in seen[name]])  # (n, r)
        fitted[name] = _ridge(bench, X, target, ridge).T  # (r, k)
        norm = fitted[name].norm(dim=1, keepdim=True)
        if not torch.isfinite(norm).all() or (norm == 0).any():
            raise ValueError(f"The probe gave {name!r} no gradient; use another init than 'residual' there.")
        fitted[name] = fitted[name] / (norm * math.sqrt(3))
    return fitted


def earlier_directions(bench: Bench, module: str, rank: int) -> Tensor:
    """Orthonormal basis (k, R) of the rows of A of all earlier boosters on a module."""
    A = bench.ensemble.factors(module)[1]
    R, k = A.shape
    if R + rank > k:
        raise ValueError(
            f"{module!r} has {k} inputs and {R} of their directions are taken: none is left for a booster "
            "orthogonal to the earlier ones. Plan fewer rounds, or use subspace='free'."
        )
    return torch.linalg.qr(A.T.double())[0]


def hardest_rows(bench: Bench, kappa: int) -> dict[int, list[int]]:
    """step -> training rows for the next κ steps: the half of 2κ steps' rows with the highest loss."""
    first, size = bench.trained_steps, bench.trainer.batch_size
    pool = [row for i in range(2 * kappa) for row in bench.trainer.planned_rows(first + i)]
    losses = bench.row_losses(pool)
    hardest = sorted(sorted(range(len(pool)), key=lambda i: -losses[i])[: kappa * size])
    rows = [pool[i] for i in hardest]  # in the plan's order
    return {first + i: rows[i * size : (i + 1) * size] for i in range(kappa)}


def _ridge(bench: Bench, X: Tensor, target: Tensor, ridge: float) -> Tensor:
    """(XᵀX + λI)⁻¹ Xᵀ target: (k, r), by the smaller of the primal and the dual system."""
    n, k = X.shape
    if n >= k or bench.accelerator.num_processes > 1:  # XᵀX adds up over processes, XXᵀ does not
        C, rhs = bench.trainer.summed(X.T @ X), bench.trainer.summed(X.T @ target)
        C.diagonal().add_(ridge * C.diagonal().mean())
        return torch.linalg.solve(C, rhs)
    K = X @ X.T
    lam = ridge * K.diagonal().sum() / k  # the same λ: trace(XXᵀ) = trace(XᵀX)
    K.diagonal().add_(lam)
    return X.T @ torch.linalg.solve(K, target)
