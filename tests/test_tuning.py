"""Equal trials, pruning that depends on scores alone, grids that grow until the best rate is inside."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from test_summary import history

from xgblora_lab.bench.records import History
from xgblora_lab.methods import Full, LoRA, XGBLoRA
from xgblora_lab.racing.race import _plans
from xgblora_lab.racing.tuning import BESIDE, EXTRA, STEP, Trial, plan, rates, tune


class Recorder:
    """Stands for the loop: a trial's loss is a function of its logarithmic rate."""

    def __init__(self, loss: Callable[[float], float]) -> None:
        self.loss, self.calls = loss, []

    def __call__(self, trials: Sequence[Trial], share: float) -> list[History | None]:
        self.calls.append((share, [(t.label, t.lr) for t in trials]))
        found: list[History | None] = []
        for trial in trials:
            run = history([self.loss(math.log10(trial.lr))])
            run.settings = dataclasses.replace(run.settings, lr=trial.lr)
            run.scores = {"dev": run[-1].probe_after, "early_loss": run[-1].probe_after}
            found.append(run)
        return found

    def count(self, share: float) -> int:
        return sum(len(trials) for s, trials in self.calls if s == share)


def valley(middle: float) -> Callable[[float], float]:
    return lambda x: 1 + (x - middle) ** 2


def test_every_method_has_the_same_number_of_trials_over_its_own_knobs() -> None:
    lora = plan("lora", LoRA(), LoRA.knobs(120), 8)
    boosted = plan("xgblora", XGBLoRA(), XGBLoRA.knobs(120), 8)
    full = plan("full", Full(), Full.knobs(120), 8)
    assert [len(p) for p in (lora, boosted, full)] == [8, 8 - BESIDE, 8]
    for trials in (lora, full):
        found = [t.lr for t in trials]
        assert [b / a for a, b in itertools.pairwise(found)] == pytest.approx([STEP] * 7, rel=1e-4)
        assert type(trials[0].method)().lr in found
    assert {t.knobs.get("steps_per_round") for t in boosted} == {6, 20, 25, 40, 120}
    assert {t.knobs.get("backfit") for t in boosted} == {None, 2}
    for count in range(4, 17):  # no trial twice
        many = plan("xgblora", XGBLoRA(), XGBLoRA.knobs(120), count)
        assert len({(t.lr, tuple(t.knobs.items())) for t in many}) == count - BESIDE
    assert all(t.method.steps_per_round == t.knobs.get("steps_per_round", 20) for t in boosted)
    assert LoRA.knobs(120) == [{}]
    assert rates(1e-2, 1) == [1e-2]


def test_the_better_third_goes_on_and_the_rest_ends_after_half_of_the_plan() -> None:
    run = Recorder(valley(-3))
    trials = plan("lora", LoRA(lr=1e-3), [{}], 9)
    found = tune({"lora": trials}, run, ["lora"])["lora"]
    assert run.count(1 / 2) == 9
    assert run.count(1.0) == 3
    assert found.best is not None
    assert found.trials[found.best].lr == pytest.approx(1e-3)
    assert sorted(found.runs) == [3, 4, 5]
    whole = Recorder(valley(-3))
    tune({"lora": trials}, whole)  # not adapted: nothing is pruned
    assert (whole.count(1 / 2), whole.count(1.0)) == (0, 9)


def test_of_few_trials_three_go_on_and_one_alone_is_the_method_as_it_is() -> None:
    run = Recorder(valley(-3))
    tune({"lora": plan("lora", LoRA(lr=1e-3), [{}], 6)}, run, ["lora"])
    assert (run.count(1 / 2), run.count(1.0)) == (6, 3)
    plans, adapt = _plans(["lora", "xgblora"], {}, None, 1, 120)
    assert [[trial.method for trial in trials] for trials in plans.values()] == [[LoRA()], [XGBLoRA()]]
    assert adapt == []
    assert _plans(["lora"], {}, None, 2, 120)[1] == ["lora"]


