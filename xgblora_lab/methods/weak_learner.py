"""Where a booster sits, where it starts, what it sees and when it is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xgblora_lab import seeds
from xgblora_lab.lowrank.booster import LowRank, init_A, watched
from xgblora_lab.lowrank.linear import blocks, factor_dtype, weight_shape

if TYPE_CHECKING:
    from xgblora_lab.lowrank.ensemble import Ensemble
    from xgblora_lab.methods.base import Loop

    Merged = tuple[object, int, list[tuple[Tensor, Tensor]]]  # the ensemble's version, rounds seen, boosters

_MERGED: WeakKeyDictionary[Ensemble, dict[tuple[str, int], Merged]] = WeakKeyDictionary()


def chosen_units(
    names: list[str], selection: str, unit: str, share: float, seed: int, index: int
) -> list[str]:
    """The modules of round `index`, in the model's order; see the options of `XGBLoRA` for the arguments."""
    if selection == "all":
        return names
    units = blocks(names) if unit == "block" else [[name] for name in names]
    N = len(units)
    count = max(1, round(share * N)) if share < 1 else min(int(share), N)
    generator = seeds.generator("modules", seed, index)
    if selection == "random":
        picked = set(torch.randperm(N, generator=generator)[:count].tolist())
    else:
        last = N - count
        first = {"cyclic": index * count, "top": last}.get(selection)
        if first is None:  # contiguous
            first = int(torch.randint(last + 1, (), generator=generator))
        picked = {(first + i) % N for i in range(count)}
    chosen = {name for i in picked for name in units[i]}
    return [name for name in names if name in chosen]


def fresh_boosters(
    modules: Mapping[str, nn.Module],
    rank: int | Mapping[str, int],
    scale: Callable[[int], float],
    init: str,
    seed: int,
    index: int,
) -> dict[str, LowRank]:
    """Boosters that change nothing yet; A depends on the seed, the round and the modules' order alone.

    Parameters
    ----------
    modules : mapping of str to nn.Module
        The linear maps that get one each.
    rank : int or mapping of str to int
        One for all, or by module.
    scale : callable
        Of a rank, its scale.
    init : str
        As in `lowrank.booster.init_A`.
    seed, index : int
        The run's, and the round's.

    Returns
    -------
    dict of str to LowRank
        By module, attached nowhere.
    """
    generator = seeds.generator("A", seed, index)
    boosters = {}
    for name, module in modules.items():
        r = rank if isinstance(rank, int) else rank[name]
        boosters[name] = LowRank.fresh(module, init_A(init, r, weight_shape(module)[1], generator), scale(r))
    return boosters


def residual_A(
    loop: Loop, modules: Mapping[str, nn.Module], rank: int, index: int, ridge: float = 0.03
) -> dict[str, Tensor]:
    """A (r, k) per module, fitted to the negative functional gradient (our own idea, not the paper's).

    For y = W x the functional gradient at the outputs is D (n, d), the inputs are X (n, k). The best linear
    weak learner is the ridge regression of D on X, C⁻¹XᵀD with C = XᵀX + λI; A takes random directions of its
    range, A ∝ (C⁻¹XᵀDω)ᵀ with ω (d, r) random, at the norm that kaiming has on average. λ is `ridge` times
    the mean diagonal of XᵀX. One forward-backward pass on the round's first batch, counted in the record.
    """
    generator = seeds.generator("residual", loop.seed, index)
    omegas = {}
    for name, module in modules.items():
        omega = torch.randn(weight_shape(module)[0], rank, generator=generator)
        omegas[name] = omega.to(device=loop.accelerator.device, dtype=factor_dtype(module))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def collect(name: str, X: Tensor, D: Tensor) -> None:
        used = D.any(dim=1)  # padding has no gradient and is not part of the regression
        X, D = X[used].to(omegas[name]), D[used].to(omegas[name])
        seen[name].append((X, D @ omegas[name]))

    with watched(dict(modules), collect):
        loop.probe_gradients()
    fitted = {}
    for name in modules:
        X = torch.cat([x for x, _ in seen[name]])
        target = torch.cat([t for _, t in seen[name]])  # (n, r)
        fitted[name] = _ridge(loop, X, target, ridge).T  # (r, k)
        norm = fitted[name].norm(dim=1, keepdim=True)
        if not torch.isfinite(norm).all() or (norm == 0).any():
            raise ValueError(f"The probe gave {name!r} no gradient; use another init than 'residual' there.")
        fitted[name] = fitted[name] / (norm * math.sqrt(3))
    return fitted


