"""LoRA-GA: the gradient it looks at, the start that it takes, and the offset that keeps the model."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
from test_adapters import PackedLinear, conv1d
from torch import nn
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench import Bench, Checkpoint, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.linear import dense_weight
from xgblora_lab.methods import LoRA, LoRAGA, PiSSA
from xgblora_lab.methods.family.gradient import mean_gradients


class Regression(ToyTask):
    """½‖y − target‖² of one linear map on one batch, the same at every step."""

    def __init__(self, k: int, d: int, rows: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(rows, k, generator=generator, dtype=torch.float64)
        self.y = torch.randn(rows, d, generator=generator, dtype=torch.float64)

    def batch(self, split, indices):
        return {"x": self.x, "y": self.y}

    def weight(self, batch):
        return 1

    def tokens(self, batch):
        return 1

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().sum() / 2

    def gradient(self, model):
        """∂loss/∂W as (d, k), in closed form for y = W x + b."""
        return (model(self.x) - self.y).detach().T @ self.x


class SGD(LoRAGA):
    def new_optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)


class NotTakenOut(SGD):
    """The essential line left out: the weight keeps what the pair starts with."""

    def take_out(self, offset):
        self.offset = dict(offset)


class SameDirections(SGD):
    """Both factors from the first r directions: half of what there is to have."""

    def split(self, G, seed):
        B, A = super().split(G, seed)
        U = torch.linalg.svd(G)[0][:, : self.rank]
        return U * B.norm(dim=0), A


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("kind", ["causal-lm", "classification"])
def test_the_mean_gradient_is_autograds(make, kind):
    model = (make(num_labels=2) if kind == "classification" else make()).double()
    whole, task, seen = copy.deepcopy(model), ToyTask(kind), {}

    class Look(Hook):
        def on_round_start(self, bench, index):
            seen.update(mean_gradients(bench, bench.modules, 2))

    options = {"batch_size": 6, "accumulation": 2, "steps": 1, "hooks": [Look()]}
    bench = Bench(model, task, LoRAGA(rank=4, passes=1), **options)
    record = bench.step()
    assert record.extra_passes == 3  # one of the method's, two here
    gradients = []
    for step in range(2):
        whole.zero_grad()
        task.loss(whole, task.batch("train", bench.trainer.batch_indices(step))).backward()
        weights = {name: whole.get_submodule(name) for name in bench.modules}
        gradients.append(
            {n: m.weight.grad.T if make is tiny.tiny_gpt2 else m.weight.grad for n, m in weights.items()}
        )
        gradients[-1] = {n: g.clone() for n, g in gradients[-1].items()}
    for name, G in seen.items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(G, mean, atol=1e-6 * float(mean.abs().max()), rtol=0)
        assert (gradients[0][name] - mean).norm() > 0.01 * mean.norm()  # one batch would not do


def first_step(method, task, model):
    """(the start's factors, the first step's update over its length, the gradient before it)."""
    G = task.gradient(model)
    bench = Bench(model, task, method, steps=1, probe_size=0)
    seen = {}

    class Look(Hook):
        def on_round_start(self, bench, index):
            (booster,) = bench.method.boosters.values()
            seen["start"] = booster.B.detach().clone(), booster.A.detach().clone(), booster.scale

    with bench.hooked(Look()):
        bench.step()
    return seen["start"], bench.update("0") / method.lr, G


def cut(G, rank):
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vh[:rank]


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
@pytest.mark.parametrize("scaling", ["rslora", "lora"])
def test_the_first_sgd_step_is_full_fine_tunings_cut_to_twice_the_rank(make, scaling):
    def check(kind, lr=1e-9):
        torch.manual_seed(0)
        model = nn.Sequential(make(20, 12)).double()
        method = kind(rank=3, alpha=5, scaling=scaling, passes=1, lr=lr, schedule="constant", gamma=16)
        (_, _, scale), step, G = first_step(method, Regression(20, 12), model)
        expected = -(scale**2) * math.sqrt(12) / 16 * cut(G, 6)
        error = (step - expected).norm() / expected.norm()
        assert error < 1e-5, f"{float(error):.2g}"

    check(SGD)
    for without in (NotTakenOut, SameDirections):
        with pytest.raises(AssertionError):
            check(without)
    with pytest.raises(AssertionError):  # it is a statement about small steps
        check(SGD, lr=1e-2)


def test_the_start_lies_along_the_gradients_directions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12)).double()
    (B, A, _), _, G = first_step(SGD(rank=3, passes=1, lr=1e-9, gamma=16), Regression(20, 12), model)
    U, _, Vh = torch.linalg.svd(G)
    eye = torch.eye(3).double() * math.sqrt(12) / 16  # c²
    torch.testing.assert_close(A @ A.T, eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(B.T @ B, eye, atol=1e-6, rtol=0)
    assert (B.T @ U[:, :3]).abs().max() < 1e-6
    assert (A @ Vh[3:].T).abs().max() < 1e-6
    assert (B.T @ U[:, 3:6]).abs().max() > 0.1


def test_the_offset_is_as_small_as_gamma_says():
    bench = Bench(tiny.tiny_llama(), ToyTask(), LoRAGA(rank=4, alpha=8, gamma=32, passes=1), steps=1)
    bench.step()
    for name, (B, A) in bench.method.offset.items():
        wanted = 8 / (32 * math.sqrt(A.shape[1]))
        assert float((B @ A).square().mean().sqrt()) == pytest.approx(wanted, rel=1e-4), name


def test_pefts_lora_ga_takes_only_rank_r_of_the_gradient():
    """PEFT multiplies B by the singular values: a gradient as small as real ones leaves B near zero."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    task = Regression(20, 12)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12)).double()
    G = task.gradient(model) * 1e-4

    def backward(network):
        x = task.x.clone().requires_grad_()  # PEFT's hooks warn where no input needs a gradient
        (1e-4 * task.loss(network, {"x": x, "y": task.y})).backward()

    config = LoraConfig(
        r=3,
        lora_alpha=3,
        use_rslora=True,
        target_modules=["0"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16),
    )
    theirs = copy.deepcopy(model)
    preprocess_loraga(theirs, config, lambda: backward(theirs))
    theirs = get_peft_model(theirs, config).double()
    layer = theirs.base_model.model.get_submodule("0")
    start = layer.get_delta_weight("default").detach().clone()
    backward(theirs)
    with torch.no_grad():
        for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            factor -= 1e-6 * factor.grad
    step = layer.get_delta_weight("default").detach() - start

    def cosine(left, right):
        return float((left * right).sum() / left.norm() / right.norm())

    _, ours, whole = first_step(
        SGD(rank=3, passes=1, lr=1e-9, gamma=16), task, nn.Sequential(copy.deepcopy(model[0]))
    )
    assert cosine(step, -cut(G, 3)) > 0.9999
    assert cosine(step, -cut(G, 6)) < 0.99
    assert cosine(ours, -cut(whole, 6)) > 0.9999
    assert cosine(ours, -cut(whole, 3)) < 0.99


