"""LoRA-RITE: one path of the product, however it is written."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods import LoRA, LoRARITE
from xgblora_lab.methods.family import lora_rite as module
from xgblora_lab.methods.family.lora_rite import RITE

D, K, R = 9, 7, 3
OPTIONS = [{}, {"escape": True}, {"weight_decay": 0.1}, {"clip": 0.05}, {"clip": None, "skip": None}]


def matrices(seed: int = 0, d: int = D, k: int = K, r: int = R):
    """Random A (r, k), B (d, r) and a target (d, k), in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((r, k), (d, r), (d, k))
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def rite(boosters, lr=0.02, cls=RITE, **options):
    return cls(boosters, lr, (0.9, 0.999), **options)


def adam(boosters, lr=0.02):
    return torch.optim.Adam([p for b in boosters for p in (b.A, b.B)], lr=lr)


def loss_of(boosters, targets):
    """A quadratic whose minimum is the targets; its gradients stay below the skipping threshold."""
    parts = [(b.scale * b.B @ b.A - t).square().mean() for b, t in zip(boosters, targets, strict=True)]
    return sum(parts)


def path(optimizer_of, starts, targets, steps=30):
    """The products after `steps` from the given (A, B)."""
    boosters = [LowRank(A.clone(), B.clone(), 1.5) for A, B in starts]
    optimizer = optimizer_of(boosters)
    for _ in range(steps):
        loss_of(boosters, targets).backward()
        optimizer.step(), optimizer.zero_grad()
    return [(b.B @ b.A).detach() for b in boosters]


