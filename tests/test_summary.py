"""The statistics of a race, against scipy, hand computation and simulation."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tiny
from scipy import stats

from xgblora_lab.bench.records import History, Round
from xgblora_lab.racing import summary, ties
from xgblora_lab.tasks.text import load_task

NAN, INF = math.nan, math.inf


def history(probes: list[float], start: float = 3.0) -> History:
    """A run of rounds of ten steps whose probe losses are these."""
    names = {f.name: 0 for f in dataclasses.fields(Round) if f.name != "measurements"}
    names |= {"modules": (), "losses": (1.0,), "learning_rates": (1.0,), "gradient_norms": (1.0,)}
    before = [start, *probes]
    return History(
        "lora",
        rounds=[
            Round(**{**names, "index": t, "step": 10 * (t + 1), "probe_before": before[t], "probe_after": p})
            for t, p in enumerate(probes)
        ],
    )


def test_a_seed_that_diverged_cannot_hide_and_does_not_spoil_the_range() -> None:
    assert str(summary.spread([NAN, 1, 2])) == "2 (1 to 2; 1 of 3 diverged)"
    assert str(summary.spread([NAN, 1, 2], greater_is_better=True)) == "1 (1 to 2; 1 of 3 diverged)"
    assert str(summary.spread([INF, NAN, 2])) == "diverged (2 to 2; 2 of 3 diverged)"
    assert str(summary.spread([NAN])) == "diverged"
    assert str(summary.spread([0.5])) == "0.5"
    assert str(summary.spread([3.0, 1.0, 2.0])) == "2 (1 to 3)"
    assert math.isnan(summary.median([NAN, 1.0]))  # half of the seeds diverged: no number between


def test_the_interval_and_the_p_value_are_students() -> None:
    mine, theirs = [0.81, 0.83, 0.82, 0.86], [0.80, 0.81, 0.83, 0.82]
    found = summary.paired([a - b for a, b in zip(mine, theirs, strict=True)])
    truth = stats.ttest_rel(mine, theirs)
    low, high = truth.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, truth.pvalue))
    assert str(summary.paired([0.5])) == "+0.5"
    assert math.isnan(summary.paired([0.5]).p)
    assert summary.paired([0.0, 0.0]).p == 1.0
    assert summary.paired([0.1, 0.1]).p == 0.0


def reference_holm(p: np.ndarray) -> np.ndarray:
    """As statsmodels' `multipletests(method="holm")` computes it."""
    order = np.argsort(p)
    raw = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(raw, 1)
    return corrected


def test_holm_agrees_with_the_textbook_and_with_the_usual_formula() -> None:
    assert summary.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 20):
        p = random.uniform(size=count) ** 3
        assert summary.holm(p.tolist()) == pytest.approx(reference_holm(p))
        assert count == 1 or summary.holm(p.tolist()) != pytest.approx(
            p
        )  # a correction that does nothing fails
        bonferroni = np.minimum(p * count, 1)
        assert (np.array(summary.holm(p.tolist())) <= bonferroni + 1e-12).all()
    with_gap = summary.holm([0.01, NAN, 0.04])
    assert with_gap[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_gap[1])


def test_the_verdict_turns_with_the_metrics_direction_and_needs_the_correction() -> None:
    better = summary.compare({"a": [0.10, 0.11, 0.12]})["a"]
    assert better.verdict(greater_is_better=True) == "ahead"
    assert better.verdict(greater_is_better=False) == "behind"
    worse = summary.compare({"a": [-0.10, -0.11, -0.12]})["a"]
    assert (worse.verdict(True), worse.verdict(False)) == ("behind", "ahead")
    near = [0.10, 0.13, 0.06]  # p = 0.045: enough alone, not among four
    assert 0.01 < summary.paired(near).p < 0.05
    assert summary.compare({"a": near})["a"].verdict(True) == "ahead"
    among = summary.compare({"a": near, "b": [0.1, -0.1, 0], "c": [0.2, -0.1, 0], "d": [0.1, 0.3, -0.2]})
    assert among["a"].verdict(True) == "cannot be told apart"
    assert among["a"].low == pytest.approx(summary.paired(near).low)
    assert summary.compare({"a": [0.10, 0.11, NAN]})["a"].verdict(True) == "cannot be told apart"
    assert summary.compare({"a": [0.1]})["a"].verdict(True) == "cannot be told apart"