METHODS = [LoRAGA(rank=4, passes=2, lr=3e-3, steps_per_round=3), PiSSA(rank=4, lr=3e-3, steps_per_round=3)]


def ids(method):
    return method.name


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_the_offset_comes_and_goes_with_the_rounds(method, make, tmp_path):
    model = make()
    base, task = snapshot(model), ToyTask()
    bench = Bench(model, task, method, steps=9, batch_size=8)
    staged = [torch.tensor(bench.predict())]
    with bench.hooked(Checkpoint(tmp_path / "run")):
        staged += [torch.tensor(bench.predict()) for _ in bench.rounds()]
    live, curve = snapshot(model), [r.losses for r in bench.history]
    assert not equal(live, base)  # the offset is in the weights
    for t in (0, 1, 3):
        with bench.at(t):
            assert equal(snapshot(model), base if t == 0 else live)
            assert torch.equal(torch.tensor(bench.predict()), staged[t])
    assert equal(snapshot(model), live)
    name = next(iter(bench.modules))
    B, A = bench.method.boosters[name].factors()
    computes = dense_weight(bench.modules[name]) + B @ A - bench.weights.base(name)
    torch.testing.assert_close(bench.update(name), computes, atol=1e-6, rtol=0)
    assert (B @ A - bench.update(name)).norm() > 0.1 * bench.update(name).norm()  # the offset counts
    assert bench.factors(name)[0].shape[1] == 8  # rank 2r
    for rounds in (1, 0):
        bench.rewind(rounds)
        assert torch.equal(torch.tensor(bench.predict()), staged[rounds])
        assert equal(snapshot(model), base if rounds == 0 else live)
        bench.run(progress=False)
        assert [r.losses for r in bench.history] == curve
    again = resume(tmp_path / "run", make(), task)
    assert torch.equal(torch.tensor(again.predict()), staged[3])
    again.rewind(1)
    again.run(progress=False)
    assert [r.losses for r in again.history] == curve
    again.close(), bench.close()
    assert equal(snapshot(model), base)
    assert equal(snapshot(again.model), base)


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_what_is_taken_away_gives_the_live_logits(method, make, tmp_path):
    from peft import PeftModel

    bench = Bench(make(), ToyTask(), method, steps=6, batch_size=8)
    bench.run(progress=False)
    live = torch.tensor(bench.predict())
    assert bench.export_peft(tmp_path / "peft")["rank"] == 8
    bench.export_merged(tmp_path / "merged")
    for model in (
        PeftModel.from_pretrained(make(), tmp_path / "peft"),
        type(bench.model).from_pretrained(tmp_path / "merged"),
    ):
        torch.testing.assert_close(torch.tensor(bench.task.predict(model.eval())), live, atol=1e-5, rtol=0)
    assert torch.equal(torch.tensor(bench.predict()), live)
    assert (torch.tensor(bench.task.predict(make())) - live).abs().max() > 1e-2


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_half_precision_base_is_rounded_once_and_comes_back(method):
    model = tiny.tiny_llama().bfloat16()
    base = snapshot(model)
    bench = Bench(model, ToyTask(), method, steps=6, batch_size=8)
    bench.step()
    for name, (B, A) in bench.method.offset.items():
        wanted = (base[f"{name}.weight"].float() + B @ A).bfloat16()
        assert torch.equal(bench.modules[name].weight, wanted)
        assert not torch.equal(wanted, base[f"{name}.weight"])
    live = snapshot(model)
    with bench.merged():
        assert not equal(snapshot(model), live)
    assert equal(snapshot(model), live)
    assert {p.dtype for p in bench.method.trainable().values()} == {torch.float32}
    bench.close()
    assert equal(snapshot(model), base)


