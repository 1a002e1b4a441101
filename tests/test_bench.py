"""The promises of the loop."""

from __future__ import annotations

import copy
import gc
import math
import os
import signal

import forked
import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask, equal, snapshot

from xgblora_lab import seeds
from xgblora_lab.bench import Bench, Checkpoint, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.methods import Full, LoRA, XGBLoRA, make_method


def bench_of(method, model=None, **options):
    options = {"steps": 12, "batch_size": 8, **options}
    return Bench(model if model is not None else tiny.tiny_llama(), ToyTask(), method, **options)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal"])
def test_one_endless_round_on_all_modules_is_lora_of_rank_one_bit_for_bit(init):
    common = {"lr": 0.01, "init": init, "schedule": "cosine"}
    boosted = bench_of(XGBLoRA(steps_per_round=50, selection="all", **common), steps=12)
    lora = bench_of(LoRA(rank=1, steps_per_round=12, **common), steps=12)
    boosted.run(progress=False), lora.run(progress=False)
    assert boosted.history[0].losses == lora.history[0].losses
    for name in boosted.modules:
        assert torch.equal(boosted.update(name), lora.update(name))
    assert boosted.history[0].probe_before > boosted.history[0].probe_after
    merging = bench_of(XGBLoRA(steps_per_round=4, selection="all", **common), steps=12)
    merging.run(progress=False)
    assert merging.history[-1].losses[-1] != lora.history[0].losses[-1]


@pytest.mark.parametrize(
    ("make", "dtype", "tolerance"),
    [
        (tiny.tiny_gpt2, torch.float64, 1e-9),
        (tiny.tiny_llama, torch.float64, 1e-5),  # Llama's norms are float32 whatever the model is
        (tiny.tiny_gpt2, torch.float32, 1e-4),
        (tiny.tiny_llama, torch.float32, 1e-4),
    ],
)
def test_lora_equals_pefts_lora(make, dtype, tolerance):
    from peft import LoraConfig, get_peft_model

    ours = bench_of(LoRA(rank=4, alpha=8, lr=3e-3, schedule="constant"), make().to(dtype), steps=50)
    task, names = ours.task, list(ours.modules)
    start = {n: b.A.detach().clone() for n, b in ours.method.boosters.items()}
    ours.run(progress=False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, fan_in_fan_out=make is tiny.tiny_gpt2)
    theirs = get_peft_model(make().to(dtype), config).to(dtype)
    for name in names:
        theirs.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(start[name])
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    losses = []
    for step in range(50):
        loss = task.loss(theirs, task.batch("train", ours.trainer.batch_indices(step)))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    mine = [loss for r in ours.history for loss in r.losses]
    assert max(abs(a - b) for a, b in zip(mine, losses, strict=True)) < tolerance
    for name in names:
        delta = theirs.base_model.model.get_submodule(name).get_delta_weight("default").detach()
        delta = delta.T if make is tiny.tiny_gpt2 else delta  # Conv1D stores its weight transposed
        assert (ours.update(name) - delta).norm() < tolerance * max(1, float(delta.norm()))
    assert losses[0] - losses[-1] > 100 * tolerance  # something was learned


def test_a_merge_changes_no_logit():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=6, selection="all"))
    seen = {}

    class Look(Hook):
        def on_step(self, bench, step, loss):
            bench.model.eval()
            seen["live"] = torch.tensor(bench.predict())
            bench.model.train()

    with bench.hooked(Look()):
        bench.step()
    merged = torch.tensor(bench.predict())
    assert (merged - seen["live"]).abs().max() < 1e-5
    bench.rewind(0)
    assert (merged - torch.tensor(bench.predict())).abs().max() > 1e-3


def test_unselected_modules_stay_bit_identical_and_ranks_are_bounded():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=2, selection="random", modules_per_round=3), steps=16)
    base = snapshot(bench.model)
    for record in bench.rounds():
        before, now = base, snapshot(bench.model)
        changed = {n.removesuffix(".weight") for n in now if not torch.equal(now[n], before[n])}
        assert changed == set(record.modules)
        assert len(changed) == 3
        base = now
    for name in bench.modules:
        rank = int(torch.linalg.matrix_rank(bench.update(name)))
        assert rank <= bench.ensemble.times_chosen(name) == sum(name in r.modules for r in bench.history)
    assert max(bench.ensemble.times_chosen(n) for n in bench.modules) > 1


