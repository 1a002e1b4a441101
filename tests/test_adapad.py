"""AdaPaD: every part is trained on what the parts before it leave, all of them in one step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods import AdaPaD, LoRA
from xgblora_lab.methods.family.adapad import Deflated
from xgblora_lab.tasks.matrix import matrix

RANK, D, K, N, S = 3, 5, 4, 7, 2


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(RANK, K, generator=generator, dtype=torch.float64),
        torch.randn(D, RANK, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("shift", [0, 2])
def test_a_part_has_the_gradient_of_its_rows_alone_against_the_earlier_parts(shift: int) -> None:
    A, B = factors()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, S, K, generator=generator, dtype=torch.float64)
    target = torch.randn(N, S, D, generator=generator, dtype=torch.float64)
    booster = Deflated(A.clone(), B.clone(), scale=0.5)
    booster.shift = shift
    (booster(x) - target).square().sum().backward()
    for j in range(RANK):
        rows = [i for i in range(N) if (i + shift) % RANK == j]
        a, b = A[j : j + 1].clone().requires_grad_(), B[:, j : j + 1].clone().requires_grad_()
        dense = 0.5 * (b @ a + B[:, :j] @ A[:j])  # (d, k)
        (x[rows] @ dense.T - target[rows]).square().sum().backward()
        torch.testing.assert_close(booster.A.grad[j : j + 1], a.grad)
        torch.testing.assert_close(booster.B.grad[:, j : j + 1], b.grad)
    plain = LowRank(A.clone(), B.clone(), scale=0.5)
    (plain(x) - target).square().sum().backward()
    assert not torch.allclose(plain.A.grad, booster.A.grad)
    booster.shift = None
    assert torch.equal(booster(x), plain(x))  # what is scored is the sum of all parts


def parts(method: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the rank-1 parts after a run on one matrix, and the cosines between them."""
    model, task = matrix([4.0, 2.0, 1.0], 8, 8)
    bench = Bench(model, task, method, steps=1500, batch_size=1, probe_size=0)
    bench.run(progress=False)
    B, A = bench.ensemble.factors("matrix")
    found = torch.einsum("dr,rk->rdk", B.double(), A.double())
    flat = nn.functional.normalize(found.flatten(1), dim=1)
    return found.flatten(1).norm(dim=1), flat @ flat.T


def test_the_parts_come_in_the_order_of_the_singular_values() -> None:
    options = {"rank": 3, "lr": 0.02, "steps_per_round": 1500}
    norms, cosines = parts(AdaPaD(**options))
    assert norms.tolist() == pytest.approx([4, 2, 1], rel=0.05)
    assert (cosines - torch.eye(3)).abs().max() < 0.05
    mixed, angles = parts(LoRA(**options))
    assert mixed.tolist() != pytest.approx([4, 2, 1], rel=0.05)
    assert (angles - torch.eye(3)).abs().max() > 0.05
