"""Spectra from factors against the dense float64 SVD, and each measure against a hand-made answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from xgblora_lab import spectra

SHAPES = [(24, 17, 5), (17, 24, 5), (20, 20, 1), (12, 9, 30), (9, 12, 30), (1, 7, 3), (16, 8, 8)]


def random_factors(
    d: int, k: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> spectra.Factors:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(d, r, generator=generator, dtype=torch.float64)
    A = torch.randn(r, k, generator=generator, dtype=torch.float64)
    return B.to(dtype), A.to(dtype)


def factors_with(s: Tensor, d: int, k: int, seed: int = 0) -> spectra.Factors:
    """Factors of an update with the singular values `s`."""
    B, A = random_factors(d, k, len(s), seed)
    return torch.linalg.qr(B).Q * s, torch.linalg.qr(A.T).Q.T


def dense_values(B: Tensor, A: Tensor) -> Tensor:
    return torch.linalg.svdvals(B.double() @ A.double())


def assert_same_spectrum(found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    """To `rtol` of each singular value, or to float64's rounding of the largest."""
    floor = 1e-13 * float(expected.max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=floor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "k", "r"), SHAPES)
def test_singular_values_are_those_of_the_dense_update(d: int, k: int, r: int, dtype: torch.dtype) -> None:
    B, A = random_factors(d, k, r, dtype=dtype)
    s = spectra.singular_values(B, A)
    assert s.shape == (min(d, k, r),)
    assert s.dtype == torch.float64
    expected = dense_values(B, A)[: len(s)]
    assert_same_spectrum(s, expected)
    s[0] *= 1 + 1e-5
    with pytest.raises(AssertionError):  # the comparison notices one value that is slightly off
        assert_same_spectrum(s, expected)