@pytest.mark.parametrize(("steps", "kappa", "merges"), [(12, 4, 3), (12, 12, 1), (13, 4, 4), (3, 10, 1)])
def test_merges_fire_when_planned(steps, kappa, merges):
    bench = bench_of(XGBLoRA(steps_per_round=kappa), steps=steps)
    calls = []
    merge = bench.weights.merge
    bench.weights.merge = lambda boosters: (calls.append(len(boosters)), merge(boosters))[1]
    bench.run(progress=False)
    assert len(calls) == merges == bench.planned_rounds
    assert bench.history[-1].step == steps


def test_every_round_starts_with_a_fresh_optimizer_and_a_silent_booster():
    states, outputs = [], []

    class Watch(Hook):
        def on_round_start(self, bench, index):
            outputs.append([b.B.detach().norm().item() for b in bench.method.boosters.values()])

    class Fresh(XGBLoRA):
        def make_optimizer(self, parameters):
            optimizer = super().make_optimizer(parameters)
            states.append(len(optimizer.state))
            return optimizer

    bench_of(Fresh(steps_per_round=4), hooks=[Watch()]).run(progress=False)
    assert states == [0, 0, 0]
    assert all(set(o) == {0.0} for o in outputs)
    states.clear()
    bench_of(Fresh(steps_per_round=4, optimizer_state="keep", selection="all")).run(progress=False)
    assert states[0] == 0
    assert states[1] > 0


def test_the_first_gradient_moves_B_alone():
    bench = bench_of(XGBLoRA(steps_per_round=1, selection="all"))
    norms = {}

    class Look(XGBLoRA):
        def after_backward(self, bench):
            norms.update({n: float(p.grad.norm()) for n, p in self.trainable().items()})

    bench_of(Look(steps_per_round=1, selection="all"), bench.model).step()
    assert all((norm == 0) == name.endswith(".A") for name, norm in norms.items())
    assert norms


def test_carried_moments_make_the_step_several_times_larger():
    """With zeroed moments and the step counter kept, Adam's bias correction is gone."""

    def first_moves(policy: str) -> float:
        method = XGBLoRA(
            lr=1e-3, steps_per_round=300, selection="all", schedule="constant", optimizer_state=policy
        )
        bench = bench_of(method, nn.Sequential(nn.Linear(4, 3, bias=False)), steps=900, probe_size=0)
        moves = []

        class Constant(Hook):
            def on_step(self, bench, step, loss):
                if len(bench.history) == 1 and step < 12:
                    moves.append(float(bench.method.boosters["0"].B.detach().abs().max()))

        bench.task = LinearLoss()
        bench.trainer.task = bench.task
        with bench.hooked(Constant()):
            bench.run(2, progress=False)
        return moves[11] - moves[10]

    assert first_moves("zero_moments") > 3 * first_moves("fresh")


class LinearLoss(ToyTask):
    """A constant gradient: the loss is linear in the output."""

    def batch(self, split, indices):
        return {"x": torch.ones(1, 4)}

    def weight(self, batch):
        return 1

    def tokens(self, batch):
        return 1

    def loss(self, model, batch):
        return model(batch["x"]).sum()


@pytest.mark.parametrize(
    "method", [XGBLoRA(lr=0.05, steps_per_round=3), LoRA(rank=2, lr=0.01, steps_per_round=3)]
)
@pytest.mark.parametrize("kind", ["causal-lm", "classification"])
def test_rewinding_is_exact_and_going_on_repeats_the_curve(method, kind):
    model = tiny.tiny_llama(num_labels=2) if kind == "classification" else tiny.tiny_llama()
    bench = Bench(model, ToyTask(kind), method, steps=15, batch_size=8)
    states = [snapshot(model)]
    logits = [torch.tensor(bench.predict())]
    for _ in bench.rounds():
        states.append(snapshot(model))
        logits.append(torch.tensor(bench.predict()))
    curve = [r.losses for r in bench.history]
    bench.rewind(2)
    assert equal(snapshot(model), states[2])
    assert torch.equal(torch.tensor(bench.predict()), logits[2])
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    assert torch.equal(torch.tensor(bench.predict()), logits[-1])
    assert not torch.equal(logits[2], logits[-1])


