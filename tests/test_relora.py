"""ReLoRA and COLA: LoRA again and again, with an optimizer that forgets most, or everything."""

from __future__ import annotations

import pytest
import tiny
import torch
from toy import ToyTask, equal, snapshot

from xgblora_lab.bench.bench import Bench
from xgblora_lab.methods import COLA, LoRA, ReLoRA, XGBLoRA

NAME = "model.layers.0.self_attn.q_proj"


def bench_of(method, **options):
    options = {"steps": 12, "batch_size": 8, **options}
    return Bench(tiny.tiny_llama(), ToyTask(), method, **options)


def run(method, **options):
    bench = bench_of(method, **options)
    bench.run(progress=False)
    return bench


def losses(bench):
    return [r.losses for r in bench.history]


@pytest.mark.parametrize("method", [COLA, ReLoRA])
def test_one_link_is_lora_bit_for_bit(method):
    options = {"round_warmup": 0} if method is ReLoRA else {}
    chain = run(method(rank=3, alpha=6, lr=0.01, steps_per_round=12, **options))
    lora = run(LoRA(rank=3, alpha=6, lr=0.01, steps_per_round=12))
    assert losses(chain) == losses(lora)
    assert all(torch.equal(chain.update(n), lora.update(n)) for n in chain.modules)
    three = run(method(rank=3, alpha=6, lr=0.01, steps_per_round=4, **options))
    assert sum(losses(three), ()) != losses(lora)[0]


@pytest.mark.parametrize("method", [COLA, ReLoRA])
def test_the_rank_grows_beyond_that_of_one_pair(method):
    rank = 2
    bench = run(method(rank=rank, lr=0.02, steps_per_round=4))
    lora = run(LoRA(rank=rank, lr=0.02, steps_per_round=4))
    for name in bench.modules:
        ranks = [int(torch.linalg.matrix_rank(bench.update(name, t))) for t in range(4)]
        assert ranks == [0, rank, 2 * rank, 3 * rank]
        assert int(torch.linalg.matrix_rank(lora.update(name))) == rank


def test_pruning_nothing_keeps_the_state_and_pruning_all_keeps_the_step_counter():
    common = {"rank": 2, "lr": 0.01, "steps_per_round": 4}
    for prune, policy in ((0, "keep"), (1, "zero_moments")):
        theirs = XGBLoRA(selection="all", optimizer_state=policy, round_warmup=5, **common)
        assert losses(run(ReLoRA(prune=prune, **common))) == losses(run(theirs))
    fresh = losses(run(COLA(round_warmup=5, **common)))
    some = [losses(run(ReLoRA(prune=prune, **common))) for prune in (0, 0.5, 1)]
    assert len({repr(curve) for curve in [fresh, *some]}) == 4
    assert len({repr(curve[0]) for curve in [fresh, *some]}) == 1  # they differ from the first restart on


def check_pruned(cls, pruning, prune=0.75):
    """The stated share of both moments is zero, and the largest stay where magnitude decides."""
    seen = {}

    class Look(cls):
        def carry(self, state, seed, index):
            seen["before"] = {key: value.clone() for key, value in state.items()}
            seen["after"] = super().carry(state, seed, index)
            return seen["after"]

    run(Look(rank=4, lr=0.01, steps_per_round=4, prune=prune, pruning=pruning), steps=4)
    before, after = seen["before"], seen["after"]
    assert before.keys() == after.keys()
    for key, moment in before.items():
        if key.endswith("/step"):
            assert float(after[key]) == 4
            continue
        kept = after[key] != 0
        assert int((moment != 0).sum()) == moment.numel()
        assert int(kept.sum()) == moment.numel() - int(prune * moment.numel())
        assert torch.equal(after[key][kept], moment[kept])
        if key.endswith("/exp_avg"):
            assert torch.equal(kept, after[f"{key}_sq"] != 0)  # an entry's two moments go together
            if pruning == "magnitude":
                assert moment[kept].abs().min() >= moment[~kept].abs().max()
            else:
                assert moment[kept].abs().min() < moment[~kept].abs().max()


class Forgetful(ReLoRA):
    """Pruning that silently prunes nothing."""

    def carry(self, state, seed, index):
        return state


class EachByItself(ReLoRA):
    """Each moment pruned by its own size."""

    def carry(self, state, seed, index):
        for key, moment in state.items():
            if not key.endswith("/step"):
                order = (moment.abs() if key.endswith("_sq") else -moment.abs()).flatten().argsort()
                moment.view(-1)[order[: int(self.prune * moment.numel())]] = 0
        return state


@pytest.mark.parametrize("pruning", ["magnitude", "random"])
def test_a_restart_prunes_the_stated_share_of_both_moments(pruning):
    check_pruned(ReLoRA, pruning)
    for broken in (Forgetful, EachByItself):
        with pytest.raises(AssertionError):
            check_pruned(broken, pruning)


def test_a_first_moment_without_its_second_would_be_divided_by_zero():
    """A's gradient is 0 at a restart, because B is."""

    def largest(cls):
        method = cls(rank=2, lr=0.02, steps_per_round=4, schedule="constant", prune=0.5)
        bench = bench_of(method)
        bench.run(2, progress=False)
        return max(float(A.abs().max()) for _, A in bench.ensemble[1].values())

    assert largest(ReLoRA) < 1
    assert largest(EachByItself) > 10


def test_random_pruning_depends_on_the_seed_and_the_round_alone():
    method = ReLoRA(rank=2, lr=0.01, steps_per_round=4, pruning="random", prune=0.5)
    bench, again = run(method), run(method)
    assert losses(bench) == losses(again)
    bench.rewind(1)
    bench.run(progress=False)
    assert losses(bench) == losses(again)
    state = {"a/exp_avg": torch.ones(4, 50), "a/exp_avg_sq": torch.ones(4, 50)}
    masks = [
        method.carry({k: v.clone() for k, v in state.items()}, seed, index)["a/exp_avg"]
        for seed, index in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])


@pytest.mark.parametrize("method", [COLA, ReLoRA])
def test_rounds_learn_rewind_and_close(method):
    bench = bench_of(method(rank=3, lr=0.02, steps_per_round=4), steps=24)
    base = snapshot(bench.model)
    bench.run(progress=False)
    curve, live = losses(bench), snapshot(bench.model)
    assert curve[-1][-1] < curve[0][0] - 0.01
    moved = bench.modules[NAME].weight.detach() - base[f"{NAME}.weight"]
    torch.testing.assert_close(bench.update(NAME), moved, atol=1e-6, rtol=1e-4)
    bench.rewind(3)
    bench.run(progress=False)
    assert losses(bench) == curve
    assert equal(snapshot(bench.model), live)
    bench.close()
    assert equal(snapshot(bench.model), base)
    assert not equal(live, base)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prune": 1.5}, "prune must be a number from 0 to 1; got 1.5"),
        ({"pruning": "largest"}, "pruning must be one of magnitude, random; got 'largest'"),
        ({"optimizer_state": "fresh"}, "leave optimizer_state at 'keep'"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ReLoRA(**options)
