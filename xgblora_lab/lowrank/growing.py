"""The spectrum of an update that grows by one booster after another, without starting again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xgblora_lab.lowrank.factors import Factors, double, svdvals


class GrowingSpectrum:
    """The spectrum of an update that grows by one booster after another.

    Keeps orthonormal bases Q_B (d, m) and Q_A (k, n) of what came so far and the core K (m, n) with
    ΔW = Q_B K Q_Aᵀ. A booster is taken in when the spectrum is asked for, by Gram–Schmidt with
    re-orthogonalisation; T factors in, one more costs O((d + k) T) then, and O(d + k) if nobody asks. A
    column that depends linearly on the earlier ones adds to the core and not to the basis, so no basis
    outgrows its space.

    Parameters
    ----------
    d, k : int
        Shape of the update.
    """

    def __init__(self, d: int, k: int) -> None:
        self._left, self._right = _Basis(d), _Basis(k)
        self._core = torch.zeros(0, 0, dtype=torch.float64)  # grown by doubling; (≥ m, ≥ n)
        self._waiting: list[Factors] = []

    def append(self, B: Tensor, A: Tensor) -> None:
        """Add one more booster B (d, r), A (r, k) to the update; ValueError where the shapes do not fit."""
        B, A = double(B, A)
        if B.shape[0] != self._left.size or A.shape[1] != self._right.size:
            raise ValueError(
                f"This spectrum is of a {self._left.size} × {self._right.size} update; "
                f"got a booster of {B.shape[0]} × {A.shape[1]}."
            )
        self._waiting.append((B.cpu(), A.cpu()))

    def singular_values(self) -> Tensor:
        """Singular values of the update so far, descending: (min(m, n),), float64."""
        for B, A in self._waiting:
            for b, a in zip(B.T, A, strict=True):
                left, right = self._left.coordinates(b), self._right.coordinates(a)  # (m,), (n,)
                self._core = _grown(self._core, len(left), len(right))
                self._core[: len(left), : len(right)].addr_(left, right)
        self._waiting.clear()
        return svdvals(self._core[: self._left.count, : self._right.count])


class _Basis:
    """Orthonormal columns that grow one vector at a time."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._rows = torch.zeros(0, size, dtype=torch.float64)  # a vector a row: contiguous, so that it grows

    def coordinates(self, vector: Tensor) -> Tensor:
        """Coordinates of `vector` (size,) in the basis, which takes in what it did not span yet."""
        Q = self._rows[: self.count]  # (m, size)
        norm = torch.linalg.vector_norm(vector)
        along = Q @ vector
        rest = vector - along @ Q
        left = torch.linalg.vector_norm(rest)
        if left < 0.7 * norm:
            # Cancellation: one pass left components along Q. Twice is enough (Parlett, Kahan).
            again = Q @ rest
            along, rest = along + again, rest - again @ Q
            left = torch.linalg.vector_norm(rest)
        if self.count == self.size or left <= 1e-14 * math.sqrt(self.size) * norm:  # spanned already
            return along
        self._rows = _grown(self._rows, self.count + 1, self.size)
        self._rows[self.count] = rest / left
        self.count += 1
        return torch.cat([along, left[None]])


def _grown(X: Tensor, rows: int, columns: int) -> Tensor:
    """X with room for `rows` × `columns`; a side that grows at least doubles, so that growing is rare."""
    have = X.shape
    n, m = (old if new <= old else max(new, 2 * old) for new, old in zip((rows, columns), have, strict=True))
    return X if (n, m) == have else torch.nn.functional.pad(X, (0, m - have[1], 0, n - have[0]))
