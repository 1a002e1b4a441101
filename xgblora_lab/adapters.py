"""One trainable low-rank pair on one linear map, attached by a forward hook.

The model keeps its class, its names and its `state_dict`: nothing is replaced. A linear map is anything whose
weight is applied as y = x Wᵀ (`nn.Linear`, and whatever quantised libraries derive from it) or as y = x W
(GPT-2's transposed `Conv1D`). Axis letters: `d` out, `k` in, `r` rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

INITS = ("kaiming", "gaussian", "orthogonal", "residual")


def _is_conv1d(module: nn.Module) -> bool:
    # By name along the class hierarchy: importing transformers for an isinstance would cost seconds.
    return any(
        c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a booster can be attached to `module`."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(d, k): outputs and inputs of the linear map, whatever the layout or packing of its weight."""
    if _is_conv1d(module):
        k, d = module.weight.shape  # type: ignore[misc]
        return int(d), int(k)
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


def oriented(module: nn.Module, stored: Tensor) -> Tensor:
    """A view of a tensor stored like the module's weight as (d, k)."""
    return stored.T if _is_conv1d(module) else stored


def dense_weight(module: nn.Module) -> Tensor:
    """A view of the weight as (d, k)."""
    return oriented(module, module.weight)  # type: ignore[arg-type]


def can_merge(module: nn.Module) -> bool:
    """Whether the weight is stored in floating point, (d, k) or transposed; quantised ones are not."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (
        weight.is_floating_point()
        and weight.ndim == 2
        and tuple(dense_weight(module).shape) == weight_shape(module)
    )


def factor_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of boosters on `module`: float32, or float64 on a float64 base (used by exact tests)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def add_update_(module: nn.Module, B: Tensor, A: Tensor) -> None:
    """Add B @ A, (d, r) @ (r, k), to the live weight in place, in the weight's own dtype."""
    weight = dense_weight(module).data
    weight.addmm_(B.to(weight), A.to(weight))


def find_modules(model: nn.Module, targets: str | Sequence[str] = "all-linear") -> dict[str, nn.Module]:
    """The linear maps to adapt, by name, in the model's order.

    targets: `"all-linear"`, every linear map of the backbone (not the output layer or a task head);
        `"attention"`, those inside a component whose name contains "attn" or "attention"; or names: a full
        name, its last components (`"q_proj"`, `"mlp.down_proj"`), or a pattern (`"*.layers.0.*"`). One name
        or a sequence of them.
    Errors: ValueError where a name matches no linear map, and where a weight is tied to another module's
        (a booster on one would change the other).
    """
    linear = {name: m for name, m in model.named_modules() if name and is_linear(m)}
    if isinstance(targets, str):
        targets = [targets]
    chosen: set[str] = set()
    for target in targets:
        if target in ("all-linear", "attention"):
            outside = set(head_names(model))
            found = [n for n in linear if not any(n == h or n.startswith(h + ".") for h in outside)]
            if target == "attention":
                found = [n for n in found if "attn" in n.lower() or "attention" in n.lower()]
        else:
            found = [n for n in linear if n == target or n.endswith("." + target) or fnmatchcase(n, target)]
        if not found:
            some = ", ".join(list(linear)[:6]) or "none at all"
            raise ValueError(
                f"No linear map of {type(model).__name__} matches {target!r}. Accepted are 'all-linear', "
                f"'attention', names, their last parts, and patterns with *. Linear maps here: {some}, …"
            )
        chosen.update(found)
    modules = {name: m for name, m in linear.items() if name in chosen}
    _refuse_tied(model, modules)
    return modules


def head_names(model: nn.Module) -> list[str]:
    """Names of the modules outside the backbone: the output layer, a classifier; none for a plain module."""
    prefix = getattr(model, "base_model_prefix", "")
    names = []
    if prefix and hasattr(model, prefix):
        names = [
            n
            for n, child in model.named_children()
            if n != prefix and next(child.parameters(), None) is not None
        ]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return names + [n for n, m in model.named_modules() if m is output and n not in names]


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a task head by name: outside the backbone, and not the language model's output layer."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    kept = {id(p) for p in output.parameters()} if output is not None else set()
    prefix = getattr(model, "base_model_prefix", "")
    kept |= {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n.startswith(f"{prefix}.")}
    heads = tuple(f"{name}." for name in head_names(model))
    return (
        {n: p for n, p in model.named_parameters() if n.startswith(heads) and id(p) not in kept}
        if heads
        else {}
    )


