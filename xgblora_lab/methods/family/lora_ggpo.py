"""LoRA-GGPO and LoRA-MGPO: the frozen weights are shaken while the pair trains (arXiv 2502.14538).

Version 1 of the paper is GGPO, random noise; versions 2 and 3 replaced it by MGPO, a push along the
optimizer's momentum. Both add a perturbation ε to W for the length of one forward and backward pass. Here ε
is a side path beside the booster, so W itself never changes. GGPO's noise level is our reconstruction:
the paper's exact formula was not available to us, nor any released code of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.family.row_norms import row_norms
from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.options import option

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop

TINY = 1e-12
LARGEST = 10.0  # of 1 / the gradient's running norm, in MGPO's released code


class Shaken(LowRank):
    """A booster with a perturbation ε x beside it while one is set.

    Attributes
    ----------
    perturbation : callable or None
        x (…, k) -> ε x (…, d).
    """

    perturbation: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The booster's part of the output, and ε x: (…, k) -> (…, d)."""
        output = super().forward(x)
        return output if self.perturbation is None else output + self.perturbation(x.to(self.A.dtype))


@dataclass
class _Shaking(LoRA):
    """What GGPO and MGPO share. `memory` holds what a step leaves for the next one's perturbation."""

    def make_boosters(self, loop: Loop) -> dict[str, LowRank]:
        self.memory: dict[str, Tensor] = {}
        plain = super().make_boosters(loop)
        return {n: Shaken(b.A.data, b.B.data, b.scale) for n, b in plain.items()}

    def before_backward(self, loop: Loop) -> None:
        for name, booster in self.boosters.items():
            if isinstance(booster, Shaken):
                booster.perturbation = self.perturbation(loop, name, booster)

    def after_backward(self, loop: Loop) -> None:
        for name, booster in self.boosters.items():
            if isinstance(booster, Shaken):
                booster.perturbation = None
            self.remember(name, booster)

    def perturbation(self, loop: Loop, name: str, booster: LowRank) -> Callable[[Tensor], Tensor] | None:
        """x (…, k) -> ε x (…, d) for this step, without gradient to A and B; None: not shaken."""
        raise NotImplementedError

    def remember(self, name: str, booster: LowRank) -> None:
        """Update `memory` from this step's gradients."""
        raise NotImplementedError

    def close(self, loop: Loop) -> None:
        for booster in self.boosters.values():
            if isinstance(booster, Shaken):
                booster.perturbation = None  # a step that was interrupted may have left one
        super().close(loop)

    def state(self) -> dict[str, Tensor]:
        memory = {f"memory/{n}": t.detach().to("cpu", copy=True) for n, t in self.memory.items()}
        return super().state() | memory

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        device = next(iter(self.boosters.values())).A.device
        prefix = "memory/"
        memory = {n: t for n, t in state.items() if n.startswith(prefix)}
        self.memory = {n[len(prefix) :]: t.to(device, copy=True) for n, t in memory.items()}


@dataclass
class LoRAMGPO(_Shaking):
    """LoRA whose frozen weights are pushed along the coming descent while a step's gradients are taken.

    So the pair settles in a wide valley. ε = −ρ c v/‖v‖, v = s (m_B A + B m_A) with AdamW's first moments m,
    c = min(1/ḡ, 10), ḡ the running average of ‖s (dB A + B dA)‖. The minus sign is the released code's: a
    look ahead, not the ascent of SAM.

    It costs two thin products for each module beyond LoRA, and no (d, k) matrix; nothing at the first step
    and in evaluation.

    Parameters
    ----------
    rho : float
        ρ, ‖ε‖ before c. The authors use 0.05 on GLUE and 0.01 on a 7B model.
    average : float
        Decay of ḡ in a step.

    References
    ----------
    arXiv 2502.14538, versions 2 and 3; `llm172/LoRA-MGPO` on GitHub.
    """

    rho: float = option(0.05, low=0)
    average: float = option(0.9, low=0, below=1)

    name: ClassVar[str] = "lora-mgpo"

    @torch.no_grad()
    def perturbation(self, loop: Loop, name: str, booster: LowRank) -> Callable[[Tensor], Tensor] | None:
        moments = self.optimizer.state if self.optimizer is not None else {}
        if booster.A not in moments or booster.B not in moments:
            return None
        A, B = booster.A.detach().clone(), booster.B.detach().clone()
        m_A, m_B = moments[booster.A]["exp_avg"], moments[booster.B]["exp_avg"]
        left, right = torch.cat([m_B, B], 1), torch.cat([A, m_A], 0)  # v = s · left (d, 2r) @ right (2r, k)
        norm = booster.scale * product_norm(left, right)
        push = torch.ones_like(norm)
        if name in self.memory:
            push = (1 / (self.memory[name] + TINY)).clamp(max=LARGEST)
        factor = torch.where(norm > TINY, -self.rho * push * booster.scale / norm.clamp_min(TINY), 0.0)
        left = left * factor
        return lambda x: nn.functional.linear(nn.functional.linear(x, right), left)

    @torch.no_grad()
    def remember(self, name: str, booster: LowRank) -> None:
        if booster.A.grad is None or booster.B.grad is None:
            return
        left, right = _gradient_factors(booster)
        norm = booster.scale * product_norm(left, right)
        old = self.memory.get(name, norm)
        self.memory[name] = self.average * old + (1 - self.average) * norm