def test_seeds_to_tell_has_the_power_it_promises() -> None:
    differences = [0.01, 0.05, 0.03, -0.01]
    n = summary.seeds_to_tell(differences)
    mean, deviation = np.mean(differences), np.std(differences, ddof=1)
    random = np.random.default_rng(0)

    def power(count: int) -> float:
        draws = random.normal(mean, deviation, (40_000, count))
        return float((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean())

    assert power(int(n)) >= 0.79
    assert power(int(n) - 1) < 0.8
    # Cohen's table: an effect of half a deviation takes 34 pairs
    half = np.array([1.0, -1.0]) / math.sqrt(2) + 0.5
    assert summary.seeds_to_tell(half.tolist()) == 34
    assert summary.seeds_to_tell([1.0, -1.0001]) == INF
    assert summary.paired([1.0, -1.0001]).seeds_in_words == "more than 100"
    assert summary.paired([1.0, 1.0 + 1e-9]).seeds_in_words == "2"
    assert summary.paired([1.0]).seeds_in_words == ""


def test_the_best_trial_and_the_edges_of_what_was_tried() -> None:
    assert summary.best([NAN, 3.0, 1.0, 1.0]) == 2
    assert summary.best([NAN, 3.0, 1.0, INF], greater_is_better=True) == 1
    with pytest.raises(ValueError, match="at least one"):
        summary.best([])
    tried = [0.1, 0.3, 1.0]
    assert [summary.edge(v, tried) for v in tried] == ["lowest", "", "highest"]
    assert summary.edge(0.1, [0.1, 0.1]) == ""


def test_steps_to_a_loss_end_at_the_first_round_that_reached_it() -> None:
    run = history([2.0, NAN, 1.5, 1.0, 1.6])
    assert summary.steps_to(run, 1.5) == 30
    assert summary.steps_to(run, 1.4999) == 40
    assert summary.steps_to(run, 0.5) == INF
    assert summary.steps_to(run, NAN) == INF
    assert summary.steps_until([10, 20], [0.4, 0.6], 0.5, greater_is_better=True) == 20
    assert summary.steps_in_words([30, 40, INF]) == "40"
    assert summary.steps_in_words([30, INF, INF]) == "not reached"


class Labelled(SimpleNamespace):
    labels: ClassVar[list[str]] = ["no", "yes"]
    kind = "classification"

    def size(self, split: str) -> int:
        return len(self.splits.get(split, ()))


def labelled(metric: str, counts: tuple[int, int]) -> Labelled:
    rows = [SimpleNamespace(label=c) for c, n in enumerate(counts) for _ in range(n)]
    return Labelled(metric=metric, splits={"dev": rows})


def test_the_majority_class_scores_what_a_constant_answer_scores() -> None:
    assert ties.majority_score(labelled("accuracy", (3, 7)), "dev") == pytest.approx(0.7)
    assert ties.majority_score(labelled("accuracy", (3, 7)), "dev", limit=4) == pytest.approx(0.75)
    assert ties.majority_score(labelled("matthews", (3, 7)), "dev") == 0
    assert ties.majority_score(labelled("f1", (3, 7)), "dev") == pytest.approx(14 / 17)
    assert ties.majority_score(labelled("loss", (3, 7)), "dev") is None
    assert ties.majority_score(labelled("accuracy", (3, 7)), "test") is None
    rows = {"text": ["a b", "c d", "e f"], "label": [0, 1, 1]}
    task = load_task({"train": rows, "dev": rows}, tiny.tiny_tokenizer(), kind="classification")
    assert ties.majority_score(task, "dev") == pytest.approx(2 / 3)


def test_a_race_that_says_nothing_is_called_so() -> None:
    moved, stuck = [history([2.0, 1.0])], [history([2.999, 2.99])]
    scores = {"a": [0.7, 0.7, 0.7], "b": [0.7, 0.69, 0.71]}
    assert "majority class (0.7)" in ties.tie(scores, True, 0.7, moved)
    assert ties.tie({**scores, "c": [0.8, 0.9, 0.7]}, True, 0.7, moved) == ""
    assert ties.tie(scores, True, None, moved) == ""
    assert "has not left its start" in ties.tie({**scores, "c": [0.9]}, True, 0.7, stuck)
    assert "has not left its start" in ties.tie({}, True, None, [history([NAN])])
    assert ties.tie({}, True) == ""