def last_directions(ensemble: Ensemble, names: Iterable[str]) -> dict[str, Tensor]:
    """A (r, k) of the last booster on each module, its rows at the norm that kaiming has on average.

    A module without a booster so far, or whose last one has a row of zeros, is left out.
    """
    found, rounds = {}, ensemble.active()
    for name in names:
        A = next((boosters[name][1] for boosters in reversed(rounds) if name in boosters), None)
        if A is not None and (norm := A.norm(dim=1, keepdim=True)).all():
            found[name] = A / (norm * math.sqrt(3))
    return found


def earlier_directions(loop: Loop, module: str, rank: int) -> Tensor:
    """Orthonormal basis (k, R) of the rows of A of all earlier boosters on a module."""
    A = loop.ensemble.factors(module)[1]
    R, k = A.shape
    if R + rank > k:
        raise ValueError(
            f"{module!r} has {k} inputs and {R} of their directions are taken: none is left for a booster "
            "orthogonal to the earlier ones. Plan fewer rounds, or use subspace='free'."
        )
    return torch.linalg.qr(A.T.double())[0]


def merged_boosters(ensemble: Ensemble, module: str, rank: int) -> list[tuple[Tensor, Tensor]]:
    """(B (d, r), A (r, k)) of a module's boosters as they are now, the one trained longest ago first.

    A round that trained a booster further has merged it as [B, −B_start] and [A; A_start]. Where the rounds
    that a start comes from were dropped, the booster counts as a new one. Rounds that were looked at are not
    looked at again, so that a call costs the same after many of them.
    """
    kept = _MERGED.setdefault(ensemble, {})
    version, seen, found = kept.get((module, rank), (None, 0, []))
    if version is not ensemble.version:
        seen, found = 0, []
    for index in range(seen, len(ensemble)):
        boosters = ensemble[index]
        if module in boosters:
            B, A = boosters[module]
            found = [pair for pair in found if not torch.equal(pair[1], A[rank:])]
            found.append((B[:, :rank], A[:rank]))
    kept[module, rank] = ensemble.version, len(ensemble), found
    return list(found)


def train_further(ensemble: Ensemble, boosters: Mapping[str, LowRank], most: int) -> None:
    """Begin from the oldest merged booster on every module that has `most` of them."""
    for name, booster in boosters.items():
        merged = merged_boosters(ensemble, name, booster.rank)
        if len(merged) >= most:
            B, A = (t.to(booster.A) for t in merged[0])
            booster.start = B, A
            booster.A.data.copy_(A)
            booster.B.data.copy_(B / booster.scale)


def hardest_rows(loop: Loop, kappa: int) -> dict[int, list[int]]:
    """step -> training rows for the next κ steps: the half of 2κ steps' rows with the highest loss."""
    first, size = loop.trained_steps, loop.batch_size
    pool = [row for i in range(2 * kappa) for row in loop.planned_rows(first + i)]
    losses = loop.row_losses(pool)
    hardest = sorted(sorted(range(len(pool)), key=lambda i: -losses[i])[: kappa * size])
    rows = [pool[i] for i in hardest]  # in the plan's order
    return {first + i: rows[i * size : (i + 1) * size] for i in range(kappa)}


def _ridge(loop: Loop, X: Tensor, target: Tensor, ridge: float) -> Tensor:
    """(XᵀX + λI)⁻¹ Xᵀ target: (k, r), by the smaller of the primal and the dual system."""
    n, k = X.shape
    if n >= k or loop.accelerator.num_processes > 1:  # XᵀX adds up over processes, XXᵀ does not
        C, rhs = loop.summed(X.T @ X), loop.summed(X.T @ target)
        C.diagonal().add_(ridge * C.diagonal().mean())
        return torch.linalg.solve(C, rhs)
    K = X @ X.T
    lam = ridge * K.diagonal().sum() / k  # the same λ: trace(XXᵀ) = trace(XᵀX)
    K.diagonal().add_(lam)
    return X.T @ torch.linalg.solve(K, target)


def has_stopped_falling(losses: Tensor) -> bool:
    """Whether the second half's mean is not below the first half's by more than its standard error.

    Parameters
    ----------
    losses : Tensor (2n,)
        Training losses of as many steps, in their order.
    """
    before, now = losses.chunk(2)
    error = ((before.var() + now.var()) / len(now)).sqrt() if len(now) > 1 else torch.zeros(())
    return bool(before.mean() - now.mean() <= error)
