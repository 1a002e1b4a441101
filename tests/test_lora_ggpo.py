"""LoRA-GGPO and LoRA-MGPO against dense computations."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.linear import weight_shape
from xgblora_lab.methods import LoRA, LoRAGGPO, LoRAMGPO
from xgblora_lab.methods.family.lora_ggpo import LARGEST, Shaken, gaussian_rows, noise_level
from xgblora_lab.methods.family.row_norms import row_norms

COMMON = {"rank": 3, "alpha": 6, "lr": 0.01, "steps_per_round": 3}


def bench_of(method, model=None, **options):
    return Bench(model or tiny.tiny_gpt2().double(), ToyTask(), method, steps=9, batch_size=8, **options)


def losses(method):
    bench = bench_of(method)
    bench.run(progress=False)
    return [loss for record in bench.history for loss in record.losses]


def dense(booster: Shaken) -> torch.Tensor:
    """ε (d, k), read off by sending the identity through the side path."""
    assert booster.perturbation is not None
    return booster.perturbation(torch.eye(booster.A.shape[1], dtype=booster.A.dtype)).T


@pytest.mark.parametrize("method", [LoRAMGPO(**COMMON, rho=0.0), LoRAGGPO(**COMMON, sigma=0.0)])
def test_without_a_perturbation_it_is_lora(method):
    assert losses(method) == pytest.approx(losses(LoRA(**COMMON)), abs=1e-12)


@pytest.mark.parametrize("method", [LoRAMGPO(**COMMON, rho=0.5), LoRAGGPO(**COMMON, sigma=0.5)])
def test_with_one_it_is_not_and_the_first_step_is_not_perturbed(method):
    shaken, plain = losses(method), losses(LoRA(**COMMON))
    assert shaken[0] == plain[0]
    assert abs(shaken[2] - plain[2]) > 1e-6


@pytest.mark.parametrize("method", [LoRAMGPO(**COMMON, rho=0.5), LoRAGGPO(**COMMON, sigma=0.5)])
def test_the_frozen_weights_stay_bit_identical_and_evaluation_is_not_shaken(method):
    model = tiny.tiny_gpt2().double()
    base = snapshot(model)
    bench = bench_of(method, model)

    class Look(Hook):
        def on_step(self, bench, step, loss):
            assert all(b.perturbation is None for b in bench.method.boosters.values())
            assert equal({n: p for n, p in snapshot(model).items() if n in base}, base)

    with bench.hooked(Look()):
        bench.run(progress=False)
    assert torch.equal(torch.tensor(bench.predict()), torch.tensor(bench.predict()))


def perturbations(method, steps=4):
    """(booster, ε, v, ḡ before the step) of one module at every step from the second on."""
    seen = []

    class Look(type(method)):
        def before_backward(self, bench):
            super().before_backward(bench)
            name = next(iter(self.boosters))
            booster = self.boosters[name]
            if booster.perturbation is not None:
                moments = self.optimizer.state
                m_A, m_B = moments[booster.A]["exp_avg"], moments[booster.B]["exp_avg"]
                v = booster.scale * (m_B @ booster.A + booster.B @ m_A).detach()
                seen.append((dense(booster).detach().clone(), v, float(self.memory[name])))

    bench = bench_of(Look(**{**method.options(), "steps_per_round": steps}))
    bench.step()
    return seen


def test_mgpos_perturbation_has_the_norm_and_the_sign_it_should():
    rho = 0.3
    seen = perturbations(LoRAMGPO(**COMMON, rho=rho))
    assert len(seen) == 3
    for epsilon, v, average in seen:
        expected = rho * min(1 / average, LARGEST)
        assert float(epsilon.norm()) == pytest.approx(expected, rel=1e-5)
        assert float((epsilon * v).sum()) < 0
        assert float((epsilon * v).sum()) == pytest.approx(-expected * float(v.norm()), rel=1e-6)


def test_doubled_momenta_leave_mgpos_perturbation_as_it_is():
    bench = bench_of(LoRAMGPO(**COMMON, rho=0.3))
    bench.step()
    method = bench.method
    name, booster = next(iter(method.boosters.items()))
    method.before_backward(bench)
    once = dense(booster)
    for parameter in (booster.A, booster.B):
        method.optimizer.state[parameter]["exp_avg"].mul_(2)
    method.before_backward(bench)
    torch.testing.assert_close(dense(booster), once)
    method.memory[name] = method.memory[name] * 2 + 100  # the average does change it
    method.before_backward(bench)
    assert (dense(booster) - once).norm() > 0.1 * once.norm()
    method.after_backward(bench)


@pytest.mark.parametrize("detach", [True, False])
def test_thin_and_dense_forms_agree_in_output_and_gradients(detach):
    """The dense form: the same booster on W + ε. The twin lets gradients into A and B through ε."""
    torch.manual_seed(0)
    module = nn.Linear(5, 4).double()
    A, B = torch.randn(2, 5).double(), torch.randn(4, 2).double()
    m_A, m_B = torch.randn(2, 5).double(), torch.randn(4, 2).double()
    thin = Shaken(A.clone(), B.clone(), 0.5)

    def side(x):
        a, b = (thin.A.detach(), thin.B.detach()) if detach else (thin.A, thin.B)
        left, right = torch.cat([m_B, b], 1), torch.cat([a, m_A], 0)
        return nn.functional.linear(nn.functional.linear(x, right), 0.1 * left)

    thin.perturbation = side
    epsilon = dense(thin).detach()
    x = torch.randn(7, 5).double().requires_grad_()
    thin.attach(module)
    module(x).square().sum().backward()
    mine = [g.clone() for g in (thin.A.grad, thin.B.grad, x.grad)]
    thin.detach()
    x.grad = None
    other = Shaken(A.clone(), B.clone(), 0.5)
    module.weight.data.add_(epsilon)
    other.attach(module)
    module(x).square().sum().backward()
    theirs = [other.A.grad, other.B.grad, x.grad]
    agree = [torch.allclose(a, b, atol=1e-9) for a, b in zip(mine, theirs, strict=True)]
    assert agree == ([True] * 3 if detach else [False, False, True])


def test_ggpos_noise_has_the_rows_standard_deviations():
    weight, gradient = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.0, 1.0])
    std = noise_level(weight, gradient, 4, 0.1, 0.01)
    draws = torch.stack([gaussian_rows(std, 4, 0, step, 0) for step in range(4000)])
    assert (draws.std((0, 2)) / std - 1).abs().max() < 0.03
    assert (draws.mean((0, 2)).abs() < 0.1 * std).all()
    # With the gradient left out a row's expected norm is σ|W_i|: an error of √k would show.
    alone = noise_level(weight, gradient, 4, 0.1, 0.0)
    torch.testing.assert_close(4 * alone.square(), (0.1 * weight).square())
    assert torch.equal(gaussian_rows(std, 4, 0, 3, 1), gaussian_rows(std, 4, 0, 3, 1))
    assert not torch.equal(gaussian_rows(std, 4, 0, 3, 1), gaussian_rows(std, 4, 0, 4, 1))


def test_row_norms_equal_the_dense_ones():
    bench = bench_of(LoRAGGPO(**COMMON))
    bench.step()
    for name, booster in bench.method.boosters.items():
        d, k = weight_shape(bench.modules[name])
        W = bench.weights.base(name) + bench.update(name)
        assert W.shape == (d, k)
        torch.testing.assert_close(row_norms(bench.modules[name], booster), W.norm(dim=1))
        without = bench.weights.base(name).norm(dim=1)
        assert (without - W.norm(dim=1)).abs().max() > 1e-6  # the pair counts


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (LoRAMGPO, {"rho": -1.0}, "rho must be a number from 0; got -1"),
        (LoRAMGPO, {"average": 1.0}, "average must be a number from 0 below 1; got 1"),
        (LoRAMGPO, {"average": -0.1}, "average must be a number from 0 below 1; got -0.1"),
        (LoRAGGPO, {"sigma": -1.0}, "sigma must be a number from 0; got -1"),
        (LoRAGGPO, {"gradient_weight": -1.0}, "gradient_weight must be a number from 0; got -1"),
    ],
)
def test_bad_options_are_refused(method, options, words):
    with pytest.raises(ValueError, match=words):
        method(**options)
