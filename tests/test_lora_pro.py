"""LoRA-Pro: the nearest step to full fine-tuning's that two thin factors can take."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods import LoRA, LoRAPro
from xgblora_lab.methods.family.lora_pro import Gram, ProAdam, adjusted, equivalent_gradient, sylvester

S = 1.7  # a scale that is not 1
D, K, R = 9, 7, 3


def matrices(seed: int = 0, d: int = D, k: int = K, r: int = R):
    """Random A (r, k), B (d, r), G (d, k) in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((r, k), (d, r), (d, k))
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def raw(A, B, G, s=S):
    """LoRA's own gradients."""
    return s * B.T @ G, s * G @ A.T


def riemannian(A, B, gA, gB, s):
    """Preconditioned gradients without the removal of the overlap."""
    return torch.linalg.solve(B.T @ B, gA) / s**2, torch.linalg.solve(A @ A.T, gB.T).T / s**2


def projector(M):
    """The dense projector on M's columns."""
    return M @ torch.linalg.pinv(M)


def test_the_gradients_that_autograd_gives_are_enough():
    A, B, _ = matrices(1)
    layer = nn.Linear(K, D, bias=False, dtype=torch.float64)
    full = nn.Linear(K, D, bias=False, dtype=torch.float64)
    full.weight.data = layer.weight.data + S * B @ A
    booster = LowRank(A, B, S)
    booster.attach(layer)
    x = torch.randn(20, K, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for model in (layer, full):
        model(x).tanh().square().sum().backward()
    G, gA, gB = full.weight.grad, booster.A.grad, booster.B.grad
    torch.testing.assert_close(gA, S * B.T @ G)
    torch.testing.assert_close(gB, S * G @ A.T)
    one_d, one_k = torch.eye(D, dtype=torch.float64), torch.eye(K, dtype=torch.float64)
    wanted = G - (one_d - projector(B)) @ G @ (one_k - projector(A.T))
    found = equivalent_gradient(A, B, *adjusted(A, B, gA, gB, S), S).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert float((G * found).sum()) == pytest.approx(float(found.square().sum()))  # descent to first order
    for other in ((gA, gB), riemannian(A, B, gA, gB, S)):
        assert (equivalent_gradient(A, B, *other, S) - wanted).norm() > 0.1 * wanted.norm()


def check_minimiser(adjust):
    """No small change of both steps brings the equivalent gradient nearer to G."""
    A, B, G = matrices(3)
    hA, hB = adjust(A, B, *raw(A, B, G), S)
    best = (equivalent_gradient(A, B, hA, hB, S) - G).norm()
    generator = torch.Generator().manual_seed(4)
    for i in range(200):
        size = 10.0 ** (-(i % 5))
        dA, dB = (size * torch.randn(h.shape, generator=generator, dtype=h.dtype) for h in (hA, hB))
        assert (equivalent_gradient(A, B, hA + dA, hB + dB, S) - G).norm() >= best * (1 - 1e-12)


def test_two_hundred_perturbations_find_nothing_nearer():
    check_minimiser(adjusted)
    for other in (riemannian, lambda A, B, gA, gB, s: (gA, gB)):
        with pytest.raises(AssertionError):
            check_minimiser(other)


def test_the_free_matrix_changes_nothing_in_W():
    A, B, G = matrices(5)
    hA, hB = adjusted(A, B, *raw(A, B, G), S, closest=False)
    effect = equivalent_gradient(A, B, hA, hB, S)
    for seed in range(3):
        X = torch.randn(R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        same = equivalent_gradient(A, B, hA + X @ A, hB - B @ X, S)
        torch.testing.assert_close(same, effect, rtol=0, atol=1e-12)
        assert (equivalent_gradient(A, B, hA + X @ A, hB + B @ X, S) - effect).norm() > 1  # the wrong sign
    closest = adjusted(A, B, *raw(A, B, G), S)
    torch.testing.assert_close(equivalent_gradient(A, B, *closest, S), effect, rtol=0, atol=1e-12)


def test_sylvester_is_solved():
    A, B, _ = matrices(6)
    C = torch.randn(R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    left, right = B.T @ B, A @ A.T
    X = sylvester(Gram(left), Gram(right), C)
    assert (left @ X + X @ right - C).norm() < 1e-8
    assert (right @ X + X @ left - C).norm() > 1e-2  # the two sides are not exchangeable


def check_nearest_to_lora(closest: bool):
    """Among the steps of one effect, none is nearer to LoRA's own gradients."""
    A, B, G = matrices(8)
    gA, gB = raw(A, B, G)
    hA, hB = adjusted(A, B, gA, gB, S, closest=closest)
    best = (hA - gA).square().sum() + (hB - gB).square().sum()
    generator = torch.Generator().manual_seed(9)
    for i in range(50):
        X = 10.0 ** (-(i % 4)) * torch.randn(R, R, generator=generator, dtype=torch.float64)
        assert (hA + X @ A - gA).square().sum() + (hB - B @ X - gB).square().sum() >= best * (1 - 1e-12)


def test_the_chosen_steps_are_the_nearest_to_loras_own():
    check_nearest_to_lora(True)
    with pytest.raises(AssertionError):
        check_nearest_to_lora(False)


def test_the_effect_does_not_depend_on_how_the_product_is_written():
    A, B, G = matrices(10)
    T = torch.randn(R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    other_A, other_B = torch.linalg.solve(T, A), B @ T

    def effects(adjust):
        pairs = ((A, B), (other_A, other_B))
        return [equivalent_gradient(a, b, *adjust(a, b, *raw(a, b, G), S), S) for a, b in pairs]

    one, two = effects(adjusted)
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    one, two = effects(lambda A, B, gA, gB, s: (gA, gB))
    assert (one - two).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_the_ridge_is_relative(size):
    """A small B is damped no more than a large one; an absolute ridge would rule the step there."""
    A, B, G = (m.float() for m in matrices(12))
    wanted = equivalent_gradient(A, B, *adjusted(A, B, *raw(A, B, G), S), S)
    gA, gB = raw(A, B * size, G)
    found = equivalent_gradient(A, B * size, *adjusted(A, B * size, gA, gB, S), S)
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    K_B, absolute = size**2 * B.T @ B, 1e-8 * torch.eye(R)
    damped = torch.linalg.solve(K_B + absolute, K_B)  # 1 where the ridge does nothing
    assert (float((damped - torch.eye(R)).norm()) > 0.1) == (size < 1)


def trained(optimizer_of, boosters, targets, steps, lr):
    """Boosters after `steps` on ½‖W + sBA − target‖² each, W = 0."""
    optimizer = optimizer_of(boosters)
    optimizer.param_groups[0]["lr"] = lr
    for _ in range(steps):
        loss = sum(
            0.5 * (b.scale * b.B @ b.A - t).square().sum() for b, t in zip(boosters, targets, strict=True)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return boosters


def pro(boosters, mode="full"):
    return ProAdam(boosters, 1e-3, (0.9, 0.999), 1e-8, mode)


def plain(boosters):
    return torch.optim.Adam([p for b in boosters for p in (b.A, b.B)])


def test_square_full_rank_pairs_follow_adam_on_the_whole_matrix():
    A, B, target = matrices(13, 4, 4, 4)
    lr, steps = 1e-6, 5
    W = nn.Parameter(S * B @ A)
    adam = torch.optim.Adam([W], lr=lr)
    for _ in range(steps):
        (0.5 * (W - target).square().sum()).backward()
        adam.step(), adam.zero_grad()
    wanted = (W.detach() - S * B @ A) / lr

    def move(optimizer_of):
        (booster,) = trained(optimizer_of, [LowRank(A.clone(), B.clone(), S)], [target], steps, lr)
        return ((S * booster.B @ booster.A).detach() - S * B @ A) / lr

    assert (move(pro) - wanted).norm() < 1e-4 * wanted.norm()
    for other in (plain, lambda boosters: pro(boosters, "efficient")):
        assert (move(other) - wanted).norm() > 0.1 * wanted.norm()


def test_the_first_step_moves_B_alone_and_its_size_is_the_learning_rates():
    lr = 1e-4
    A, _, target = matrices(14)
    P_A = projector(A.T)

    def first(optimizer_of, s):
        start = LowRank(A.clone(), torch.zeros(D, R, dtype=torch.float64), s)
        (booster,) = trained(optimizer_of, [start], [target], 1, lr)
        return booster, (s * booster.B @ booster.A).detach()

    for s in (0.5, 2.0):
        booster, update = first(pro, s)
        assert torch.equal(booster.A, A)
        G = -target @ P_A  # the part of the gradient within A's rows
        U = G / (G.abs() + 1e-8)
        torch.testing.assert_close(update, -lr * U @ P_A, rtol=1e-6, atol=1e-12)
    ratio = first(plain, 2.0)[1].norm() / first(plain, 0.5)[1].norm()
    assert ratio == pytest.approx(4, rel=1e-3)  # plain LoRA's step grows with the scale


def test_the_second_step_moves_A_whatever_the_learning_rate():
    """B is of the learning rate's size then, and the step divides by it."""
    A, _, target = matrices(15)
    moved = []
    for lr in (1e-3, 1e-6):
        start = LowRank(A.clone(), torch.zeros(D, R, dtype=torch.float64))
        (booster,) = trained(pro, [start], [target], 2, lr)
        assert booster.B.isfinite().all()
        moved.append(float((booster.A.detach() - A).norm() / A.norm()))
    assert min(moved) > 0.05
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


@pytest.mark.parametrize("mode", ["full", "efficient"])
def test_a_batch_of_pairs_is_each_pair_alone(mode):
    shapes = [(9, 7, 3), (5, 7, 3), (9, 7, 3)]
    start = [matrices(seed, *shape) for seed, shape in enumerate(shapes)]
    targets = [G for _, _, G in start]

    def fresh(i, scale=S):
        return LowRank(start[i][0].clone(), 0.1 * start[i][1], scale)

    together = trained(lambda b: pro(b, mode), [fresh(i) for i in range(3)], targets, 4, 0.01)
    for i, booster in enumerate(together):
        (alone,) = trained(lambda b: pro(b, mode), [fresh(i)], [targets[i]], 4, 0.01)
        torch.testing.assert_close(booster.A, alone.A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(booster.B, alone.B, rtol=1e-9, atol=1e-12)
    assert (together[0].A - together[2].A).norm() > 0.1
    assert (together[0].A - start[0][0]).norm() > 1e-3


def test_full_mode_remembers_whole_matrices_and_efficient_mode_factors():
    for mode, count in (("full", lambda d, k: 2 * d * k), ("efficient", lambda d, k: 4 * (d + k))):
        method = LoRAPro(rank=2, mode=mode, steps_per_round=4)
        bench = Bench(tiny.tiny_gpt2(), ToyTask(), method, steps=4, batch_size=8)
        record = bench.step()
        shapes = list(bench.ensemble.shapes.values())
        moments = 4 * sum(count(d, k) for d, k in shapes)
        assert moments <= record.optimizer_bytes <= moments + 4 * len(shapes)


@pytest.mark.parametrize("mode", ["full", "efficient"])
def test_rounds_learn_and_rewind(mode):
    method = LoRAPro(rank=3, lr=2e-3, mode=mode, steps_per_round=5)
    bench = Bench(tiny.tiny_gpt2(), ToyTask(), method, steps=20, batch_size=8)
    bench.run(progress=False)
    curve, update = [r.losses for r in bench.history], bench.update("transformer.h.0.mlp.c_fc")
    assert curve[-1][-1] < curve[0][0] - 0.01
    bench.rewind(2)
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    assert torch.equal(bench.update("transformer.h.0.mlp.c_fc"), update)
    lora = Bench(
        tiny.tiny_gpt2(), ToyTask(), LoRA(rank=3, lr=2e-3, steps_per_round=5), steps=20, batch_size=8
    )
    assert lora.step().losses != curve[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "half"}, "mode must be one of full, efficient; got 'half'"),
        ({"eps": 0.0}, "eps must be a number above 0"),
        ({"weight_decay": 0.1}, "leave weight_decay at 0"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LoRAPro(**options)