@pytest.mark.parametrize(("d", "k", "r"), SHAPES)
def test_svd_rebuilds_the_update(d: int, k: int, r: int) -> None:
    B, A = random_factors(d, k, r)
    U, s, Vh = spectra.svd(B, A)
    n = min(d, k, r)
    assert U.shape == (d, n)
    assert s.shape == (n,)
    assert Vh.shape == (n, k)
    torch.testing.assert_close((U * s) @ Vh, B @ A, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(U.T @ U, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(n, dtype=torch.float64))


def test_a_graded_spectrum_is_accurate_to_its_last_value() -> None:
    wanted = torch.logspace(0, -6, 13, dtype=torch.float64)
    B, A = factors_with(wanted, 60, 40)
    assert_same_spectrum(spectra.singular_values(B, A), wanted)
    # A float32 SVD loses the small end of it: this is why the core is float64.
    with pytest.raises(AssertionError):
        assert_same_spectrum(torch.linalg.svdvals((B @ A).float())[:13].double(), wanted)


def test_dependent_factors_give_a_lower_rank() -> None:
    B, A = random_factors(30, 20, 4)
    B, A = torch.cat([B, B[:, :2] + B[:, 2:4], 0 * B[:, :1]], 1), torch.cat([A, A[:3]])
    s = spectra.singular_values(B, A)
    assert len(s) == 7
    assert spectra.numerical_rank(s, shape=(30, 20)) == 4
    assert_same_spectrum(s, dense_values(B, A)[:7])


@pytest.mark.parametrize(("d", "k", "r"), [(24, 17, 6), (9, 12, 30), (12, 9, 30)])
def test_staged_spectra_are_those_of_the_first_columns(d: int, k: int, r: int) -> None:
    B, A = random_factors(d, k, r)
    stops = [0, 1, 1, 4, r // 2, r]
    rows = spectra.staged_singular_values(B, A, stops)
    assert rows.shape == (len(stops), r)
    for n, row in zip(stops, rows, strict=True):
        m = min(n, d, k)
        assert_same_spectrum(row[:m], dense_values(B[:, :n], A[:n])[:m])
        assert not row[m:].any()
    assert not torch.equal(rows[3], rows[-1])
    with pytest.raises(ValueError, match="between 0 and"):
        spectra.staged_singular_values(B, A, [r + 1])


@pytest.mark.parametrize(("d", "k"), [(40, 30), (7, 30), (30, 7)])
def test_growing_spectrum_follows_the_dense_one(d: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    growing, compute, computed = spectra.GrowingSpectrum(d, k), spectra.svdvals, list[Tensor]()
    monkeypatch.setattr(spectra, "svdvals", lambda core: computed.append(core) or compute(core))
    assert growing.singular_values().shape == (0,)
    B, A = torch.zeros(d, 0, dtype=torch.float64), torch.zeros(0, k, dtype=torch.float64)
    for t in range(12):
        b, a = random_factors(d, k, 1 + t % 3, seed=t)
        if t % 4 == 3:  # dependent on one side, then nearly so: what classical Gram–Schmidt gets wrong
            b = B[:, : b.shape[1]] + (1e-9 * b if t % 8 == 7 else 0)
        growing.append(b, a)
        B, A = torch.cat([B, b], 1), torch.cat([A, a])
        expected = dense_values(B, A)
        s = growing.singular_values()
        assert_same_spectrum(s, expected[: len(s)])
        assert float(expected[len(s) :].sum()) <= 1e-12 * float(expected[0])
    assert len(computed) == 12
    before = growing.singular_values()
    assert torch.equal(before, s)
    before[:] = 0  # a copy of its own
    before = growing.singular_values()
    assert torch.equal(before, s)
    assert len(computed) == 12  # nothing was added, so nothing is computed
    growing.append(torch.zeros(d, 1), torch.zeros(1, k))
    torch.testing.assert_close(growing.singular_values(), before)
    growing.append(*random_factors(d, k, 1, seed=99))
    assert not torch.allclose(growing.singular_values()[: len(before)], before)  # a real booster does show
    assert len(computed) == 14
    B, A = random_factors(d, k, 1, seed=98)
    other = spectra.GrowingSpectrum(d, k)
    other.append(B, A)
    with monkeypatch.context() as failing:
        failing.setattr(spectra, "svdvals", lambda core: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            other.singular_values()
    expected = (B.double().norm() * A.double().norm())[None]
    torch.testing.assert_close(other.singular_values(), expected)
    with pytest.raises(ValueError, match="spectrum is of a"):
        growing.append(*random_factors(d + 1, k, 1))


def test_growing_basis_stays_orthonormal_on_nearly_dependent_columns() -> None:
    growing = spectra.GrowingSpectrum(50, 50)
    b, a = random_factors(50, 50, 1)
    noise, _ = random_factors(50, 50, 40, seed=1)
    for column in noise.T:
        growing.append(b + 1e-8 * column[:, None], a)
    assert len(growing.singular_values()) == 1
    Q = growing._left._rows[: growing._left.count]
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q), dtype=torch.float64), rtol=0, atol=1e-12)
    assert growing._left.count == 40
    assert growing._right.count == 1


def test_numerical_rank_follows_numpy() -> None:
    for r in (1, 3, 8):
        W = torch.matmul(*random_factors(24, 17, r, dtype=torch.float32))
        ours = spectra.numerical_rank(torch.linalg.svdvals(W), shape=(24, 17))
        assert ours == r == np.linalg.matrix_rank(W.numpy())
    s = torch.tensor([1.0, 1e-3, 1e-9])
    assert [spectra.numerical_rank(s, tol) for tol in (None, 1e-2, 1e-12)] == [2, 1, 3]


def test_ranks_of_known_spectra() -> None:
    flat = torch.ones(6)
    assert spectra.stable_rank(flat) == pytest.approx(6)
    assert spectra.effective_rank(flat) == pytest.approx(6)
    assert spectra.stable_rank(3 * flat[:1]) == pytest.approx(1) == spectra.effective_rank(flat[:1])
    s = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert spectra.stable_rank(s) == pytest.approx(6 / 4)
    assert spectra.effective_rank(s) == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4) is 1.5 bits
    assert spectra.captured_energy(s).tolist() == pytest.approx([4 / 6, 5 / 6, 1.0, 1.0])


def test_zero_and_empty_updates_have_rank_zero() -> None:
    for B, A in [(torch.zeros(5, 0), torch.zeros(0, 4)), (torch.zeros(5, 2), torch.randn(2, 4))]:
        s = spectra.singular_values(B, A)
        assert s.shape == (B.shape[1],)
        assert not s.any()
        assert spectra.numerical_rank(s) == 0
        assert spectra.stable_rank(s) == spectra.effective_rank(s) == 0.0
        assert spectra.captured_energy(s).tolist() == [0.0] * len(s)
        assert [x.shape for x in spectra.svd(B, A)] == [(5, len(s)), (len(s),), (len(s), 4)]
        truth = random_factors(5, 4, 2)
        assert spectra.distance((B, A), truth) == pytest.approx(1.0)
        assert spectra.distance((B, A), (B, A)) == 0.0
        assert spectra.distance(truth, (B, A)) == math.inf
        assert spectra.alignment((B, A), truth, 2) == 0.0
        assert spectra.principal_angles(B, truth[0]).shape == (0,)
    assert spectra.staged_singular_values(torch.zeros(5, 0), torch.zeros(0, 4), [0, 0]).shape == (2, 0)


