"""Factors B (d, r) and A (r, k) of an update in float64, and the small matrices that stand for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # B (d, r), A (r, k)


def double(B: Tensor, A: Tensor) -> Factors:
    """Both factors in float64, without gradients. ValueError where their shapes do not fit."""
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        shapes = f"{tuple(B.shape)} and {tuple(A.shape)}"
        raise ValueError(f"Factors must be B (d, r) and A (r, k) with the same r; got {shapes}.")
    return B.detach().double(), A.detach().double()


def require_finite(*tensors: Tensor) -> None:
    """ValueError where a tensor holds nan or inf."""
    if not all(bool(torch.isfinite(x).all()) for x in tensors):
        raise ValueError("The factors hold nan or inf: the run has diverged; try a lower learning rate.")


def triangle(X: Tensor) -> Tensor:
    """R of X = QR, (min(n, r), r), for X (n, r): the columns' inner products in the fewest rows."""
    if X.numel() == 0:
        return X.new_zeros(min(X.shape), X.shape[1])
    if not bool(torch.isfinite(X).all()):
        return X.new_full((min(X.shape), X.shape[1]), math.nan)
    R: Tensor = torch.linalg.qr(X, mode="r").R
    return R


def svdvals(core: Tensor) -> Tensor:
    """Singular values, descending; none for an empty matrix, nan where the matrix holds nan or inf."""
    if core.numel() == 0:
        return core.new_zeros(min(core.shape))
    if not bool(torch.isfinite(core).all()):
        return core.new_full((min(core.shape),), math.nan)
    s: Tensor = torch.linalg.svdvals(core)
    return s