def test_staged_looks_back_and_leaves_the_model_alone():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=3, head_lr=0.05), steps=12)
    wanted = [torch.tensor(bench.predict())]
    for _ in bench.rounds():
        wanted.append(torch.tensor(bench.predict()))
    live = snapshot(bench.model)
    stages = bench.staged_predict()
    for t, stage in enumerate(stages):
        assert equal(snapshot(bench.model), live)
        assert torch.equal(torch.tensor(stage), wanted[t])
        stage[:] = 0  # a stage is a copy of its own
    losses = [scores["loss"] for scores in bench.staged_evaluate()]
    assert len(losses) == 5
    assert losses[-1] == bench.evaluate()["loss"]
    assert losses[0] != losses[-1]

    def fail():
        assert not equal(snapshot(bench.model), live)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bench.at(1):
        fail()
    assert equal(snapshot(bench.model), live)


def test_leaving_out_and_dropping_a_booster_agree():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=3), steps=9)
    bench.run(progress=False)
    live = snapshot(bench.model)
    left_out = dict(bench.left_out())
    assert equal(snapshot(bench.model), live)
    assert len(left_out) == 3
    bench.drop(1)
    assert bench.evaluate() == left_out[1]
    assert left_out[1] != left_out[0]
    assert not equal(snapshot(bench.model), live)


def test_shrinkage_merges_a_part_and_the_penalty_shortens_boosters():
    full, half = (bench_of(XGBLoRA(lr=0.05, steps_per_round=4, shrinkage=s), steps=4) for s in (1.0, 0.5))
    full.run(progress=False), half.run(progress=False)
    name = full.history[0].modules[0]
    torch.testing.assert_close(half.update(name), full.update(name) / 2)
    penalised = bench_of(XGBLoRA(lr=0.05, steps_per_round=4, norm_penalty=1.0), steps=4)
    penalised.run(progress=False)
    assert penalised.update(name).norm() < full.update(name).norm()
    assert penalised.history[0].losses[0] == full.history[0].losses[0]  # the recorded loss is the task's


def test_selections_cover_what_they_say():
    names = [f"m{i}" for i in range(6)]
    cyclic = XGBLoRA(selection="cyclic", modules_per_round=4)
    assert cyclic.choose(names, 0, 0) == names[:4]
    assert cyclic.choose(names, 0, 1) == ["m0", "m1", "m4", "m5"]
    random = XGBLoRA(selection="random", modules_per_round=1 / 3)
    picks = [tuple(random.choose(names, 0, t)) for t in range(40)]
    assert {len(p) for p in picks} == {2}
    assert len(set(picks)) > 5
    assert picks[3] == tuple(random.choose(names, 0, 3))
    assert XGBLoRA(selection="all").choose(names, 0, 0) == names


