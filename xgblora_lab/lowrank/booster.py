"""One trainable low-rank pair on one linear map, attached by a forward hook.

The model keeps its class, its names and its `state_dict`: nothing is replaced. Axis letters: `d` out, `k` in,
`r` rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.linear import factor_dtype, stored_weight, weight_shape

INITS = ("kaiming", "gaussian", "orthogonal")


def init_A(
    kind: str, r: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw the input factor of a fresh booster; its output factor is 0, so the function is unchanged.

    Parameters
    ----------
    kind : str
        `"kaiming"`, uniform on ±1/√k as PEFT's LoRA; `"gaussian"`, N(0, 1/3k); `"orthogonal"`, random
        orthonormal rows over √3. The three have the same expected norm, √(r/3), so that they differ in shape
        and not in step size. ValueError for another kind, and for orthogonal rows where r > k.
    r, k : int
        Rank, and inputs of the linear map.
    generator : torch.Generator
        Of the draw; on the CPU, where the factor (r, k) is too.
    dtype : torch.dtype
    """
    if kind == "kaiming":
        A = (torch.rand(r, k, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(k)
    elif kind == "gaussian":
        A = torch.randn(r, k, generator=generator, dtype=dtype) / math.sqrt(3 * k)
    elif kind == "orthogonal":
        Q, _ = torch.linalg.qr(torch.randn(k, r, generator=generator, dtype=dtype))
        if r > k:
            raise ValueError(f"Orthogonal initialisation needs rank <= inputs, got rank {r} and {k} inputs.")
        A = Q.T / math.sqrt(3)
    else:
        raise ValueError(f"Unknown initialisation {kind!r}; accepted: {', '.join(INITS)}.")
    return A.contiguous()


class _AddLowRank(torch.autograd.Function):
    """output + scale · (x Aᵀ) Bᵀ, in fewer passes over the (N·S, …) tensors than autograd's own.

    Those passes, not the arithmetic, are what a thin pair costs: see benchmarks/README.md, "What was slow".
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        flat = x.flatten(0, -2)  # (N·S, k)
        down = flat @ A.T  # (N·S, r)
        if scale != 1.0:
            down = down * scale
        ctx.save_for_backward(flat if ctx.needs_input_grad[2] else None, down, A, B)
        ctx.scale, ctx.shape = scale, x.shape
        return torch.addmm(output.flatten(0, -2), down, B.T).view_as(output)

    @staticmethod
    def backward(ctx: Any, D: Tensor) -> Any:
        flat, down, A, B = ctx.saved_tensors
        D_flat = D.flatten(0, -2)  # (N·S, d)
        # (N·S, r); a B of few columns, side by side in memory, costs three times its transposed copy
        at_A = D_flat @ B.T.contiguous().T
        if ctx.scale != 1.0:
            at_A = at_A * ctx.scale
        needs = ctx.needs_input_grad
        at_x = (at_A @ A).view(ctx.shape) if needs[1] else None
        gradient_A = at_A.T @ flat if needs[2] else None
        gradient_B = (down.T @ D_flat).T if needs[3] else None  # likewise, three to five times
        return D if needs[0] else None, at_x, gradient_A, gradient_B, None


class LowRank(nn.Module):
    """A booster: y += scale · (x Aᵀ) Bᵀ on one linear map, while attached.

    Parameters
    ----------
    A : Tensor, (r, k)
        Input factor, trainable, in float32 (float64 on a float64 base).
    B : Tensor, (d, r)
        Output factor, trainable, in the same dtype.
    scale : float, default 1.0
        alpha / rank, as in LoRA.
    gate : Tensor, (r,), optional
        Multiplies the rank-1 parts one by one: B diag(gate) A. Trainable.

    Attributes
    ----------
    start : tuple of Tensor or None
        B (d, r) and A (r, k), scale folded in, of a merged booster that this one trains further: what is
        added is the change since then, B A − B_start A_start. Not trainable.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float = 1.0, gate: Tensor | None = None) -> None:
        super().__init__()
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(
                f"A must be (r, k) and B (d, r) with one r; got {tuple(A.shape)} and {tuple(B.shape)}."
            )
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.gate = nn.Parameter(gate) if gate is not None else None
        self.scale = scale
        self.start: tuple[Tensor, Tensor] | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    @classmethod
    def fresh(cls, module: nn.Module, A: Tensor, scale: float = 1.0) -> LowRank:
        """Make a booster for a linear map from A (r, k); it changes nothing yet, as its B is 0."""
        device, dtype = stored_weight(module).device, factor_dtype(module)
        B = torch.zeros(weight_shape(module)[0], A.shape[0], device=device, dtype=dtype)
        return cls(A.to(device=device, dtype=dtype), B, scale)

    @property
    def rank(self) -> int:
        """r, the number of rank-1 parts."""
        return self.A.shape[0]

    def gates(self) -> Tensor | None:
        """What multiplies the rank-1 parts, (r,); a method may compute it from the parameter `gate`."""
        return self.gate

    def resize(self, rank: int) -> None:
        """Give the booster new parameters of another rank, filled with zeros."""
        (_, k), (d, _) = self.A.shape, self.B.shape
        self.A, self.B = nn.Parameter(self.A.new_zeros(rank, k)), nn.Parameter(self.B.new_zeros(d, rank))
        if self.gate is not None:
            self.gate = nn.Parameter(self.gate.new_zeros(rank))

    def forward(self, x: Tensor) -> Tensor:
        """The booster's part of the output: (…, k) -> (…, d), in the factors' dtype."""
        x = x.to(self.A.dtype)
        down = nn.functional.linear(x, self.A)  # (…, r)
        gates = self.gates()
        if gates is not None:
            down = down * gates
        if self.scale != 1.0:
            down = down * self.scale  # on the r-sized side: the cheap one
        out = nn.functional.linear(down, self.B)  # (…, d)
        if self.start is not None:
            out = out - nn.functional.linear(nn.functional.linear(x, self.start[1]), self.start[0])
        return out

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, dtype, device = args[0], output.dtype, output.device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on "meta"
        in_one = torch.get_autocast_dtype(device) if cast else self.A.dtype
        if type(self) is LowRank and self.gate is None and dtype == in_one:
            A, B = self.A.to(dtype), self.B.to(dtype)
            if self.start is not None:  # one thin product for both
                A = torch.cat([A, self.start[1].to(dtype)])
                B = torch.cat([B, (self.start[0] / -self.scale).to(dtype)], 1)
            added: Tensor = _AddLowRank.apply(output, x.to(dtype), A, B, self.scale)
            return added
        return output + self(x).to(output.dtype)

    def attach(self, module: nn.Module) -> None:
        """Start adding this booster to the module's output."""
        if self._handle is not None:
            raise RuntimeError("This booster is attached already; detach it first.")
        self._handle = module.register_forward_hook(self._hook)

    def detach(self) -> None:
        """Stop; harmless when not attached."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def factors(self, shrinkage: float = 1.0) -> tuple[Tensor, Tensor]:
        """Copies of B (d, r) and A (r, k) whose product is the update; `shrinkage` multiplies it.

        With a `start` (d, 2r) and (2r, k): the booster itself, then what is taken off.
        """
        B = self.B.detach() * (self.scale * shrinkage)
        gates = self.gates()
        if gates is not None:
            B = B * gates.detach()
        A = self.A.detach().clone()
        if self.start is not None:
            B, A = torch.cat([B, self.start[0] * -shrinkage], 1), torch.cat([A, self.start[1]])
        return B, A


@contextmanager
def attached(model: nn.Module, boosters: dict[str, LowRank]) -> Iterator[dict[str, LowRank]]:
    """Attach boosters by module name for a `with` block; they are gone after it, whatever happened."""
    try:
        for name, booster in boosters.items():
            booster.attach(model.get_submodule(name))
        yield boosters
    finally:
        for booster in boosters.values():
            booster.detach()


@contextmanager
def watched(
    modules: dict[str, nn.Module], on_input_and_gradient: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call back with (name, X, D) in every backward pass inside the block, then remove the hooks.

    X (N·S, k) are the module's inputs, D (N·S, d) is the loss's gradient at its outputs. The gradient of the
    weight would be Dᵀ X, but no dense matrix is formed here.
    """

    def hook(name: str) -> Callable[..., Tensor | None]:
        def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            X = args[0].detach().flatten(0, -2)
            if not output.requires_grad:
                # Nothing below needs a gradient: start the graph here, or D would never be computed.
                output = output.detach().requires_grad_()
            output.register_hook(lambda D: on_input_and_gradient(name, X, D.detach().flatten(0, -2)))
            return output

        return forward

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
