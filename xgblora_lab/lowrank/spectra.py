"""Linear algebra of an update kept as factors: ΔW = B @ A, never formed as a dense matrix.

With thin QRs B = Q_B R_B and Aᵀ = Q_A R_A, ΔW = Q_B (R_B R_Aᵀ) Q_Aᵀ, so the singular values of ΔW are those
of the small core R_B R_Aᵀ, at most r a side. All of it runs in float64, whatever the factors' dtype: the core
is small, and float64 is what makes the small singular values of a graded update trustworthy.

Axis letters: `d` out, `k` in, `r` factors (the sum of the ranks of all boosters), B (d, r), A (r, k).
Factors whose shapes do not fit, and updates to compare of different shapes, are a ValueError.
An update without factors (r = 0) or of zeros is a zero update: its spectrum is empty or zero, its ranks 0.
Factors with nan or inf (a run that diverged) have a spectrum of nan; asking for their subspaces is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # B (d, r), A (r, k)


def singular_values(B: Tensor, A: Tensor) -> Tensor:
    """Singular values of B @ A: (min(r, d, k),), descending, float64; nan where a factor holds nan or inf."""
    B, A = double(B, A)
    return svdvals(triangle(B) @ triangle(A.T).T)


def svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of B @ A: U (d, n), s (n,), descending, and Vh (n, k), with n = min(r, d, k), in float64.

    Directions that belong to a singular value of zero are arbitrary. ValueError for factors with nan or inf.
    """
    B, A = double(B, A)
    require_finite(B, A)
    if B.shape[1] == 0:
        return B, B.new_zeros(0), A
    Q_B, R_B = torch.linalg.qr(B)  # (d, m), (m, r), m = min(d, r)
    Q_A, R_A = torch.linalg.qr(A.T)  # (k, n), (n, r), n = min(k, r)
    U, s, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, s, Vh @ Q_A.T


def staged_singular_values(B: Tensor, A: Tensor, stops: Sequence[int]) -> Tensor:
    """Spectra of B[:, :n] @ A[:n] for every n in `stops`, a row each: (len(stops), r), padded with zeros.

    One QR serves all stages: the leading columns of R are the R of the leading columns. ValueError for a stop
    below 0 or above r.
    """
    B, A = double(B, A)
    r = B.shape[1]
    if any(not 0 <= n <= r for n in stops):
        raise ValueError(f"stops must lie between 0 and the number of factors, {r}; got {list(stops)}.")
    R_B, R_A = triangle(B), triangle(A.T)  # (≤ d, r), (≤ k, r)
    rows = B.new_zeros(len(stops), r)
    for i, n in enumerate(stops):
        if i and n == stops[i - 1]:  # a round without a booster here
            rows[i] = rows[i - 1]
            continue
        s = svdvals(R_B[:n, :n] @ R_A[:n, :n].T)  # rows below n are zero in a triangle
        rows[i, : len(s)] = s
    return rows


class GrowingSpectrum:
    """The spectrum of an update that grows by one booster after another.

    Keeps orthonormal bases Q_B (d, m) and Q_A (k, n) of what came so far and the core K (m, n) with
    ΔW = Q_B K Q_Aᵀ. A booster is taken in when the spectrum is asked for, by Gram–Schmidt with
    re-orthogonalisation; T factors in, one more costs O((d + k) T) then, and O(d + k) if nobody asks. A
    column that depends linearly on the earlier ones adds to the core and not to the basis, so no basis
    outgrows its space. The update is d × k.
    """

    def __init__(self, d: int, k: int) -> None:
        self._left, self._right = _Basis(d), _Basis(k)
        self._core = torch.zeros(0, 0, dtype=torch.float64)  # grown by doubling; (≥ m, ≥ n)
        self._waiting: list[Factors] = []
        self._values: Tensor | None = self._core.new_zeros(0)  # None: to be computed

    def append(self, B: Tensor, A: Tensor) -> None:
        """Add one more booster B (d, r), A (r, k) to the update; ValueError where the shapes do not fit."""
        B, A = double(B, A)
        if B.shape[0] != self._left.size or A.shape[1] != self._right.size:
            raise ValueError(
                f"This spectrum is of a {self._left.size} × {self._right.size} update; "
                f"got a booster of {B.shape[0]} × {A.shape[1]}."
            )
        self._waiting.append((B.cpu(), A.cpu()))
        self._values = None

    def singular_values(self) -> Tensor:
        """Singular values of the update so far, descending: (min(m, n),), float64."""
        for B, A in self._waiting:
            for b, a in zip(B.T, A, strict=True):
                left, right = self._left.coordinates(b), self._right.coordinates(a)  # (m,), (n,)
                self._core = _grown(self._core, len(left), len(right))
                self._core[: len(left), : len(right)].addr_(left, right)
        self._waiting.clear()  # before what may fail: no booster is taken in twice
        if self._values is None:
            self._values = svdvals(self._core[: self._left.count, : self._right.count])
        return self._values.clone()


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


# Measures of one spectrum, s (r,), in any order and with any number of zeros in it.


def numerical_rank(s: Tensor, tol: float | None = None, shape: tuple[int, int] | None = None) -> int:
    """How many singular values exceed tol · σ₁; 0 for a zero update.

    Parameters
    ----------
    s : Tensor, (r,)
    tol : float, optional
        Default: max(d, k) · ε, the convention of `numpy.linalg.matrix_rank`, with ε of float32, in which
        factors and weights are kept, although the spectrum itself is computed in float64.
    shape : tuple of int, optional
        (d, k) of the update; default: the number of singular values stands in for max(d, k).
    """
    if s.numel() == 0:
        return 0
    if tol is None:
        tol = max(shape or (len(s),)) * torch.finfo(torch.float32).eps
    largest = float(s.max())
    return int((s > tol * largest).sum()) if largest > 0 else 0


