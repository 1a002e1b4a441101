"""ALoRA's promises: whose rank is missed, who gets it, and that a move changes nothing else."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from toy import ToyTask, snapshot

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods import ALoRA, make_method
from xgblora_lab.methods.family.alora import Switched, plan, resized_tensor

OPTIONS = {"rank": 2, "lr": 0.02, "every": 1, "score_rows": 8, "moved": 0.25, "steps_per_round": 3}


def bench_of(method, model=None, kind="causal-lm", **options):
    options = {"steps": 9, "batch_size": 8, "targets": "attention", **options}
    return Bench(model if model is not None else tiny.tiny_llama().double(), ToyTask(kind), method, **options)


def ranks(bench):
    return {name: booster.rank for name, booster in bench.method.boosters.items()}


def test_a_rank_switched_off_is_a_rank_deleted():
    torch.manual_seed(0)
    A, B, x = torch.randn(4, 6).double(), torch.randn(5, 4).double(), torch.randn(3, 6).double()
    booster = Switched(A, B, 0.5)
    whole = booster(x)
    booster.mask = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    kept = torch.tensor([0, 2, 3])
    torch.testing.assert_close(booster(x), LowRank(A[kept], B[:, kept], 0.5)(x))
    assert (booster(x) - whole).abs().max() > 0.01
    booster.mask = None
    assert torch.equal(booster(x), whole)


def scored(bench):
    """Scores by deleting ranks for real, as S(without) and S(alone) are defined."""
    batches = [bench.task.batch("train", range(8))]
    boosters = bench.method.boosters
    kept = {name: b.B.detach().clone() for name, b in boosters.items()}
    scores = {name: torch.zeros(b.rank, dtype=torch.float64) for name, b in boosters.items()}
    for name, B in kept.items():
        for i in range(B.shape[1]):
            boosters[name].B.data[:, i] = 0
            without = bench.trainer.loss(batches)
            for b in boosters.values():
                b.B.data.zero_()
            boosters[name].B.data[:, i] = B[:, i]
            alone = bench.trainer.loss(batches)
            for other, b in boosters.items():
                b.B.data.copy_(kept[other])
            scores[name][i] = without - alone
    return scores


@pytest.mark.parametrize(
    ("make", "kind"), [(tiny.tiny_llama, "causal-lm"), (tiny.tiny_gpt2, "classification")]
)
def test_scores_are_the_losses_without_and_alone(make, kind):
    model = make(num_labels=2 if kind == "classification" else None).double()
    bench = bench_of(ALoRA(**{**OPTIONS, "reallocations": 0}), model, kind)
    bench.run(2, progress=False)
    before, boosters = bench.state(), dict(bench.method.boosters)
    scores, wanted = bench.method.scores(bench), scored(bench)
    for name in scores:
        torch.testing.assert_close(scores[name], wanted[name], atol=1e-12, rtol=0)
    flat = torch.cat(list(scores.values()))
    assert float(flat.diff().abs().max()) > 1e-4  # they tell ranks apart
    after = bench.state()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(b.mask is None for b in boosters.values())


def test_the_one_rank_that_does_something_scores_highest_and_a_harmful_one_lowest():
    bench = bench_of(ALoRA(**OPTIONS))
    name = next(iter(bench.modules))
    booster = bench.method.boosters[name]
    batch = [bench.task.batch("train", range(8))]

    def score_of(B):
        booster.B.data.copy_(B)
        return bench.method.scores(bench), bench.trainer.loss(batch)

    bench.trainer.backward(batch, [booster.A, booster.B])
    downhill = torch.zeros_like(booster.B)
    downhill[:, 0] = -booster.B.grad[:, 0] / booster.B.grad[:, 0].norm()
    booster.A.grad = booster.B.grad = None
    silent, base = score_of(0 * downhill)
    assert all(float(s.abs().max()) == 0 for s in silent.values())
    for sign in (1, -1):
        scores, loss = score_of(0.1 * sign * downhill)
        assert (loss < base) == (sign == 1)
        flat = torch.cat(list(scores.values()))
        assert int(flat.argmax() if sign == 1 else flat.argmin()) == 0
        # A silent rank's score is S(no adapter) - S(with all): removing it changes nothing.
        torch.testing.assert_close(flat[1:], torch.full_like(flat[1:], loss - base))


def of(**scores):
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}


def test_the_plan_by_hand():
    # Eight ranks go; a, b and c lost none: (3, 3, 2) in the order of their mean scores.
    scores = of(a=[5.0, 5.0], b=[9.0, 9.0], c=[7.0, 7.0], d=[0.1] * 4, e=[0.2] * 4)
    kept, added = plan(scores, 8)
    assert added == {"b": 3, "c": 3, "a": 2}
    assert {n: len(k) for n, k in kept.items()} == {"a": 2, "b": 2, "c": 2, "d": 0, "e": 0}
    # Every module lost one: none are added and the total shrinks.
    kept, added = plan(of(a=[1.0, 5.0], b=[2.0, 6.0]), 2)
    assert added == {}
    assert {n: k.tolist() for n, k in kept.items()} == {"a": [1], "b": [1]}
    # A module without ranks can get none, having no score; one rank is always left.
    assert plan(of(a=[], b=[1.0, 2.0], c=[3.0]), 1)[1] == {"c": 1}
    kept, added = plan(of(a=[1.0, 2.0]), 5)
    assert ({n: k.tolist() for n, k in kept.items()}, added) == ({"a": [1]}, {})


class Check(Hook):
    """Looks at the model and the method before and after every reallocation."""

    def __init__(self):
        self.seen = []

    def on_round_start(self, bench, index):
        self.seen.append((index, ranks(bench), bench.state(), torch.tensor(bench.predict())))


def test_growth_alone_changes_nothing_and_pruning_does():
    bench = bench_of(ALoRA(**OPTIONS))
    bench.run(1, progress=False)
    before, logits = bench.method.state(), torch.tensor(bench.predict())
    method = bench.method
    grow = {n: torch.randn(3, m.in_features).double() for n, m in bench.modules.items()}

    def logits_after(kept):
        method.load_state({k: resized_tensor(k, v, kept, grow) for k, v in before.items()})
        return torch.tensor(bench.predict())

    everything = {n: torch.arange(2) for n in bench.modules}
    assert (logits_after(everything) - logits).abs().max() < 1e-12
    assert set(ranks(bench).values()) == {5}
    assert (logits_after({n: torch.arange(1) for n in bench.modules}) - logits).abs().max() > 1e-4
    for booster in method.boosters.values():
        booster.B.data[:, -1] = 1.0  # the new ranks are alive
    assert (torch.tensor(bench.predict()) - logits).abs().max() > 1e-4


def test_a_reallocation_keeps_the_budget_the_scale_and_the_moments_of_what_stays():
    bench, check = bench_of(ALoRA(**OPTIONS, alpha=4)), Check()
    with bench.hooked(check):
        bench.step()
        before, had = bench.method.state(), ranks(bench)
        bench.step()
    _, has, _, _ = check.seen[1]
    assert has != had
    assert sum(has.values()) == sum(had.values())
    assert {b.scale for b in bench.method.boosters.values()} == {2.0}
    after = {k.removeprefix("method/"): v for k, v in check.seen[1][2].items()}
    moved = 0
    for name in had:
        lost, grown = had[name] > has[name], has[name] > had[name]
        for key in (f"{name}.A", *(f"optimizer/{name}.A/{k}" for k in ("exp_avg", "exp_avg_sq"))):
            old, new = before[key], after[key]
            if grown:
                assert torch.equal(new[: len(old)], old)
                assert bool(new[len(old) :].any()) == (key == f"{name}.A")
            elif lost:
                assert all(any(torch.equal(row, o) for o in old) for row in new)
            else:
                assert torch.equal(new, old)
            assert after[key.replace(".A", ".B")].shape[1] == has[name]
        assert torch.equal(after[f"optimizer/{name}.A/step"], before[f"optimizer/{name}.A/step"])
        if grown:
            assert not after[f"{name}.B"][:, had[name] :].any()
            moved += has[name] - had[name]
    assert moved == round(0.25 * sum(had.values()))
    live = bench.method.boosters
    assert any((live[n].B[:, had[n] :] != 0).any() for n in had if has[n] > had[n])  # they learn


def test_the_record_counts_the_forwards_and_the_new_numbers():
    bench = bench_of(ALoRA(**OPTIONS, reallocations=2), steps=12, batch_size=4)
    before = []

    class Look(Hook):
        def on_round_start(self, bench, index):
            before.append(ranks(bench))

    with bench.hooked(Look()):
        bench.run(progress=False)
    total = sum(before[0].values())
    assert [r.extra_forwards for r in bench.history] == [0, 2 * total * 2, 2 * total * 2, 0]  # 8 rows by 4
    assert before[2] == before[3]
    for t in (1, 2, 3):
        grown = sum(
            max(0, before[t][n] - before[t - 1][n]) * sum(bench.ensemble.shapes[n]) for n in before[0]
        )
        assert bench.history[t].total_parameters - bench.history[t - 1].total_parameters == grown
        assert (grown > 0) == (t < 3)


def test_the_batch_for_scores_is_the_same_training_rows_every_time():
    bench = bench_of(ALoRA(**OPTIONS))
    asked = []
    batch = bench.task.batch
    bench.task.batch = lambda split, rows: (asked.append((split, list(rows))), batch(split, rows))[1]
    bench.method.scores(bench)
    first = list(asked)
    asked.clear()
    bench.run(1, progress=False)
    asked.clear()
    bench.method.scores(bench)
    assert asked == first == [("train", list(range(8)))]


@pytest.mark.parametrize(
    ("make", "kind"), [(tiny.tiny_llama, "causal-lm"), (tiny.tiny_gpt2, "classification")]
)
def test_a_module_without_ranks_trains_rewinds_and_is_exported(make, kind, tmp_path):
    def model():
        return make(num_labels=2 if kind == "classification" else None).double()

    bare = model()
    base = snapshot(bare)
    bench = bench_of(ALoRA(**{**OPTIONS, "moved": 0.6}), bare, kind)
    first = [r.losses for r in bench.run(progress=False)]
    assert 0 in ranks(bench).values()
    empty = next(name for name, rank in ranks(bench).items() if rank == 0)
    assert not bench.update(empty).any()
    live, state = torch.tensor(bench.predict()), bench.state()
    with bench.merged():
        assert (torch.tensor(bench.predict()) - live).abs().max() < 1e-6
    for rounds in (2, 1, 0):
        bench.rewind(rounds)
        assert [r.losses for r in bench.run(progress=False)] == first
        now = bench.state()
        assert all(torch.equal(v, now[k]) for k, v in state.items())
    written = bench.export_peft(tmp_path / "adapter")
    assert written["rank"] == max(ranks(bench).values())
    assert empty not in written["relative_error"]
    bench.close()
    assert all(torch.equal(v, base[k]) for k, v in snapshot(bare).items())


def test_without_reallocations_it_is_lora_and_with_them_it_is_not():
    from xgblora_lab.methods import LoRA

    def losses(method):
        return [loss for r in bench_of(method).run(progress=False) for loss in r.losses]

    common = {"rank": 2, "lr": 0.02, "steps_per_round": 3}
    lora = losses(LoRA(**common))
    assert losses(ALoRA(**OPTIONS | {"reallocations": 0})) == lora
    moved = losses(ALoRA(**OPTIONS))
    assert moved[:3] == lora[:3]
    assert moved[3:] != lora[3:]


def test_a_new_rank_takes_the_steps_that_its_docstring_tells():
    """One row of A under a constant gradient; Adam's clock is 200 steps old when the second row is born."""

    def steps(age):
        old = nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
        optimizer = torch.optim.AdamW([old], lr=1.0, weight_decay=0.0)
        for _ in range(age):
            old.grad = torch.ones_like(old)
            optimizer.step()
        kept, rows = {"m": torch.tensor([0])}, {"m": torch.zeros(1, 3)}
        state = {f"optimizer/m.A/{key}": value for key, value in optimizer.state[old].items()}
        both = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        optimizer = torch.optim.AdamW([both], lr=1.0, weight_decay=0.0)
        optimizer.state[both] = {
            key.rpartition("/")[2]: resized_tensor(key, value, kept, rows) for key, value in state.items()
        }
        moved = []
        for _ in range(30):
            before = both.detach().clone()
            both.grad = torch.ones_like(both)
            optimizer.step()
            moved.append((before - both.detach())[:, 0])
        return torch.stack(moved, 1)  # (old and new, steps), in learning rates

    old, new = steps(200)
    torch.testing.assert_close(old, torch.ones_like(old), atol=1e-6, rtol=0)
    assert round(float(new[0]), 2) == 1.35
    assert round(float(new.max()), 1) == 2.9
    assert abs(int(new.argmax()) + 1 - 15) <= 2
    torch.testing.assert_close(steps(0)[1], torch.ones(30, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be a whole number from 1"),
        ({"reallocations": -1}, "reallocations must be a whole number from 0"),
        ({"score_rows": 0}, "score_rows must be a whole number from 1"),
        ({"moved": 1.0}, "moved must be a number above 0 below 1; got 1"),
        ({"moved": 0.0}, "moved must be a number above 0 below 1; got 0"),
        ({"score_rows": 4.0}, "score_rows must be a whole number from 1; got 4.0"),
    ],
)
def test_bad_options_get_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        ALoRA(**options)
    assert make_method("alora:r=4:every=3") == ALoRA(rank=4, every=3)