@pytest.mark.parametrize("rows", [4, 64])
def test_the_residual_start_is_the_ridge_regression_of_the_gradient(rows):
    torch.manual_seed(0)
    k, d = 12, 7
    model = nn.Sequential(nn.Linear(k, d, bias=False)).double()
    X, Y = torch.randn(rows, k).double(), torch.randn(rows, d).double()

    class Regression(LinearLoss):
        def batch(self, split, indices):
            return {"x": X}

        def loss(self, model, batch):
            return (model(batch["x"]) - Y).square().sum()

    bench = Bench(
        model, Regression(), XGBLoRA(init="residual", selection="all", steps_per_round=1), probe_size=0
    )
    seen = {}

    class Look(Hook):
        def on_round_start(self, bench, index):
            seen["A"] = bench.method.boosters["0"].A.detach()[0].clone()

    D = 2 * (model(X) - Y).detach()
    with bench.hooked(Look()):
        record = bench.step()
    C = X.T @ X + 0.03 * (X.T @ X).diagonal().mean() * torch.eye(k).double()
    omega = torch.randn(d, 1, generator=seeds.generator("residual", 0, 0)).double()
    expected = torch.linalg.solve(C, X.T @ D @ omega)[:, 0]
    assert torch.cosine_similarity(seen["A"], expected, dim=0) > 1 - 1e-6
    assert float(seen["A"].norm()) == pytest.approx(1 / math.sqrt(3), rel=1e-5)
    assert (
        abs(torch.cosine_similarity(seen["A"], (X.T @ D @ omega)[:, 0], dim=0)) < 0.999
    )  # whitening matters
    assert record.extra_passes == 1


def test_full_fine_tuning_trains_everything_and_knows_its_update():
    bench = bench_of(Full(lr=1e-3))
    base = snapshot(bench.model)
    bench.run(progress=False)
    assert all(not torch.equal(p, base[n]) for n, p in bench.model.named_parameters())
    name = next(iter(bench.modules))
    torch.testing.assert_close(
        bench.update(name), bench.modules[name].weight.detach() - base[f"{name}.weight"]
    )
    torch.testing.assert_close(bench.spectrum(name), torch.linalg.svdvals(bench.update(name)))
    with pytest.raises(ValueError, match="cannot be rewound"):
        bench.rewind(0)
    bench.close()
    assert equal(snapshot(bench.model), base)


def test_a_new_bench_takes_the_model_over_at_its_base():
    model = tiny.tiny_llama(num_labels=2)
    base, task = snapshot(model), ToyTask("classification")
    for method in (LoRA(rank=2), Full(), XGBLoRA()):
        bench = Bench(model, task, method, steps=4)
        bench.run(progress=False)
        assert bench.history[0].loss_before == pytest.approx(0.7, abs=0.1)
    old = bench
    Bench(model, task, LoRA(rank=2), steps=4)
    assert equal(snapshot(model), base)
    with pytest.raises(RuntimeError, match="closed"):
        old.step()


def test_a_bench_that_nobody_holds_is_still_closed_by_the_next():
    model = tiny.tiny_llama()
    base = snapshot(model)

    def run():
        bench_of(LoRA(rank=2, lr=0.1), model).run(progress=False)

    run()
    gc.collect()
    alone = copy.deepcopy(model)
    bench = bench_of(LoRA(rank=2), model)
    assert equal(snapshot(model), base)
    assert [len(m._forward_hooks) for m in bench.modules.values()] == [1] * 14
    bench_of(Full(lr=1e-3), alone, steps=1).run(progress=False)  # a copy has no bench of its own
    assert bench.step().index == 0


def test_an_interrupted_round_is_taken_back():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=4), steps=12)
    plain = [r.losses for r in bench_of(XGBLoRA(lr=0.05, steps_per_round=4), steps=12).run(progress=False)]

    class Trip(Hook):
        def on_step(self, bench, step, loss):
            if len(bench.history) == 1 and step == 2:
                raise KeyboardInterrupt

    bench.step()
    after_one = snapshot(bench.model)
    with pytest.raises(KeyboardInterrupt), bench.hooked(Trip()):
        bench.run(progress=False)
    assert len(bench.history) == 1
    assert equal(snapshot(bench.model), after_one)
    assert not bench.hooks
    assert all(not m._forward_hooks for m in bench.modules.values())
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == plain