@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-6, 0.3, math.pi / 4, 1.2, math.pi / 2])
def test_principal_angles_of_rotated_planes(theta: float) -> None:
    Q, _ = torch.linalg.qr(random_factors(10, 1, 10)[0])
    X = Q[:, :3]
    Y = torch.stack([Q[:, 0], math.cos(theta) * Q[:, 1] + math.sin(theta) * Q[:, 5]], 1)
    mix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)  # 3 columns, the same plane
    angles = spectra.principal_angles(X, Y @ mix)
    assert angles.shape == (2,)
    torch.testing.assert_close(angles, torch.tensor([0.0, theta], dtype=torch.float64), rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(angles, spectra.principal_angles(Y, X), rtol=1e-6, atol=1e-15)


def test_principal_angles_of_random_planes_are_those_of_the_projectors() -> None:
    X, Y = random_factors(15, 1, 4, seed=1)[0], random_factors(15, 1, 6, seed=2)[0]
    P, Q = (M @ torch.linalg.pinv(M) for M in (X, Y))
    cosines = torch.linalg.svdvals(P @ Q)[:4]  # of the product of the two orthogonal projectors
    torch.testing.assert_close(spectra.principal_angles(X, Y).cos(), cosines)
    with pytest.raises(ValueError, match="equally many rows"):
        spectra.principal_angles(X, Y[:-1])


def test_alignment_of_known_updates() -> None:
    s = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    B, A = factors_with(s, 12, 9)
    assert spectra.alignment((B, A), (B, A), 3) == pytest.approx(1.0)
    assert spectra.alignment((B[:, :1], A[:1]), (B, A), 2) == pytest.approx(0.5)  # one direction of two
    assert spectra.alignment((B[:, 2:], A[2:]), (B, A), 2) == pytest.approx(0.0, abs=1e-12)
    assert spectra.alignment((B[:, :2], A[1:]), (B[:, :2], A[:2]), 2) == pytest.approx((1 + 0.5) / 2)
    # Random subspaces score rank / d and rank / k on average.
    scores = [spectra.alignment(random_factors(12, 9, 5, seed), (B, A), 3) for seed in range(60)]
    assert np.mean(scores) == pytest.approx((3 / 12 + 3 / 9) / 2, abs=0.04)
    assert spectra.alignment((B, A), (B, A)) == pytest.approx(1.0)  # the default is the truth's rank
    assert math.isnan(spectra.alignment((B * math.inf, A), (B, A)))
    with pytest.raises(ValueError, match="truth's rank, 3"):
        spectra.alignment((B, A), (B, A), 4)


def test_distance_is_the_dense_one_even_near_the_truth() -> None:
    truth, other = random_factors(20, 30, 4), random_factors(20, 30, 45, seed=1)
    W, W_2 = other[0] @ other[1], truth[0] @ truth[1]
    dense = torch.linalg.matrix_norm(W - W_2) / torch.linalg.matrix_norm(W_2)
    assert spectra.distance(other, truth) == pytest.approx(float(dense), rel=1e-10)
    near = (truth[0] * (1 + 1e-9), truth[1])
    assert spectra.distance(near, truth) == pytest.approx(1e-9, rel=1e-5)  # squared norms would cancel here
    with pytest.raises(ValueError, match="same shape"):
        spectra.distance(other, random_factors(20, 31, 4))


def test_bad_factors_are_named() -> None:
    B, A = random_factors(6, 5, 2)
    with pytest.raises(ValueError, match="with the same r"):
        spectra.singular_values(B, A[:1])
    B[0, 0] = math.nan
    assert spectra.singular_values(B, A).isnan().all()
    assert spectra.singular_values(B, A).shape == (2,)
    with pytest.raises(ValueError, match="diverged"):
        spectra.svd(B, A)