def rewritten(start, seed, factor=None):
    """Another way to write the same product: (T⁻¹A, B T) for a random T, or T = factor·I."""
    A, B = start
    r = A.shape[0]
    T = torch.randn(r, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    T = T if factor is None else factor * torch.eye(r, dtype=torch.float64)
    return torch.linalg.solve(T, A), B @ T


def differences(optimizer_of, factor=None):
    """‖Z₁ − Z₂‖/‖Z₁‖ of the final products of two pairs written in two ways."""
    data = [matrices(1), matrices(2, 5, 7, 3)]  # two shapes: the clip runs over both
    starts, targets = [(A, B) for A, B, _ in data], [t for _, _, t in data]
    one = path(optimizer_of, starts, targets)
    two = path(optimizer_of, [rewritten(s, 3 + i, factor) for i, s in enumerate(starts)], targets)
    moved = [float((z - 1.0 * B @ A).norm()) for z, (A, B) in zip(one, starts, strict=True)]
    assert min(moved) > 0.1  # something was learned
    return max(float((a - b).norm() / a.norm()) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
def test_thirty_steps_do_not_depend_on_how_the_product_is_written(options):
    assert differences(lambda boosters: rite(boosters, **options)) < 1e-8
    assert differences(lambda boosters: rite(boosters, **options), factor=10.0) < 1e-8


def test_adam_depends_on_it():
    assert differences(adam) > 0.1
    assert differences(adam, factor=10.0) > 0.1


class NotTransported(RITE):
    """The moments stay in the basis that has moved away."""

    def _transport(self, stack, side):
        P = super()._transport(stack, side)
        return torch.eye(P.shape[-1], dtype=P.dtype).expand_as(P)


class NotRestored(RITE):
    """The step keeps the unmagnified length: no T⁻ᵀ."""

    def sides(self, stack):
        sides = super().sides(stack)
        for side in sides:
            object.__setattr__(side, "pinv", torch.eye(R, dtype=side.pinv.dtype).expand_as(side.pinv))
        return sides


@pytest.mark.parametrize("broken", [NotTransported, NotRestored])
def test_without_its_essential_lines_it_depends_on_it_too(broken):
    assert differences(lambda boosters: rite(boosters, cls=broken)) > 1e-3


def only(booster, optimizer):
    (stack,) = optimizer.stacks()
    return optimizer.sides(stack)


def test_the_unmagnified_gradient_depends_on_the_subspaces_alone():
    A, B, _ = matrices(4)
    s = 1.5
    layer = nn.Linear(K, D, bias=False, dtype=torch.float64)
    full = nn.Linear(K, D, bias=False, dtype=torch.float64)
    full.weight.data = layer.weight.data + s * B @ A
    booster = LowRank(A, B, s)
    booster.attach(layer)
    x = torch.randn(20, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for model in (layer, full):
        model(x).tanh().square().mean().backward()
    G = full.weight.grad
    left, right = only(booster, rite([booster]))
    torch.testing.assert_close(left.gradient[0], s * G.T @ right.basis[0])
    torch.testing.assert_close(right.gradient[0], s * G @ left.basis[0])
    torch.testing.assert_close(right.basis[0].T @ right.basis[0], torch.eye(R, dtype=torch.float64))
    assert (booster.A.grad.T - left.gradient[0]).norm() > 0.1 * left.gradient[0].norm()


def test_the_first_step_moves_B_alone():
    A, _, target = matrices(6)
    booster = LowRank(A.clone(), torch.zeros(D, R, dtype=torch.float64))
    optimizer = rite([booster])
    for step in range(3):
        loss_of([booster], [target]).backward()
        optimizer.step(), optimizer.zero_grad()
        assert torch.equal(booster.A, A) == (step == 0)
        assert booster.B.isfinite().all()
        assert float(booster.B.detach().norm()) > 0


def test_rank_one_is_adam_on_a_direction():
    """The basis is a sign; one number per factor is the second moment, so the first step has length √n·lr."""
    A, B, target = matrices(7, r=1)
    booster = LowRank(A.clone(), B.clone())
    optimizer = rite([booster], lr=0.01)
    loss_of([booster], [target]).backward()
    gA, gB = booster.A.grad.clone(), booster.B.grad.clone()
    optimizer.step()
    for before, after, gradient, other in ((A, booster.A, gA, B), (B, booster.B, gB, A)):
        step = after.detach() - before
        length = 0.01 * math.sqrt(step.numel()) / float(other.norm())
        torch.testing.assert_close(step, -length * gradient / gradient.norm(), rtol=1e-4, atol=0)
    loss_of([booster], [target]).backward()
    stack = next(iter(optimizer.stacks()))
    for side in optimizer.sides(stack):
        P = optimizer._transport(stack, side)
        assert float(P.abs()) == pytest.approx(1, abs=1e-2)


def test_the_first_moment_starts_with_entries_of_size_one():
    A, B, target = matrices(8)
    booster = LowRank(A, B)
    optimizer = rite([booster], eps=0.0)
    loss_of([booster], [target]).backward()
    optimizer.step()
    for parameter in (booster.A, booster.B):
        assert float(optimizer.state[parameter]["first"].square().mean().sqrt()) == pytest.approx(1)
        assert float(parameter.grad.square().mean().sqrt()) < 0.5


def test_the_clip_holds_over_all_pairs_together():
    data = [matrices(1), matrices(2, 5, 7, 3)]
    boosters = [LowRank(A, B) for A, B, _ in data]
    loss_of(boosters, [t for _, _, t in data]).backward()
    optimizer = rite(boosters, clip=0.01)
    sides = [side for stack in optimizer.stacks() for side in optimizer.sides(stack)]
    shrink = float(optimizer._shrink(sides))
    together = torch.cat([side.gradient.flatten() for side in sides])
    assert len(sides) == 4
    assert shrink * float(together.norm()) == pytest.approx(0.01)
    assert shrink * max(float(side.gradient.norm()) for side in sides) < 0.0099  # not each by itself
    assert float(rite(boosters, clip=1e6)._shrink(sides)) == 1
    assert rite(boosters, clip=None)._shrink(sides) == 1


def test_a_factor_with_a_huge_gradient_rests():
    A, B, target = matrices(9)
    for skip, moves in ((1.0, False), (None, True)):
        booster = LowRank(A.clone(), B.clone())
        optimizer = rite([booster], skip=skip)
        (1e4 * loss_of([booster], [target])).backward()
        optimizer.step()
        assert (not torch.equal(booster.A, A)) == moves


def test_the_escaped_mass_is_what_the_new_basis_lost():
    V = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))[None]
    half = torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))[None]
    assert float(module.lost(V, half @ V @ half)) == pytest.approx(3)  # 4 became 1
    turn = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]], dtype=torch.float64)
    assert float(module.lost(V, turn @ V @ turn.mT)) == pytest.approx(0, abs=1e-12)
    plain, escaping = (differences_of_options(escape) for escape in (False, True))
    assert (plain - escaping).norm() > 1e-6


