"""AdaLoRA against PEFT's: the same start gives the same losses, masks and updates."""

from __future__ import annotations

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.methods import AdaLoRA, make_method
from xgblora_lab.methods.family.adalora import orthogonality

STEPS = 20
OPTIONS = {
    "rank": 6,
    "target_rank": 2,
    "lr": 0.02,
    "tinit": 3,
    "tfinal": 5,
    "deltaT": 2,
    "steps_per_round": 4,
}


def bench_of(method, model=None, **options):
    options = {"steps": STEPS, "batch_size": 8, **options}
    return Bench(model if model is not None else tiny.tiny_llama().double(), ToyTask(), method, **options)


def pefts(make, bench, alpha):
    """Losses (without the penalty), masks after every step, and the tuned PEFT model."""
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=6,
        target_r=2,
        tinit=3,
        tfinal=5,
        deltaT=2,
        lora_alpha=alpha,
        total_step=STEPS,
        target_modules=list(bench.modules),
        fan_in_fan_out=make is tiny.tiny_gpt2,
    )
    theirs = get_peft_model(make().double(), config).double()
    for name, booster in bench.method.boosters.items():
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].data.copy_(booster.A.detach())
        layer.lora_B["default"].data.copy_(booster.B.detach())
    # Not all that requires a gradient: PEFT 0.21 leaves it on for `ranknum`, a constant, which would drift.
    trained = [p for n, p in theirs.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0)
    task, losses, masks = bench.task, [], []
    factors = [
        getattr(theirs.base_model.model.get_submodule(n), f"lora_{f}")["default"]
        for n in bench.modules
        for f in "AB"
    ]
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(theirs, task.batch("train", bench.trainer.batch_indices(step)))
        # PEFT adds its penalty to `outputs.loss` only, which this task does not ask for: add the same here.
        grams = [P @ P.T if P.shape[0] == 6 else P.T @ P for P in factors]
        penalty = sum(torch.norm(G - torch.eye(6).double(), p="fro") for G in grams) / len(grams)
        (loss + 0.5 * penalty).backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        losses.append(loss.item())
        masks.append(
            {n: theirs.base_model.model.get_submodule(n).lora_E["default"][:, 0] == 0 for n in bench.modules}
        )
    return losses, masks, theirs


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_it_is_pefts_adalora(make):
    alpha = 12.0
    # PEFT divides by rank + 1e-5; so does this scale.
    ours = bench_of(AdaLoRA(**OPTIONS, alpha=alpha * 6 / (6 + 1e-5), schedule="constant"), make().double())
    losses, masks, theirs = pefts(make, ours, alpha)
    mine, seen = [], []

    class Look(Hook):
        def on_step(self, bench, step, loss):
            mine.append(float(loss))
            seen.append({n: b.gate[:, 0] == 0 for n, b in bench.method.boosters.items()})

    with ours.hooked(Look()):
        ours.run(progress=False)
    assert mine == pytest.approx(losses, abs=1e-9)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(masks, seen, strict=True) for n in ours.modules)
    for name in ours.modules:
        delta = theirs.base_model.model.get_submodule(name).get_delta_weight("default").detach()
        delta = delta.T if make is tiny.tiny_gpt2 else delta  # Conv1D stores its weight transposed
        torch.testing.assert_close(ours.update(name), delta, atol=1e-6, rtol=0)
    assert losses[0] - losses[-1] > 0.01
    # The last phase holds the budget: two triplets a module on average, not the same number in each.
    kept = [int((~m).sum()) for m in seen[-1].values()]
    assert sum(kept) == 2 * len(kept)
    assert len(set(kept)) > 1
    assert sum(int((~m).sum()) for m in seen[2].values()) == 6 * len(kept)


def test_the_parity_would_show_a_step_left_out():
    class NoPenalty(AdaLoRA):
        def after_backward(self, bench):
            pass

    class NoMask(AdaLoRA):
        def after_step(self, bench):
            pass

    def losses(method):
        bench = bench_of(method(**OPTIONS, schedule="constant"))
        return [loss for r in bench.run(progress=False) for loss in r.losses]

    whole = losses(AdaLoRA)
    assert losses(AdaLoRA) == whole
    assert losses(NoPenalty) != pytest.approx(whole, abs=1e-6)
    assert losses(NoMask) != pytest.approx(whole, abs=1e-6)


