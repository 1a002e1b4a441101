"""SoRA's promises: the proximal step, equality with LoRA, exact pruning and a planted answer."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import LoRA, SoRA, make_method
from xgblora_lab.methods.family.sora import shrunk

GATES = torch.tensor([-0.35, -0.05, 0.05, 0.15, 0.35], dtype=torch.float64)


def bench_of(method, model=None, **options):
    options = {"steps": 12, "batch_size": 8, **options}
    return Bench(model if model is not None else tiny.tiny_llama(), ToyTask(), method, **options)


def gates(bench):
    return torch.cat([gate.detach().clone() for gate in bench.method.gates()])


@pytest.mark.parametrize(
    ("prox", "wanted"), [("exact", [-0.25, 0, 0, 0.05, 0.25]), ("released", [-0.25, 0, 0, 0, 0.25])]
)
def test_the_threshold_by_hand(prox, wanted):
    torch.testing.assert_close(shrunk(GATES, 0.1, prox), torch.tensor(wanted, dtype=torch.float64))
    assert torch.equal(shrunk(GATES, 0.0, prox), GATES)
    with pytest.raises(AssertionError):  # a hard threshold, which takes nothing off what survives
        torch.testing.assert_close(
            nn.functional.hardshrink(GATES, 0.1), torch.tensor(wanted, dtype=torch.float64)
        )


def test_the_exact_step_is_the_minimiser_of_its_proximal_problem():
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    for gate in GATES:
        objective = (grid - gate).square() / 2 + 0.1 * grid.abs()
        assert float(shrunk(gate, 0.1)) == pytest.approx(float(grid[objective.argmin()]), abs=1e-5)
    objective = (grid - 0.15).square() / 2 + 0.1 * grid.abs()
    assert abs(float(shrunk(GATES[3], 0.1, "released") - grid[objective.argmin()])) > 0.04


@pytest.mark.parametrize("prox", ["exact", "released"])
def test_gates_that_no_gradient_moves_close_by_the_thresholds_alone(prox):
    class Still(SoRA):
        """All that a step does is the proximal step; the learning rate is the schedule's."""

        def after_backward(self, bench):
            for parameter in self.trainable().values():
                parameter.grad.zero_()

    def run(xi):
        method = Still(rank=6, lr=0.1, xi=xi, prox=prox, weight_decay=0.0, schedule="linear")
        bench = bench_of(method, tiny.tiny_llama().double(), steps=8)
        before = gates(bench)
        bench.run(progress=False)
        return before, gates(bench), bench

    before, after, bench = run(0.5)
    if prox == "exact":  # max(|g| - the sum of the thresholds, 0)
        taken = 0.5 * sum(rate for r in bench.history for rate in r.learning_rates)
        wanted = before.sign() * (before.abs() - taken).clamp_min(0)
    else:  # the threshold does not follow the schedule
        wanted = before
        for _ in range(8):
            wanted = shrunk(wanted, 0.5 * 0.1, "released")
    torch.testing.assert_close(after, wanted)
    assert 0 < (after == 0).sum() < len(after)
    assert all(b.B.abs().max() == 0 for b in bench.method.boosters.values())
    before, after, _ = run(0.0)
    assert torch.equal(before, after)


def test_at_a_rate_of_zero_the_exact_step_takes_nothing_and_the_released_one_goes_on():
    def closed(prox):
        # A warm-up that never ends: the rate of every step is all but 0.
        method = SoRA(rank=6, lr=0.1, xi=0.5, prox=prox, warmup=10**9, weight_decay=0.0)
        bench = bench_of(method, steps=4)
        before = gates(bench)
        bench.run(progress=False)
        return float((before - gates(bench)).abs().max())

    assert closed("exact") < 1e-9
    assert closed("released") == pytest.approx(0.2, abs=0.06)  # four steps of 0.05 and the last jump


class Open(SoRA):
    """Gates of 1 that are held there: what is left is LoRA."""

    def first_gates(self, generator):
        return torch.ones(self.rank)

    def new_optimizer(self, parameters):
        optimizer = super().new_optimizer(parameters)
        optimizer.param_groups[1]["lr_ratio"] = 0.0
        return optimizer


def test_open_gates_without_a_threshold_are_lora_bit_for_bit():
    common = {"rank": 4, "alpha": 8, "lr": 0.01, "weight_decay": 0.1}

    def losses(method):
        bench = bench_of(method)
        return [loss for r in bench.run(progress=False) for loss in r.losses]

    lora = losses(LoRA(**common))
    assert losses(Open(**common, xi=0.0)) == lora
    assert losses(SoRA(**common, xi=0.0)) != lora  # random gates
    assert losses(Open(**common, xi=0.5, prox="released")) != lora  # closing gates
    assert lora[0] > lora[-1]