def _refuse_tied(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in modules.items():
        names = owners.get(id(module.weight), [])
        if len(names) > 1:
            other = next(n for n in names if n != f"{name}.weight")
            raise ValueError(
                f"The weight of {name!r} is tied to {other!r}: a booster on one would change the other. "
                f"Leave {name!r} out of the targets, or untie the weights first."
            )


def init_A(
    kind: str, r: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The input factor (r, k) of a fresh booster; its output factor is 0, so the function is unchanged.

    kind: `"kaiming"`, uniform on ±1/√k as PEFT's LoRA; `"gaussian"`, N(0, 1/3k); `"orthogonal"`, random
        orthonormal rows over √3. The three have the same expected norm, √(r/3), so that they differ in shape
        and not in step size. (`"residual"` needs data: `methods.xgblora` makes it.)
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
        at_A = D_flat @ B  # (N·S, r)
        if ctx.scale != 1.0:
            at_A = at_A * ctx.scale
        needs = ctx.needs_input_grad
        at_x = (at_A @ A).view(ctx.shape) if needs[1] else None
        gradient_A = at_A.T @ flat if needs[2] else None
        gradient_B = D_flat.T @ down if needs[3] else None
        return D if needs[0] else None, at_x, gradient_A, gradient_B, None


class LowRank(nn.Module):
    """A booster: y += scale · (x Aᵀ) Bᵀ on one linear map, while attached.

    A: (r, k), B: (d, r), both trainable, in float32 (float64 on a float64 base).
    gate: optional (r,), multiplies the rank-1 parts one by one: B diag(gate) A.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float = 1.0, gate: Tensor | None = None) -> None:
        super().__init__()
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(
                f"A must be (r, k) and B (d, r) with one r; got {tuple(A.shape)} and {tuple(B.shape)}."
            )
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.gate = nn.Parameter(gate) if gate is not None else None
        self.scale = scale
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    @classmethod
    def fresh(cls, module: nn.Module, A: Tensor, scale: float = 1.0) -> LowRank:
        """A booster that changes nothing yet: the given A (r, k), and B = 0."""
        d, _ = weight_shape(module)
        device = module.weight.device
        dtype = factor_dtype(module)
        B = torch.zeros(d, A.shape[0], device=device, dtype=dtype)  # type: ignore[arg-type]
        return cls(A.to(device=device, dtype=dtype), B, scale)  # type: ignore[arg-type]

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
        down = nn.functional.linear(x.to(self.A.dtype), self.A)  # (…, r)
        gates = self.gates()
        if gates is not None:
            down = down * gates
        if self.scale != 1.0:
            down = down * self.scale  # on the r-sized side: the cheap one
        return nn.functional.linear(down, self.B)  # (…, d)

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if type(self) is LowRank and self.gate is None and x.dtype == output.dtype == self.A.dtype:
            added: Tensor = _AddLowRank.apply(output, x, self.A, self.B, self.scale)
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
        """(B, A), detached copies with scale, gate and shrinkage folded into B: the update is B @ A."""
        B = self.B.detach() * (self.scale * shrinkage)
        gates = self.gates()
        if gates is not None:
            B = B * gates.detach()
        return B, self.A.detach().clone()


@torch.no_grad()
def row_norms(module: nn.Module, booster: LowRank, frozen: Tensor | None = None) -> Tensor:
    """2-norms of the rows of W + sBA, (d,), without forming the sum. frozen: those of W, where known."""
    if not can_merge(module):
        raise ValueError(
            f"{type(module).__name__} stores its weight packed, so the norms of its rows are not known; "
            "use a model in float32, bfloat16 or float16 with this method."
        )
    W = dense_weight(module).detach().to(booster.A.dtype)
    square = W.square().sum(1) if frozen is None else frozen.square()
    A, B = booster.A.detach(), booster.B.detach() * booster.scale
    cross = ((W @ A.T) * B).sum(1)
    return (square + 2 * cross + ((B @ (A @ A.T)) * B).sum(1)).clamp_min(0).sqrt()


@contextmanager
def attached(model: nn.Module, boosters: dict[str, LowRank]) -> Iterator[dict[str, LowRank]]:
    """Boosters on the named modules for the length of a `with` block; gone after it, whatever happened."""
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

    X: (N·S, k), the module's inputs; D: (N·S, d), the loss's gradient at its outputs. The gradient of the
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