def test_the_penalty_by_hand_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(3, n, generator=generator).double().requires_grad_() for n in (5, 7)]
    value = orthogonality(factors)
    norms = [torch.linalg.matrix_norm(P @ P.T - torch.eye(3).double()) for P in factors]
    torch.testing.assert_close(value, sum(norms) / 2)
    value.backward()
    for P, norm in zip(factors, norms, strict=True):
        M = (P @ P.T - torch.eye(3).double()).detach()
        torch.testing.assert_close(P.grad, 2 * M @ P.detach() / norm.detach() / 2)
    Q = torch.linalg.qr(torch.randn(7, 3, generator=generator).double())[0].T.contiguous().requires_grad_()
    at_rest = orthogonality([Q])
    at_rest.backward()
    assert float(at_rest.detach()) < 1e-14
    assert torch.isfinite(Q.grad).all()


def test_the_penalty_makes_the_factors_orthonormal_and_stays_out_of_the_loss():
    def distance(weight):
        method = AdaLoRA(**{**OPTIONS, "lr": 0.01}, orth_reg_weight=weight, schedule="constant")
        bench = bench_of(method)
        bench.run(progress=False)
        factors = [p for b in bench.method.boosters.values() for p in (b.A, b.B.T)]
        return float(orthogonality(factors).detach()), bench.history[0].losses[0]

    (without, loss), (with_it, same) = distance(0.0), distance(0.5)
    assert loss == same
    assert with_it < without / 2


def test_a_rewind_gives_back_the_importance_and_the_masks():
    class Forgetful(AdaLoRA):
        forgotten = "nothing"

        def load_state(self, state):
            super().load_state({k: 0 * v if k.startswith(self.forgotten) else v for k, v in state.items()})

    def again(method, rounds, forgotten="nothing"):
        Forgetful.forgotten = forgotten
        bench = bench_of(method)
        first = [r.losses for r in bench.run(progress=False)]
        state = bench.state()
        bench.rewind(rounds)
        same = [r.losses for r in bench.run(progress=False)] == first
        now = bench.state()
        return same and now.keys() == state.keys() and all(torch.equal(v, now[k]) for k, v in state.items())

    assert again(AdaLoRA(**OPTIONS), 2)
    assert again(AdaLoRA(**OPTIONS), 4)  # 16 steps: the last phase, which needs the pattern alone
    assert not again(Forgetful(**OPTIONS), 2, "importance/")
    assert not again(Forgetful(**OPTIONS), 2, "deviation/")
    assert not again(Forgetful(**OPTIONS), 4, "pattern/")


def test_what_is_exported_is_the_live_model_with_masked_triplets_left_out():
    bench = bench_of(AdaLoRA(**OPTIONS))
    bench.run(progress=False)
    live = torch.tensor(bench.predict())
    ranks = [B.shape[1] for B, _ in bench.ensemble[-1].values()]
    assert sum(ranks) == 2 * len(ranks)
    with bench.merged():
        assert (torch.tensor(bench.predict()) - live).abs().max() < 1e-6
    bench.rewind(0)
    assert (torch.tensor(bench.predict()) - live).abs().max() > 1e-3
    assert all(not b.gate.any() for b in bench.method.boosters.values())


def test_more_rounds_than_planned_keep_the_masks():
    bench = bench_of(AdaLoRA(**{**OPTIONS, "tfinal": 0}))
    bench.run(progress=False)
    bench.run(2, progress=False)
    assert sum(B.shape[1] for B, _ in bench.ensemble[-1].values()) == 2 * len(bench.modules)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_rank": 12}, "target_rank must be below rank"),
        ({"rank": 1}, "target_rank must be below rank"),
        ({"target_rank": 0}, "target_rank must be a whole number from 1 or none; got 0"),
        ({"init": "gaussian"}, "leave init out"),
        ({"deltaT": 0}, "deltaT must be a whole number from 1; got 0"),
        ({"tinit": -1}, "tinit must be a number from 0; got -1"),
        ({"tfinal": -1}, "tfinal must be a number from 0; got -1"),
        ({"beta2": 0.0}, "beta2 must be a number above 0 below 1; got 0"),
        ({"beta1": 1.0}, "beta1 must be a number above 0 below 1; got 1"),
        ({"orth_reg_weight": -1}, "orth_reg_weight must be a number from 0; got -1"),
    ],
)
def test_bad_options_get_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        AdaLoRA(**options)
    with pytest.raises(ValueError, match="none of the 20 steps"):
        bench_of(AdaLoRA(tinit=15, tfinal=5))
    assert [AdaLoRA(rank=r).kept_rank for r in (12, 8, 4, 2)] == [8, 5, 3, 1]
    assert make_method("adalora:r=6:target_rank=2") == AdaLoRA(rank=6, target_rank=2)