@pytest.mark.parametrize("method", ["xgblora:k=3:optimizer_state=keep", "lora:r=2:k=3", "full:k=3"])
def test_a_saved_run_resumes_to_the_same_curve(method, tmp_path):
    def model():
        return tiny.tiny_llama(num_labels=2)

    task = ToyTask("classification")
    whole = Bench(model(), task, make_method(method), steps=12, batch_size=8)
    whole.run(progress=False)
    first = Bench(
        model(), task, make_method(method), steps=12, batch_size=8, hooks=[Checkpoint(tmp_path / "run")]
    )
    first.run(2, progress=False)
    again = resume(tmp_path / "run", model(), task)
    assert len(again.history) == 2
    again.run(progress=False)
    assert [r.losses for r in again.history] == [r.losses for r in whole.history]
    assert equal(snapshot(again.model), snapshot(whole.model))
    third = resume(tmp_path / "run", model(), task)
    assert len(third.history) == 4
    assert third.evaluate() == whole.evaluate()
    if again.method.rewindable:
        third.rewind(1)
        assert third.history[0].losses == whole.history[0].losses
        assert list(third.staged_evaluate())[1] == list(whole.staged_evaluate())[1]
    with pytest.raises(FileExistsError, match="resume"):
        Bench(model(), task, make_method(method), hooks=[Checkpoint(tmp_path / "run")]).step()
    with pytest.raises(FileNotFoundError, match=r"history\.jsonl is missing"):
        resume(tmp_path, model(), task)


class Kill(Hook):
    def on_step(self, bench, step, loss):
        if len(bench.history) == 2 and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder):
    method = XGBLoRA(lr=0.05, steps_per_round=3)
    Bench(tiny.tiny_llama(), ToyTask(), method, steps=12, hooks=[Checkpoint(folder), Kill()]).run()


def test_a_killed_process_leaves_a_run_that_resumes(tmp_path):
    forked.serve()
    process = forked.SERVER.Process(target=killed, args=(tmp_path / "run",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    bench = resume(tmp_path / "run", tiny.tiny_llama(), ToyTask())
    assert len(bench.history) == 2
    bench.run(progress=False)
    whole = Bench(tiny.tiny_llama(), ToyTask(), XGBLoRA(lr=0.05, steps_per_round=3), steps=12)
    whole.run(progress=False)
    assert [r.losses for r in bench.history] == [r.losses for r in whole.history]


def test_the_record_counts_what_was_spent():
    model = tiny.tiny_llama(num_labels=2)
    bench = Bench(
        model,
        ToyTask("classification"),
        XGBLoRA(steps_per_round=3, selection="random", modules_per_round=2),
        steps=6,
        batch_size=8,
    )
    first, second = bench.rounds()
    head = 2 * 32
    sizes = [sum(sum(bench.ensemble.shapes[n]) for n in r.modules) for r in (first, second)]
    assert first.peak_parameters == sizes[0] + head
    assert second.total_parameters == sum(sizes) + head
    assert first.gradient_bytes == 4 * first.peak_parameters
    assert 8 * first.peak_parameters <= first.optimizer_bytes < 8 * first.peak_parameters + 100
    rows = [i for step in range(3) for i in bench.trainer.batch_indices(step)]
    assert first.tokens == int(bench.task.lengths[rows].sum())
    assert len(first.losses) == len(first.learning_rates) == len(first.gradient_norms) == 3
    assert second.probe_before == first.probe_after
    assert first.loss_before == first.losses[0]
    assert first.gain == first.probe_before - first.probe_after
    with pytest.raises(AttributeError):
        first.index = 5
    with pytest.raises(TypeError):
        first.measurements["x"] = 1


def test_a_probe_loss_is_measured_again_where_the_weights_have_changed_and_only_there():
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=1))
    fresh, passes = bench._measure.probe_loss, []
    bench._measure.probe_loss = lambda: passes.append(None) or fresh()
    weight = next(iter(bench.modules.values())).weight
    booster = {n: (torch.ones(d, 1), torch.ones(1, k) / k) for n, (d, k) in bench.ensemble.shapes.items()}

    def look_back():
        with bench.at(1):
            assert fresh() != bench.history[-1].probe_after

    def write():
        with torch.no_grad():
            weight[0] += 0.3

    def replace():
        next(iter(bench.modules.values())).weight = nn.Parameter(0.9 * weight, requires_grad=False)

    changes = {  # and the passes of the round that follows, for its two losses
        "nothing": (lambda: None, 1),
        "the next merge": (lambda: setattr(bench.method, "shrinkage", 0.5), 1),
        "rewind": (lambda: bench.rewind(2), 2),
        "drop": (lambda: bench.drop(0), 2),
        "a look back": (look_back, 2),
        "a merge past the records": (lambda: bench.weights.merge(booster), 2),
        "a write": (write, 2),
        "another parameter": (replace, 2),
    }
    bench.step(), bench.step(), bench.step()
    assert len(passes) == 4
    for what, (change, expected) in changes.items():
        before = fresh()
        change()
        now, passes[:] = fresh(), []
        assert (now == before) == (what in ("nothing", "the next merge", "a look back")), what
        record = bench.step()
        assert record.probe_before == now, what
        assert record.probe_after == fresh(), what
        assert len(passes) == expected, what
    next(iter(bench.modules.values())).weight.data[0] += 0.3  # past the count: the loss of before is taken
    assert bench.step().probe_before == record.probe_after