def test_a_packed_weight_keeps_the_offset_beside_it():
    torch.manual_seed(0)
    model = nn.Sequential(PackedLinear(20, 12))
    task = Regression(20, 12)
    task.x, task.y = task.x.float(), task.y.float()
    base = snapshot(model)
    before = model(task.x)
    bench = Bench(model, task, LoRAGA(rank=3, passes=1, lr=1e-3), steps=4, probe_size=0)
    bench.step()
    (B, A) = bench.ensemble.factors("0")
    torch.testing.assert_close(model(task.x), before + task.x @ (B @ A).T, atol=1e-4, rtol=1e-4)
    assert (model(task.x) - before).abs().max() > 1e-2
    bench.rewind(0)
    assert torch.equal(model(task.x), before)
    bench.step()
    bench.close()
    assert equal(snapshot(model), base)
    assert torch.equal(model(task.x), before)


def test_bad_options_get_one_clear_sentence():
    with pytest.raises(ValueError, match="gamma must be a number above 0; got 0"):
        LoRAGA(gamma=0)
    with pytest.raises(ValueError, match="passes must be a whole number from 1; got 0"):
        LoRAGA(passes=0)
    with pytest.raises(ValueError, match=r"passes must be a whole number from 1; got 2\.0"):
        LoRAGA(passes=2.0)
    with pytest.raises(ValueError, match="rank of at most 8"):
        Bench(tiny.tiny_llama(), ToyTask(), LoRAGA(rank=9))


def test_gradients_outside_a_round_are_refused():
    bench = Bench(tiny.tiny_llama(), ToyTask(), LoRA(rank=2, steps_per_round=2), steps=4, batch_size=4)
    for _ in range(2):  # before the first round and between two
        with pytest.raises(RuntimeError, match="inside a round only"):
            mean_gradients(bench, bench.modules, 1)
        assert bench.step().extra_passes == 0

    class Look(Hook):
        def on_round_start(self, bench, index):
            self.G = mean_gradients(bench, bench.modules, 1)

    look = Look()
    bench = Bench(tiny.tiny_llama(), ToyTask(), LoRA(rank=2), steps=4, batch_size=4, hooks=[look])
    assert bench.step().extra_passes == 1
    assert all(G.any() for G in look.G.values())


def test_a_gradient_that_is_not_finite_is_refused_and_the_round_taken_back():
    class Broken(ToyTask):
        def loss(self, model, batch):
            return super().loss(model, batch) * math.nan

    model = tiny.tiny_llama()
    base = snapshot(model)
    bench = Bench(model, Broken(), LoRAGA(rank=4, passes=1), steps=4)
    with pytest.raises(ValueError, match="not finite"):
        bench.step()
    assert equal(snapshot(model), base)
    assert len(bench.history) == 0