def test_a_best_rate_on_an_edge_extends_the_grid_until_it_is_inside() -> None:
    for middle, side in ((-1.5, "highest"), (-4.4, "lowest")):
        trials = plan("lora", LoRA(lr=1e-3), [{}], 8)
        assert not min(t.lr for t in trials) < 10**middle < max(t.lr for t in trials)
        fixed = tune({"lora": trials}, Recorder(valley(middle)))["lora"]
        assert fixed.edge == side
        grown = tune({"lora": trials}, Recorder(valley(middle)), ["lora"])["lora"]
        assert grown.edge == ""
        assert grown.best is not None
        assert abs(math.log10(grown.trials[grown.best].lr) - middle) < 0.126
    inside = tune({"lora": trials}, Recorder(valley(-3)), ["lora"])["lora"]
    assert len(inside.trials) == 8  # nothing is added where the best one is inside


def test_the_rates_beside_the_best_trial_are_tried_with_its_other_knobs() -> None:
    best = XGBLoRA.knobs(120)[4]

    class Knobs(Recorder):
        def __call__(self, trials: Sequence[Trial], share: float) -> list[History | None]:
            found = super().__call__(trials, share)
            for trial, run in zip(trials, found, strict=True):
                if run is not None and trial.knobs != best:
                    run.scores = {name: value + 9 for name, value in run.scores.items()}
            return found

    plans = {"xgblora": plan("xgblora", XGBLoRA(lr=1e-2), XGBLoRA.knobs(120), 8)}
    for middle, count in ((-2, 8), (-1.5, 10)):  # the planned number where the best rate is the middle one
        found = tune(plans, Knobs(valley(middle)), ["xgblora"])["xgblora"]
        assert found.best is not None
        top = found.trials[found.best]
        assert top.knobs == best
        assert math.log10(top.lr) == pytest.approx(middle, abs=1e-4)
        assert found.edge == ""
        assert len(found.trials) == count


def test_a_rate_that_was_cut_is_run_to_the_end_where_it_lies_beside_the_best() -> None:
    class Early(Recorder):
        """Before the decay of the rate, a rate ten times smaller looks best."""

        def __call__(self, trials: Sequence[Trial], share: float) -> list[History | None]:
            found = super().__call__(trials, share)
            for trial, run in zip(trials, found, strict=True):
                if run is not None:
                    run.scores["early_loss"] = self.loss(math.log10(trial.lr) + 1)
            return found

    trials = plan("lora", LoRA(lr=1e-3), [{}], 9)
    run = Early(valley(-2.75))
    found = tune({"lora": trials}, run, ["lora"])["lora"]
    assert found.best is not None
    first = max(math.log10(lr) for share, called in run.calls[1:2] for _, lr in called)
    assert first < -3.4  # what the cut left over
    assert math.log10(found.trials[found.best].lr) == pytest.approx(-2.75, abs=1e-3)
    assert found.edge == ""
    assert len(found.trials) == 9  # all were there already


def test_the_grid_does_not_grow_for_ever_and_says_so() -> None:
    run = Recorder(lambda x: -x)
    plans = {"a": plan("a", LoRA(), [{}], 4), "b": plan("b", LoRA(), [{}], 4)}
    found = tune(plans, run, ["a", "b"])
    assert [len(t.trials) for t in found.values()] == [4 + EXTRA] * 2
    assert [t.edge for t in found.values()] == ["highest"] * 2


def test_trials_that_diverged_or_failed_are_never_chosen() -> None:
    run = Recorder(lambda x: math.nan if x > -3 else 1.0)
    found = tune({"lora": plan("lora", LoRA(lr=1e-3), [{}], 4)}, run)["lora"]
    assert found.best is not None
    assert found.trials[found.best].lr <= 1e-3
    none = tune({"lora": plan("lora", LoRA(), [{}], 4)}, lambda trials, share: [None] * len(trials), ["lora"])
    assert none["lora"].best is None
    assert none["lora"].edge == ""