def test_dropout_is_the_same_before_and_after_and_leaves_the_generator_alone():
    model = tiny.tiny_llama()
    model.model.layers[0].mlp.register_forward_hook(
        lambda m, a, out: nn.functional.dropout(out, 0.5, m.training)
    )
    bench = bench_of(XGBLoRA(lr=1e-9, steps_per_round=2), model, steps=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    record = bench.step()
    assert torch.equal(torch.rand(1), expected)
    assert record.loss_after == pytest.approx(record.loss_before, abs=1e-5)
    assert not model.training


def test_accumulated_micro_batches_give_the_same_gradient():
    runs = []
    for accumulation in (1, 3):
        bench = bench_of(
            LoRA(rank=2, lr=0.01), tiny.tiny_llama().double(), accumulation=accumulation, steps=6
        )
        bench.run(progress=False)
        runs.append([loss for r in bench.history for loss in r.losses])
    assert runs[0] == pytest.approx(runs[1], abs=1e-6)


def test_schedules_end_where_they_should():
    method = XGBLoRA(schedule="linear", warmup=2, round_warmup=4)
    assert method.rate(0, 3, 100) == 0.5
    assert method.rate(50, 3, 100) == 0.5
    assert method.rate(50, 0, 100) == 0.125
    assert XGBLoRA(schedule="cosine").rate(50, 0, 100) == pytest.approx(0.5)
    assert LoRA(schedule="constant").rate(99, 0, 100) == 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: XGBLoRA(lr=-1), "lr must be a number above 0; got -1"),
        (lambda: XGBLoRA(lr=float("inf")), "lr must be a number"),
        (lambda: XGBLoRA(alpha=True), "alpha must be a number above 0 or none"),
        (lambda: LoRA(betas=0.9), "betas must be 2 numbers"),
        (lambda: XGBLoRA(round_warmup=-1), "round_warmup must be a whole number from 0"),
        (lambda: XGBLoRA(selection="best"), "one of all, random, cyclic"),
        (lambda: XGBLoRA(modules_per_round=1.5), "whole number from 1 or a fraction"),
        (lambda: XGBLoRA(shrinkage=0), "above 0"),
        (lambda: LoRA(rank=0), "whole number from 1"),
        (lambda: LoRA(schedule="wavy"), "one of constant, linear, cosine"),
        (lambda: make_method("xgbolra"), "Did you mean 'xgblora'"),
        (lambda: make_method("lora:q=8"), "Unknown option 'q=8'"),
        (lambda: bench_of(LoRA(), steps=0), "steps must be at least 1"),
    ],
)
def test_bad_options_get_one_clear_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_methods_are_made_from_text():
    assert make_method("lora:r=4:alpha=8", lr=0.5) == LoRA(rank=4, alpha=8, lr=0.5)
    assert make_method("xgblora:k=5:modules=0.5") == XGBLoRA(steps_per_round=5, modules_per_round=0.5)
    assert make_method(**{"spec": "lora", **LoRA(rank=3).options()}) == LoRA(rank=3)
    assert LoRA(rank=1).label() == "lora:rank=1"
    assert XGBLoRA().label() == "xgblora"
    assert XGBLoRA(lr=1, steps_per_round=5).label() == "xgblora:steps_per_round=5"
    assert XGBLoRA(steps_per_round=5, warmup=2).label({"steps_per_round": 5}) == "xgblora:warmup=2"