def differences_of_options(escape):
    A, B, target = matrices(10)
    return path(lambda boosters: rite(boosters, escape=escape), [(A, B)], [target])[0]


def test_few_outputs_and_lost_directions_stay_finite_in_single_precision():
    """d < r, and a gradient of rank 1: pseudo-inverses and roots of singular matrices."""
    A, B, _ = (m.float() for m in matrices(11, 2, 7, 4))
    booster = LowRank(A, B)
    optimizer = rite([booster], lr=1e-3)
    x = torch.ones(1, 7)
    start, losses = (B @ A).clone(), []
    for _ in range(20):
        loss = 0.01 * ((booster(x) - 1) ** 2).mean()  # small enough not to be skipped
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step(), optimizer.zero_grad()
    moved = (booster.B @ booster.A).detach() - start
    assert moved.isfinite().all()
    assert losses[-1] < losses[0]
    assert float(moved.abs().max()) < 20 * 1e-3 * 20  # RMS(M) is about 1: no direction ran away


def test_rounding_in_a_singular_second_moment_makes_no_large_step():
    """A direction with 1e-4 of the gradient has an eigenvalue below rounding: eps alone lets it run away."""

    def largest(root):
        sizes = []
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
            gradient = torch.randn(50, 4, generator=generator) * torch.tensor([1, 1e-4, 1e-4, 1e-4])
            gradient = gradient @ basis.T
            V = (gradient.T @ gradient / 50)[None]
            sizes.append(float((gradient @ root(V)[0]).square().mean().sqrt()))
        return max(sizes)

    def without_floor(V):
        values, vectors = torch.linalg.eigh(V)
        return (vectors / (values.clamp_min(0).sqrt() + 1e-6)[..., None, :]) @ vectors.mT

    assert 0.5 < largest(lambda V: module.inverse_root(V, torch.zeros(1, 1, 1), 1e-6)) < 2
    assert largest(without_floor) > 10


def bench_of(method, **options):
    return Bench(tiny.tiny_llama(num_labels=2), ToyTask("classification"), method, batch_size=8, **options)


def test_rounds_learn_and_rewind():
    method = LoRARITE(rank=3, lr=4e-3, steps_per_round=5, escape=True)
    bench = bench_of(method, steps=20)
    bench.run(progress=False)
    curve = [r.losses for r in bench.history]
    update = bench.update("model.layers.0.mlp.up_proj")
    assert curve[-1][-1] < curve[0][0] - 0.01
    bench.rewind(2)
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    assert torch.equal(bench.update("model.layers.0.mlp.up_proj"), update)
    lora = bench_of(LoRA(rank=3, lr=4e-3, steps_per_round=5), steps=20)
    assert lora.step().losses != curve[0]


def test_its_state_is_about_adams():
    records = [bench_of(m(rank=2, steps_per_round=2), steps=2).step() for m in (LoRA, LoRARITE)]
    assert records[1].optimizer_bytes < 1.1 * records[0].optimizer_bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_grad_norm": 1.0}, "leave max_grad_norm at None"),
        ({"clip": 0}, "clip must be a number above 0 or none; got 0"),
        ({"skip": -1.0}, "skip must be a number above 0 or none; got -1"),
        ({"eps": 0.0}, "eps must be a number above 0"),
        ({"escape": 1}, "escape must be true or false; got 1"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LoRARITE(**options)