@dataclass
class LoRAGGPO(_Shaking):
    """LoRA whose frozen weights get random noise while a step's gradients are taken.

    The noise is larger where weights and gradients are large. Entries of row i of ε are N(0, std_i²) with
    std_i = σ/√k · √(|W'_i|² + β|G_i|²): W' = W + sBA, and G = s (dB A + B dA) stands for its gradient; both
    of the step before. There is no noise at the first step and in evaluation.

    It costs one random (d, k) matrix for each module and step. A weight that is packed cannot be measured and
    is refused.

    Parameters
    ----------
    sigma : float
        σ; the default is that of a third party's implementation, as is β's.
    gradient_weight : float
        β.

    References
    ----------
    arXiv 2502.14538, version 1. The formula of std_i is our reconstruction.
    """

    sigma: float = option(0.03, low=0)
    gradient_weight: float = option(0.01, low=0)

    name: ClassVar[str] = "lora-ggpo"

    def start(self, loop: Loop) -> None:
        super().start(loop)
        self.modules = loop.modules
        self.frozen = {n: row_norms(loop.modules[n], b) for n, b in self.boosters.items()}

    @torch.no_grad()
    def perturbation(self, loop: Loop, name: str, booster: LowRank) -> Callable[[Tensor], Tensor] | None:
        if f"{name}.gradient" not in self.memory:
            return None
        std = noise_level(
            self.memory[f"{name}.weight"],
            self.memory[f"{name}.gradient"],
            booster.A.shape[1],
            self.sigma,
            self.gradient_weight,
        )
        noise = gaussian_rows(
            std, booster.A.shape[1], loop.seed, loop.trained_steps, list(self.boosters).index(name)
        )
        return lambda x: nn.functional.linear(x, noise)

    @torch.no_grad()
    def remember(self, name: str, booster: LowRank) -> None:
        if booster.A.grad is None or booster.B.grad is None:
            return
        self.memory[f"{name}.weight"] = row_norms(self.modules[name], booster, self.frozen[name])
        left, right = _gradient_factors(booster)
        squares = ((left @ (right @ right.T)) * left).sum(1).clamp_min(0)
        self.memory[f"{name}.gradient"] = booster.scale * squares.sqrt()


def product_norm(left: Tensor, right: Tensor) -> Tensor:
    """‖left @ right‖ (Frobenius) from the factors' Gram matrices, a scalar tensor.

    Parameters
    ----------
    left, right : Tensor
        (d, q) and (q, k).
    """
    return ((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt()


def noise_level(weight: Tensor, gradient: Tensor, k: int, sigma: float, gradient_weight: float) -> Tensor:
    """GGPO's standard deviation of every row's entries, (d,).

    Parameters
    ----------
    weight, gradient : Tensor
        (d,), norms of the rows of W + sBA and of its gradient.
    k : int
        Entries in a row.
    sigma, gradient_weight : float
        σ and β of `LoRAGGPO`.
    """
    return sigma / math.sqrt(k) * (weight.square() + gradient_weight * gradient.square()).sqrt()


def gaussian_rows(std: Tensor, k: int, seed: int, step: int, index: int) -> Tensor:
    """(d, k) noise with row i ~ N(0, std_i²); the same for the same numbers, in every process.

    Parameters
    ----------
    std : Tensor
        (d,).
    k : int
        Entries in a row.
    seed, step, index : int
        The run's seed, the step's number in the run, and the module's place in the model.
    """
    generator = seeds.generator("noise", seed, step, index, device=std.device)
    noise = torch.randn(len(std), k, generator=generator, device=std.device, dtype=std.dtype)
    return noise * std[:, None]


def _gradient_factors(booster: LowRank) -> tuple[Tensor, Tensor]:
    """(d, 2r), (2r, k) whose product is dB A + B dA."""
    assert booster.A.grad is not None
    assert booster.B.grad is not None
    return (
        torch.cat([booster.B.grad, booster.B.detach()], 1),
        torch.cat([booster.A.detach(), booster.A.grad], 0),
    )