def test_weight_decay_leaves_the_gates_alone():
    class Silent(SoRA):
        def after_backward(self, bench):
            for parameter in self.trainable().values():
                parameter.grad.zero_()

    class Decayed(Silent):
        def new_optimizer(self, parameters):
            optimizer = super().new_optimizer(parameters)
            optimizer.param_groups[1]["weight_decay"] = self.weight_decay
            return optimizer

    def moved(method):
        bench = bench_of(method(rank=4, lr=0.1, xi=0.0, weight_decay=0.5), steps=4)
        before, A = gates(bench), bench.method.boosters[next(iter(bench.modules))].A
        norm = A.detach().norm()
        bench.run(progress=False)
        assert A.norm() < norm
        return not torch.equal(before, gates(bench))

    assert not moved(Silent)
    assert moved(Decayed)


def test_the_penalty_adds_its_gradient_and_not_its_loss():
    seen = {}

    class Look(SoRA):
        def after_backward(self, bench):
            before = [g.grad.clone() for g in self.gates()]
            super().after_backward(bench)
            seen[self.sparse_lambda] = [
                (g.grad - b, g.detach()) for g, b in zip(self.gates(), before, strict=True)
            ]

    benches = [bench_of(Look(rank=4, sparse_lambda=w), steps=1) for w in (0.0, 10.0)]
    first, second = (bench.step() for bench in benches)
    assert first.losses == second.losses
    total = sum(len(gate) for _, gate in seen[10.0])
    for added, gate in seen[10.0]:
        torch.testing.assert_close(added, 10 / total * gate.sign())
    assert all(not added.any() for added, _ in seen[0.0])


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_the_pruned_model_is_the_gated_one_with_fewer_parameters(make):
    bench = bench_of(SoRA(rank=8, lr=0.05, xi=1.0), make().double())
    bench.run(progress=False)
    live = torch.tensor(bench.predict())
    kept = {name: int((b.gate != 0).sum()) for name, b in bench.method.boosters.items()}
    assert 0 < sum(kept.values()) < 8 * len(kept)
    boosters = bench.ensemble[-1]
    assert sum(B.numel() + A.numel() for B, A in boosters.values()) == sum(
        kept[name] * sum(bench.ensemble.shapes[name]) for name in kept
    )
    for name, booster in bench.method.boosters.items():
        B, A, gate = booster.B.detach(), booster.A.detach(), booster.gate.detach()
        torch.testing.assert_close(bench.update(name), booster.scale * B @ gate.diag() @ A)
        if kept[name]:  # without the gates it is another update
            assert (bench.update(name) - booster.scale * B @ A).norm() > 1e-3 * bench.update(name).norm()
    with bench.merged():
        merged = torch.tensor(bench.predict())
    assert (merged - live).abs().max() < 1e-6


def test_sparsity_does_not_fall_with_the_threshold():
    def closed(xi):
        bench = bench_of(SoRA(rank=8, lr=0.05, xi=xi))
        bench.run(progress=False)
        return float((gates(bench) == 0).float().mean())

    shares = [closed(xi) for xi in (0.0, 0.3, 1.0, 3.0)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0 < shares[1] < shares[-1]


class Regression:
    """Rows x and targets W x of one linear map; the base is 0, so the update to find is W."""

    kind, metric, greater_is_better, name = "other", "loss", False, "regression"

    def __init__(self, W, rows=256):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(rows, W.shape[1], generator=generator)
        self.y = self.x @ W.T

    def size(self, split="train"):
        return len(self.x) if split == "train" else 0

    def batch(self, split, indices):
        return {"x": self.x[list(indices)], "y": self.y[list(indices)]}

    def weight(self, batch):
        return len(batch["x"])

    tokens = weight

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().mean()


def test_a_planted_update_of_rank_two_keeps_two_gates():
    torch.manual_seed(0)
    d, k = 12, 16
    U, V = torch.linalg.qr(torch.randn(d, 2))[0], torch.linalg.qr(torch.randn(k, 2))[0]
    task = Regression(4 * U @ V.T)

    def run(xi):
        model = nn.Sequential(nn.Linear(k, d, bias=False))
        model[0].weight.data.zero_()
        method = SoRA(rank=8, lr=0.02, xi=xi, schedule="constant", weight_decay=0.5)
        bench = Bench(model, task, method, steps=600, batch_size=64, targets=["0"], probe_size=0)
        bench.run(progress=False)
        return int((gates(bench) != 0).sum()), bench.history[-1].losses[-1]

    start = float(task.y.square().mean())
    count, loss = run(0.5)
    assert abs(count - 2) <= 1
    assert loss < start / 10
    assert run(0.0)[0] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prox": "soft"}, "prox must be one of exact, released; got 'soft'"),
        ({"xi": -1}, "xi must be a number from 0; got -1"),
        ({"sparse_lambda": -1}, "sparse_lambda must be a number from 0; got -1"),
        ({"rank": 0}, "rank must be a whole number from 1; got 0"),
        ({"rank": 8.0}, "rank must be a whole number from 1; got 8.0"),
    ],
)
def test_bad_options_get_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        SoRA(**options)
    assert make_method("sora:r=4:xi=0.5") == SoRA(rank=4, xi=0.5)