def test_a_half_precision_base_keeps_its_update_to_one_rounding():
    model = tiny.tiny_llama().bfloat16()
    base = snapshot(model)
    bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=3, selection="all"), model, steps=12)
    bench.run(3, progress=False)
    three = snapshot(model)
    bench.run(progress=False)
    for name, module in bench.modules.items():
        wanted = (base[f"{name}.weight"].float() + bench.ensemble.update(name)).bfloat16()
        same = (module.weight == wanted).float().mean()  # the order of a sum may move a tie
        assert same > 0.99
        assert not torch.equal(module.weight, base[f"{name}.weight"])
    assert {B.dtype for B, _ in bench.ensemble[0].values()} == {torch.float32}
    bench.rewind(3)
    assert equal(snapshot(model), three)


def test_mixed_precision_trains_factors_in_float32():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    plain = bench_of(XGBLoRA(lr=0.05, steps_per_round=3), steps=6).run(progress=False)
    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        mixed = bench_of(XGBLoRA(lr=0.05, steps_per_round=3), steps=6, accelerator=accelerator)
        mixed.run(progress=False)
    finally:
        AcceleratorState._reset_state(True)
    losses = [loss for r in mixed.history for loss in r.losses]
    exact = [loss for r in plain for loss in r.losses]
    assert losses == pytest.approx(exact, rel=1e-2)
    assert losses != exact
    assert {p.dtype for pair in mixed.ensemble[1].values() for p in pair} == {torch.float32}
    assert mixed.history.settings.precision == "bf16"


def test_the_cost_of_a_token_is_counted_from_the_weights():
    model = tiny.tiny_llama()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert bench_of(LoRA(), model).history.settings.flops_per_token == 4 * linear
    assert bench_of(Full(), model).history.settings.flops_per_token == 6 * linear


def test_large_states_lie_on_disk_and_are_the_same(monkeypatch):
    def logits(limit: int) -> list[torch.Tensor]:
        monkeypatch.setattr("xgblora_lab.bench.rewind.IN_MEMORY", limit)
        bench = bench_of(LoRA(rank=2, lr=0.01, steps_per_round=3))
        bench.run(progress=False)
        folder = bench._past.states._folder
        assert (folder is None) == (limit > 0)
        seen = []
        for t in (2, 4, 0):
            with bench.at(t):
                seen.append(torch.tensor(bench.predict()))
        bench.rewind(1)
        if folder is not None:
            assert {p.name for p in folder.iterdir()} == {
                "state-00000.safetensors",
                "state-00001.safetensors",
            }
        return seen

    for memory, disk in zip(logits(1 << 20), logits(0), strict=True):
        assert torch.equal(memory, disk)


def test_a_saved_run_can_be_taken_back_to_its_start_and_go_on(tmp_path):
    bench = bench_of(LoRA(rank=2, lr=0.01, steps_per_round=3), hooks=[Checkpoint(tmp_path)])
    bench.run(progress=False)
    curve = [r.losses for r in bench.history]
    bench.rewind(0)
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == curve
    with pytest.raises(FileExistsError, match="holds a run already"):
        bench_of(LoRA(rank=2), hooks=[Checkpoint(tmp_path)]).step()


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_gradient_checkpointing_gives_the_same_rounds_in_less_memory(make):
    def run(checkpointing: bool) -> tuple[list[float], int]:
        model = make()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)  # from transformers 5.23 on
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        kept = []
        bench = bench_of(XGBLoRA(lr=0.05, steps_per_round=3), model)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            bench.run(progress=False)
        return [loss for r in bench.history for loss in r.losses], sum(kept)

    (plain, much), (checkpointed, little) = run(False), run(True)
    assert checkpointed == pytest.approx(plain, abs=1e-6)
    assert plain[0] != plain[-1]
    assert little < 0.9 * much  # it did something