def stable_rank(s: Tensor) -> float:
    """Σσ² / σ₁²: how many equally strong directions would hold this energy; 0 for a zero update."""
    s = s.double()
    return float((s / s.max()).square().sum()) if s.numel() and float(s.max()) > 0 else 0.0


def effective_rank(s: Tensor) -> float:
    """Exponential of the entropy of σ / Σσ; from 1 to r, 0 for a zero update.

    References
    ----------
    Roy & Vetterli (2007). The effective rank: a measure of effective dimensionality.
    """
    s = s.double()
    total = s.sum()
    return float(torch.special.entr(s / total).sum().exp()) if float(total) > 0 else 0.0


def captured_energy(s: Tensor) -> Tensor:
    """Share of Σσ² in the first 1, 2, …, r singular values: (r,), float64; all 0 for a zero update."""
    energy = s.double().square()
    total = energy.sum()
    return energy.cumsum(0) / total if float(total) > 0 else torch.zeros_like(energy)


# Comparing two updates.


def principal_angles(X: Tensor, Y: Tensor) -> Tensor:
    """Angles between the column spaces of two matrices, in radians, ascending, float64.

    X (d, m) and Y (d, n) need not be orthonormal; dependent columns count once; nan or inf is a ValueError.
    There are as many angles as the smaller space has dimensions. Those below π/4 come from their sine: a
    cosine cannot tell those below 1e-8 from zero.

    References
    ----------
    Björck & Golub (1973). Numerical methods for computing angles between linear subspaces.
    """
    if X.ndim != 2 or Y.ndim != 2 or X.shape[0] != Y.shape[0]:
        shapes = f"{tuple(X.shape)} and {tuple(Y.shape)}"
        raise ValueError(f"Two matrices with equally many rows are needed; got {shapes}.")
    P, Q = _orthonormal(X), _orthonormal(Y)
    if P.shape[1] < Q.shape[1]:
        P, Q = Q, P
    if Q.shape[1] == 0:
        return Q.new_zeros(0)
    overlap = P.T @ Q  # (m, n), n <= m
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)  # descending: ascending angles
    sines = torch.linalg.svdvals(Q - P @ overlap).flip(0).clamp(max=1.0)
    return torch.where(cosines.square() > 0.5, torch.asin(sines), torch.acos(cosines))


def alignment(update: Factors, truth: Factors, rank: int | None = None) -> float:
    """Mean squared cosine between the leading `rank` singular directions of two updates, left and right.

    It is 1 where both subspaces agree, 0 where they are orthogonal; a random subspace scores about rank / d
    and rank / k. Directions that the update lacks (its rank is lower) count as 0, so a zero update scores 0;
    one that diverged scores nan.

    Parameters
    ----------
    update, truth : tuple of Tensor
        Factors B (d, r) and A (r, k) each.
    rank : int, optional
        How many directions; default: the truth's rank, above which it is a ValueError.
    """
    if not all(bool(torch.isfinite(factor).all()) for factor in update):
        return math.nan
    U_1, s_1, Vh_1 = svd(*update)
    U_2, s_2, Vh_2 = svd(*truth)
    limit = numerical_rank(s_2)
    rank = limit if rank is None else rank
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must lie between 1 and the truth's rank, {limit}; got {rank}.")
    if U_1.shape[0] != U_2.shape[0] or Vh_1.shape[1] != Vh_2.shape[1]:
        raise ValueError("Update and truth must have the same shape.")
    n = min(rank, numerical_rank(s_1))
    left = (U_1[:, :n].T @ U_2[:, :rank]).square().sum() / rank
    right = (Vh_1[:n] @ Vh_2[:rank].T).square().sum() / rank
    return float(left + right) / 2


def distance(update: Factors, truth: Factors) -> float:
    """‖ΔW − ΔW*‖ / ‖ΔW*‖ in the Frobenius norm; 1 for a zero update.

    Where the truth is a zero update: 0 if the update is one too, else infinity.
    """
    B, A = double(*update)
    B_2, A_2 = double(*truth)
    if B.shape[0] != B_2.shape[0] or A.shape[1] != A_2.shape[1]:
        raise ValueError("Update and truth must have the same shape.")
    # The difference is itself an update with factors; squared norms subtracted would cancel near the truth.
    difference = _norm(torch.cat([B, -B_2], 1), torch.cat([A, A_2]))
    scale = _norm(B_2, A_2)
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale


def _norm(B: Tensor, A: Tensor) -> float:
    return float(torch.linalg.matrix_norm(triangle(B) @ triangle(A.T).T))


def _orthonormal(X: Tensor) -> Tensor:
    """An orthonormal basis of the column space of X, (d, rank of X)."""
    X = X.detach().double()
    require_finite(X)
    if X.numel() == 0:
        return X.new_zeros(X.shape[0], 0)
    U: Tensor
    U, s, _ = torch.linalg.svd(X, full_matrices=False)
    # Small angles are asked about, so that only float64's own rounding is taken for dependence.
    return U[:, : numerical_rank(s, tol=max(X.shape) * torch.finfo(torch.float64).eps)]


# Factors in float64, and the small matrices that stand for them.


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
