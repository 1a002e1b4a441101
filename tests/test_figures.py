"""Every figure: its traces, values and axes, its text twin, and the histories that have little to show."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import tiny
from synthetic import MODULES, TRUTH, cells, history, race
from toy import ToyTask

from xgblora_lab import figures
from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History, RunSettings
from xgblora_lab.methods import METHODS, Method, XGBLoRA, make_method
from xgblora_lab.racing import Race


def traces(figure: figures.Figure, name: str) -> list[go.Scatter]:
    return [t for t in figure.plot.data if t.name == name]


def notes(figure: figures.Figure) -> str:
    return " ".join(a.text.replace("<br>", " ") for a in figure.plot.layout.annotations)


RUN = {
    "loss": figures.loss,
    "spectrum": figures.spectrum,
    "ranks": figures.ranks,
    "alignment": figures.alignment,
    "race": figures.race,
    "gains": figures.gains,
    "costs": figures.costs,
    "intruders": figures.intruders,
    "pareto": figures.pareto,
    "sweep": figures.sweep,
}
DEGENERATE = {
    "one round": history(rounds=1),
    "no hook": history(hooks=False),
    "nan from the start": history(diverged_at=0),
    "nan from round 5": history(diverged_at=5),
    "another method": history("lora", rank=8),
    "bare": History("xgblora", rounds=history(hooks=False).rounds),
    "no rounds": History("xgblora"),
    "measured": history(rounds=4, measures=True),
    "measured, then nan": history(rounds=4, measures=True, diverged_at=2),
}


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_histories_give_a_figure_and_a_sentence(name: str, case: str) -> None:
    figure = RUN[name](DEGENERATE[case])
    assert figure.text.endswith(".")
    assert figure.plot.layout.title.text
    assert figure.plot.layout.font.size >= 16
    assert len(figure.plot.data) > 0 or notes(figure) == figure.text
    json.loads(figure.plot.to_json())
    assert "nan" not in figure.text.lower().split()


@pytest.mark.parametrize("name", RUN)
def test_figures_leave_the_history_as_it_was(name: str) -> None:
    run = history(rounds=5)
    before = json.dumps(run.to_dict())
    RUN[name](run)
    assert json.dumps(run.to_dict()) == before


@pytest.mark.parametrize("name", RUN)
def test_a_saved_history_draws_the_same_figure(name: str, tmp_path) -> None:
    run = history(rounds=6, diverged_at=4)
    run.save(tmp_path / "history.jsonl")
    again = History.load(tmp_path / "history.jsonl")
    first, second = RUN[name](run), RUN[name](again)
    assert first.text == second.text
    assert first.plot.to_json() == second.plot.to_json()


def test_every_axis_with_numbers_has_a_title() -> None:
    for figure in (
        figures.loss(history()),
        figures.race(race()),
        figures.costs(race()),
        figures.alignment(history()),
    ):
        axes = list(figure.plot.select_xaxes())
        axes += [
            a for a in figure.plot.select_yaxes() if a.showticklabels is not False and a.showgrid is not False
        ]
        assert all(a.title.text for a in axes)


# Figure 1: the staircase.


def test_staircase_steps_down_at_every_round() -> None:
    run = history(rounds=10)
    figure = figures.loss(run, floor=0.5)
    (stairs,) = traces(figure, "residual loss, probe batch")
    assert stairs.line.shape == "hv"
    assert list(stairs.x) == [0, *(r.step for r in run)]
    assert list(stairs.y) == [run[0].probe_before, *(r.probe_after for r in run)]
    (inside,) = traces(figure, "training loss at every step")
    assert len([x for x in inside.x if x is not None]) == 200
    (floor,) = traces(figure, "floor")
    assert list(floor.y) == [0.5, 0.5]
    assert figure.plot.layout.xaxis.title.text == "optimizer steps"
    assert figure.plot.layout.yaxis.title.text == "loss (nats)"
    assert len(figure.table) == 10
    assert f"{run[-1].probe_after:.3g}" in figure.text


def test_the_floor_may_differ_from_round_to_round() -> None:
    run = history(rounds=3)
    (floor,) = traces(figures.loss(run, floor=[3.0, 2.0, 1.0, 0.5]), "floor")
    assert (list(floor.x), list(floor.y)) == ([0, 20, 40, 60], [3.0, 2.0, 1.0, 0.5])
    assert floor.line.shape == "hv"
    assert traces(figures.loss(run), "floor") == []


def test_staircase_without_probe_uses_the_rounds_own_batch() -> None:
    run = history(rounds=4)
    run.rounds = [replace(r, probe_before=math.nan, probe_after=math.nan) for r in run]
    figure = figures.loss(run)
    (stairs,) = traces(figure, "residual loss, own batch")
    assert list(stairs.y) == [run[0].loss_before, *(r.loss_after for r in run)]
    assert "own batch" in figure.text


def test_staircase_says_when_the_run_diverged() -> None:
    figure = figures.loss(history(diverged_at=5))
    assert "From round 5 on" in figure.text
    assert "diverged in round 5" in notes(figure)
    assert "diverged" not in figures.loss(history()).text


def test_staircases_of_a_race_show_only_the_chosen_learning_rate() -> None:
    figure = figures.loss(race(seeds=2), floor=0.5)
    assert len(figure.plot.data) == 3 * 2 + 1  # methods × seeds, and the floor
    assert sum(bool(t.showlegend) for t in figure.plot.data[:-1]) == 3


# Figure 2: the spectrum.


def test_spectrum_shows_every_round_in_the_heat_map_and_the_frames() -> None:
    run = history(rounds=12)
    figure = figures.spectrum(run, MODULES[0])
    (heat,) = [t for t in figure.plot.data if t.type == "heatmap"]
    assert np.asarray(heat.z).shape == (8, 12)
    assert 10 ** np.asarray(heat.z)[0, -1] == pytest.approx(run[-1].measurements["spectrum"][MODULES[0]][0])
    assert np.isnan(np.asarray(heat.z)[1, 0])  # one booster, one singular value
    assert [f.name for f in figure.plot.frames] == [str(t) for t in range(12)]
    assert len(figure.plot.layout.sliders[0].steps) == len(figure.frame_texts) == 12
    (target,) = traces(figure, "target")
    assert list(target.y) == pytest.approx(TRUTH[MODULES[0]])
    assert figure.plot.layout.yaxis.type == "log"
    assert figure.plot.layout.xaxis2.title.text == "round t"
    assert "has reached" in figure.text


def test_scrubbing_moves_the_spectrum_and_the_loss_and_nothing_else() -> None:
    run = history(rounds=12)
    figure = figures.spectrum(run, MODULES[0])
    before = [t.to_plotly_json() for t in figure.plot.data]
    moved = set(figure.plot.frames[0].traces)
    text = figure.scrub(3)
    assert text.startswith("After round 3: 2 singular values")
    (current,) = traces(figure, "after the round under the slider")
    shown = np.asarray(current.y, dtype=float)
    assert shown[np.isfinite(shown)] == pytest.approx(run[3].measurements["spectrum"][MODULES[0]])
    dot = figure.plot.data[-1]
    assert (list(dot.x), list(dot.y)) == ([3], [run[3].probe_after])
    for i, trace in enumerate(figure.plot.data):
        same = json.dumps(trace.to_plotly_json(), default=str) == json.dumps(before[i], default=str)
        assert same == (i not in moved)


def test_scrubbing_200_rounds_recomputes_nothing() -> None:
    run = history(rounds=200)
    start = time.perf_counter()
    figure = figures.spectrum(run)
    built = time.perf_counter() - start
    start = time.perf_counter()
    for t in range(0, 200, 10):
        figure.scrub(t)
    assert (time.perf_counter() - start) / 20 < built / 5  # a redraw is a fraction of building


def test_a_module_that_was_not_chosen_keeps_its_spectrum() -> None:
    run = history(rounds=3)
    first = {"spectrum": {MODULES[0]: [2.0, 1.0]}}
    later = {"spectrum": {MODULES[1]: [3.0]}}
    run.rounds = [replace(r, measurements=later if r.index else first) for r in run]
    figure = figures.spectrum(run, MODULES[0])
    heat = next(t for t in figure.plot.data if t.type == "heatmap")
    assert 10 ** np.asarray(heat.z)[:2, 2] == pytest.approx([2.0, 1.0])


def test_full_fine_tuning_may_be_the_target() -> None:
    full = history("full", rank=8)
    figure = figures.spectrum(history(), MODULES[0], target=full)
    (target,) = traces(figure, "full, last round")
    assert list(target.y) == pytest.approx(full[-1].measurements["spectrum"][MODULES[0]])
    reached = history()[-1].measurements["spectrum"][MODULES[0]][0] / target.y[0]
    assert f"Full, last round: {target.y[0]:.3g}" in figure.text
    assert f"is {reached:.3g} times its" in figure.text  # a reference run is nothing to reach in per cent


def test_missing_hook_and_unknown_module_are_said_in_words() -> None:
    bare = history(hooks=False)
    for draw in (figures.spectrum, figures.ranks):
        assert "Spectrum()" in notes(draw(bare))
    assert "No alignment was measured" in notes(figures.alignment(bare))
    with pytest.raises(ValueError, match=r"'nowhere'.*measured are"):
        figures.spectrum(history(), "nowhere")
    with pytest.raises(ValueError, match="'nowhere'"):
        figures.ranks(history(), "nowhere")


# Figures 3 and 4.


def test_rank_growth_obeys_its_bound() -> None:
    run = history(rounds=12)  # each of six modules chosen four times
    figure = figures.ranks(run)
    last = figure.table[figure.table["round"] == 11]
    assert set(last["module"]) == set(MODULES)
    assert (last["numerical rank"] == 4).all()
    assert (last["bound"] == 4).all()
    assert ((last["stable rank"] >= 1) & (last["stable rank"] <= last["effective rank"])).all()
    assert (last["effective rank"] <= last["numerical rank"]).all()
    (bound,) = traces(figure, "bound: 1 × times chosen")
    assert list(bound.y) == pytest.approx([2 * (t + 1) / 6 for t in range(12)])
    assert "no module exceeds" in figure.text
    assert figure.plot.layout.yaxis.title.text == "rank"


def test_a_rank_above_its_bound_is_called_an_error() -> None:
    run = history(rounds=6)
    run.settings = replace(run.settings, rank_bound=0)
    assert "this is an error" in figures.ranks(run).text


def test_lora_does_not_grow_beyond_its_rank() -> None:
    figure = figures.ranks(history("lora", rank=4))
    (bound,) = traces(figure, "bound: 4")
    assert set(bound.y) == {4.0}


def test_alignment_draws_modules_and_their_median() -> None:
    run = history(rounds=8)
    figure = figures.alignment(run)
    (median,) = traces(figure, "mean squared cosine, median")
    expected = np.median(list(run[-1].measurements["alignment"].values()))
    assert median.y[-1] == pytest.approx(expected)
    assert len(traces(figure, "one module")) == 2 * len(MODULES)
    assert figure.plot.layout.yaxis.range == (0, 1.04)
    assert len(figure.table) == 8 * len(MODULES)


# Figure 5: the race.


def test_race_draws_the_median_over_seeds_of_the_marked_learning_rate() -> None:
    runs = race(seeds=3)
    figure = figures.race(runs)
    (line,) = [t for t in traces(figure, "lora") if t.xaxis == "x"]
    chosen = [h for h in runs if h.method == "lora" and h.settings.chosen]
    assert list(line.y) == pytest.approx(np.median([[r.probe_after for r in h] for h in chosen], axis=0))
    assert list(line.x) == [r.step for r in chosen[0]]
    sweep = [t for t in traces(figure, "lora") if t.xaxis == "x2"]
    assert list(sweep[0].x) == [1e-3, 1e-2, 1e-1]
    rings = traces(figure, "chosen")
    assert [ring.x[0] for ring in rings] == [1e-2] * 3
    assert figure.plot.layout.xaxis2.type == "log"
    assert list(figure.table["method"]) == ["xgblora", "lora", "full"]
    assert (figure.table["lrs tried"] == 3).all()
    assert "edge of its sweep" not in figure.text


def test_the_dev_score_ranks_the_sweep_of_a_real_race() -> None:
    runs = race(seeds=1)
    for run in runs:
        run.scores = {"dev": 0.9 if run.settings.lr == 1e-1 else 0.5, "test": 0.7}
        better = {"metric": "accuracy", "greater_is_better": True}
        run.settings = replace(run.settings, **better, chosen=False)
    figure = figures.race(runs)
    assert (figure.table["lr"] == 1e-1).all()
    assert (figure.table["dev accuracy (median)"] == 0.9).all()
    assert (figure.table["test accuracy"] == 0.7).all()
    assert figure.plot.layout.yaxis2.title.text == "dev accuracy"
    assert "edge of its sweep" in figure.text


def test_a_sweep_compares_rates_over_the_seeds_that_all_of_them_have() -> None:
    tried = race(seeds=3)
    for run in (
        tried
    ):  # the chosen rate is the best with seed 0, by which it was chosen, and the worst with the others
        lucky = run.settings.chosen == (run.settings.seed == 0)
        run.scores = {"dev": 0.9 if lucky else 0.1}
        run.settings = replace(run.settings, metric="accuracy", greater_is_better=True)
    runs = [run for run in tried if run.settings.chosen or run.settings.seed == 0]
    drawn = [t for t in figures.race(runs).plot.data if t.xaxis == "x2"]
    assert {tuple(t.y) for t in drawn} == {(0.1, 0.9, 0.1), (0.9,)}
    table = figures.sweep(runs).table
    assert (table["behind"] > 0).tolist() == [True, False, True] * 3
    assert (figures.sweep(tried).table["behind"] > 0).tolist() == [False, True, False] * 3  # as all seeds say


def test_race_axes() -> None:
    runs = race(seeds=1, grid=(1e-2,))
    for x, title in figures.AXES.items():
        figure = figures.race(runs, x=x)
        log = figure.plot.layout.xaxis.type == "log"
        assert figure.plot.layout.xaxis.title.text == title + ", log scale" * log
    boosting = figures.race(runs, x="adapter_steps").plot.data[2]
    assert boosting.x[-1] == 20 * 20 * 2
    totals = figures.race(runs, x="total_parameters").plot.data[2]
    assert list(totals.x) == [512 * (t + 1) for t in range(20)]
    assert "No floating-point operations" in notes(figures.race(runs, x="flops"))
    with pytest.raises(ValueError, match="no axis 'epochs'"):
        figures.race(runs, x="epochs")
    with pytest.raises(ValueError, match="measured 'beauty'"):
        figures.race(runs, y="beauty")


def test_the_menu_of_a_race_moves_its_curves_without_a_kernel() -> None:
    figure = figures.race(race())
    buttons = figure.plot.layout.updatemenus[0].buttons
    tokens = next(b for b in buttons if b.label == "tokens")
    assert len(tokens.args[0]["x"]) == len(tokens.args[2]) == 9
    assert tokens.args[1]["xaxis.title.text"] == "tokens"
    assert all(b.label != figures.AXES["flops"] for b in buttons)


def test_steps_to_target_and_its_negative() -> None:
    runs = race(seeds=1)
    figure = figures.race(runs, target=1.0)
    by_name = figure.table.set_index("method")["steps to 1"]
    full = next(h for h in runs if h.method == "full" and h.settings.chosen)
    assert by_name["full"] == next(r.step for r in full if r.probe_after <= 1.0)
    assert by_name["full"] < by_name["xgblora"]
    never = figures.race(runs, target=0.1)
    assert never.table["steps to 0.1"].isna().all()
    assert "never" in never.text


def test_an_unmarked_race_picks_the_best_learning_rate_and_says_so() -> None:
    runs = race(seeds=1)
    for run in runs:
        run.settings = replace(run.settings, chosen=False)
    figure = figures.race(runs)
    assert (figure.table["lr"] == 1e-2).all()
    assert "picked here" in figure.text


def test_untuned_and_edge_learning_rates_are_named() -> None:
    assert "it is not tuned" in figures.race(race(grid=(1e-2,))).text
    edge = [h for h in race() if h.settings.lr >= 1e-2]
    assert "edge of its sweep" in figures.race(edge).text


def test_a_diverged_seed_counts_as_the_worst() -> None:
    runs = [history(seed=s, diverged_at=None if s == 0 else 3) for s in range(3)]
    figure = figures.race(runs)
    assert "diverged in 2 of 3 runs" in figure.text
    assert math.isnan(figure.table["last residual loss (median)"][0])


def test_labels_of_one_method_share_a_colour_and_differ_in_dash_and_marker() -> None:
    runs = [history("lora", rank=r, label=f"LoRA r={r}", hooks=False) for r in (1, 8)]
    figure = figures.race(runs)
    one, eight = traces(figure, "LoRA r=1")[0], traces(figure, "LoRA r=8")[0]
    assert one.line.color == eight.line.color
    assert one.line.dash != eight.line.dash
    assert one.marker.symbol != eight.marker.symbol


# Figures 6, 7, 8.


def test_gain_is_split_equally_where_no_hook_credits_it() -> None:
    run = history(rounds=9)
    figure = figures.gains(run)
    table = figure.table.set_index("name")
    assert table["gain"].sum() == pytest.approx(run[0].probe_before - run[-1].probe_after)
    assert table.loc[MODULES[0], "gain"] == pytest.approx(sum(run[t].gain / 2 for t in (0, 3, 6)))
    assert (table["times chosen"] == 3).all()
    assert "split equally" in figure.text
    heat = next(t for t in figure.plot.data if t.type == "heatmap")
    assert np.isfinite(np.asarray(heat.z, dtype=float)).sum() == 18  # two modules in each of nine rounds


def test_gain_measured_by_a_hook_is_used_as_it_is() -> None:
    run = history(rounds=3)
    run.rounds = [replace(r, measurements={"gain": {MODULES[0]: 0.3, MODULES[1]: -0.1}}) for r in run]
    figure = figures.gains(run)
    assert figure.table.set_index("name").loc[MODULES[1], "gain"] == pytest.approx(-0.3)
    assert "split equally" not in figure.text


def test_gain_by_layer_and_left_out_rounds() -> None:
    given = history(rounds=6)
    yielded = iter([(1, {"loss": 1.0}), (0, {"loss": 2.0})])
    same = figures.gains(given, left_out=yielded, whole=given[-1].probe_after).text
    figure = figures.gains(given, by="layer", left_out={"0": 2.0, "1": 1.0})
    assert same.endswith(figure.text.rpartition("each.")[2])
    assert set(figure.table["name"]) == {f"model.layers.{i}" for i in range(3)}
    bars = [t for t in figure.plot.data if t.type == "bar"]
    final = history(rounds=6)[-1].probe_after
    assert list(bars[1].y) == pytest.approx([2.0 - final, 1.0 - final])
    assert "Leaving out round 0 raises the loss most" in figure.text
    with pytest.raises(ValueError, match="'module' or by 'layer'"):
        figures.gains(history(), by="head")


def test_map_is_centred_on_a_draw() -> None:
    figure = figures.boosting_map(cells())
    heat = figure.plot.data[0]
    z = np.asarray(heat.z, dtype=float)
    assert z.shape == (3, 3)
    assert heat.zmin == -heat.zmax
    assert z[1, 1] == 0  # steepness 1, budget 400: a draw
    assert z[2, 0] < 0 < z[0, 2]
    assert heat.text[1][1] == "1×"
    assert "4 of 9 cells" in figure.text
    as_dict = figures.boosting_map({(c["steepness"], c["budget"]): c["ratio"] for c in cells()})
    assert as_dict.text == figures.boosting_map(pd.DataFrame(cells())).text == figure.text


def test_map_with_little_or_wrong_input() -> None:
    assert "no finite ratio" in figures.boosting_map([]).text
    assert "1 cell without" in figures.boosting_map({(1, 1): 0.5, (1, 2): math.nan}).text
    with pytest.raises(ValueError, match="lacks ratio"):
        figures.boosting_map([{"steepness": 1, "budget": 2}])
    with pytest.raises(ValueError, match="negative"):
        figures.boosting_map({(1, 1): -1.0})


def test_costs_are_medians_of_the_chosen_runs() -> None:
    figure = figures.costs(race())
    table = figure.table.set_index("method")
    assert table.loc["lora", "trainable bytes"] == 4 * 4096
    assert table.loc["lora", "optimizer bytes"] == 8 * 4096
    assert table.loc["xgblora", "seconds per step"] == pytest.approx(0.025)
    assert [t.name for t in figure.plot.data] == ["trainable", "gradients", "optimizer", "seconds per step"]
    assert figure.plot.layout.xaxis.type == "log"
    assert "512 times" in figure.text


# Figures 9, 10, 11: the sweep, the score's price, intruders.


def swept() -> Race:
    """A race with all kinds of trials: finished, ended early, failed, diverged; two runs of the best."""
    runs = race(seeds=1)
    for run in runs:
        better = {"metric": "accuracy", "greater_is_better": True}
        run.settings, run.scores = replace(run.settings, **better), {"dev": 0.8}
    trials = [
        {"label": "lora", "lr": lr, "knobs": {}, "chosen": dev == 0.8, "dev": dev}
        for lr, dev in ((1e-4, None), (1e-3, 0.6), (1e-2, 0.8), (1e-1, None), (1.0, "nan"))
    ]
    trials.append({"label": "lora", "lr": 1e-2, "knobs": {"rank": 2}, "chosen": False, "dev": 0.7})
    return Race(runs, trials=trials, failures={"lora, lr 0.1, seed 0": "RuntimeError: out of memory"})


def test_the_sweep_has_every_trial_of_a_race_and_how_it_ended() -> None:
    figure = figures.sweep(swept())
    table = figure.table.set_index("lr")
    assert table["outcome"].to_dict() == {
        1e-4: "ended early",
        1e-3: "finished",
        1e-2: "finished",
        1e-1: "failed",
        1.0: "diverged",
    }
    assert table.loc[1e-2, "dev accuracy"] == 0.8  # the better one of its two sets of knobs
    assert table.loc[1e-3, "behind"] == pytest.approx(0.25)
    (dots,) = traces(figure, "finished")
    assert list(dots.x) == [1e-3, 1e-2]
    assert dots.marker.size[0] < dots.marker.size[1]
    assert list(dots.marker.color) == pytest.approx([0.25, 0])
    assert [list(t.x) for name in ("chosen", "failed or diverged") for t in traces(figure, name)] == [
        [1e-2],
        [1e-1, 1.0],
    ]
    assert figure.plot.layout.xaxis.type == "log"
    assert "chosen 0.01 with 0.8, the best other 25 % behind" in figure.text
    assert "Failed: lora at 0.1. Diverged: lora at 1." in figure.text
    assert "edge" not in figure.text


def test_a_sweep_of_histories_rings_the_marked_rate_or_says_that_none_is() -> None:
    figure = figures.sweep(race(seeds=2))
    assert list(figure.table[figure.table["chosen"]]["lr"]) == [1e-2] * 3
    assert traces(figure, "failed or diverged") == []
    assert "marked" not in figure.text
    worse = race(seeds=1, grid=(1e-3, 1e-2))
    for run in worse:
        run.settings = replace(run.settings, chosen=False)
    figure = figures.sweep(worse)
    assert "No run was marked" in figure.text
    assert figure.text.count("edge of its sweep") == 3
    broken = [history(lr=lr, diverged_at=3 if lr == 1 else None) for lr in (0.1, 1)]
    (cross,) = traces(figures.sweep(broken), "failed or diverged")
    assert list(cross.x) == [1]
    assert "it is not tuned" in figures.sweep(history()).text


def test_a_trial_without_a_dev_score_is_ranked_by_its_history() -> None:
    told = Race(
        race(seeds=1), trials=[{"label": "lora", "lr": 1.0, "knobs": {}, "chosen": True, "dev": None}]
    )
    assert figures.sweep(told).text == figures.sweep(race(seeds=1)).text


def scored(measures: bool = True) -> list[History]:
    """Three methods with two seeds each; boosting forgets less, and LoRA is dominated by full fine-tuning."""
    runs = [h for h in race(seeds=2, measures=measures) if h.settings.chosen]
    for run in runs:
        run.settings = replace(run.settings, metric="accuracy", greater_is_better=True)
        test = {"xgblora": 0.7, "lora": 0.75, "full": 0.8}[run.method] + 0.02 * run.settings.seed
        run.scores = {"dev": 0.1, "test": test}
    return runs


def test_the_front_has_what_no_other_method_beats() -> None:
    runs = scored()
    figure = figures.pareto(runs)
    table = figure.table.set_index("method")
    for run in runs[:2]:
        cost = run[-1].measurements["forgetting"]
        assert cost in [x for t in traces(figure, "xgblora") for x in t.x]
    assert table.loc["full", "test accuracy (median)"] == pytest.approx(0.81)
    assert table["front"].to_dict() == {"xgblora": True, "lora": False, "full": True}
    (front,) = traces(figure, "Pareto front")
    assert list(front.y)[1:-1] == pytest.approx([0.71, 0.81])
    assert figure.plot.layout.xaxis.type is None
    small, large = traces(figure, "lora")
    assert (len(small.x), len(large.x)) == (2, 1)
    assert large.marker.size > small.marker.size
    assert "no worse in the other than: lora" in figure.text
    lower = figures.pareto(runs, greater_is_better=False).table.set_index("method")
    assert lower["front"].to_dict() == {"xgblora": True, "lora": False, "full": False}


def test_memory_is_gradients_and_optimizer_on_a_logarithmic_axis() -> None:
    figure = figures.pareto(scored(), x="memory")
    assert figure.table.set_index("method").loc["lora", "memory"] == 12 * 4096
    assert figure.plot.layout.xaxis.type == "log"
    assert figure.table["front"].all()  # each pays more and is better
    assert "lora (0.76 at 49.2 kB)" in figure.text
    assert figures.pareto(scored(), x="seconds").table["seconds"].tolist() == pytest.approx([10, 16, 16])


def test_a_front_says_what_it_lacks() -> None:
    assert "No forgetting was measured" in notes(figures.pareto(scored(measures=False)))
    mixed = [h for h in scored() if h.method != "full"] + scored(measures=False)[-2:]
    assert figures.pareto(mixed).text.endswith("Not measured: full.")
    broken = scored()
    broken[0].scores["test"] = math.nan
    figure = figures.pareto(broken)
    assert "xgblora diverged in 1 of 2 runs" in figure.text
    assert not figure.table.set_index("method").loc["xgblora", "front"]  # a seed that diverged is the worst
    with pytest.raises(ValueError, match=r"against 'beauty'; accepted are forgetting, memory"):
        figures.pareto(scored(), x="beauty")
    with pytest.raises(ValueError, match="No history has the score 'f1'; scores are: dev, test"):
        figures.pareto(scored(), score="f1")


def test_intruders_are_means_over_modules_and_medians_over_seeds() -> None:
    runs = race(seeds=3, measures=True)
    figure = figures.intruders(runs)
    mine = [h for h in runs if h.method == "lora" and h.settings.chosen]
    means = [np.mean(list(h[-1].measurements["intruders"].values())) for h in mine]
    (line,) = traces(figure, "lora")
    assert line.y[-1] == pytest.approx(np.median(means))
    assert list(line.x) == [r.step for r in mine[0]]
    last = figure.table[(figure.table["method"] == "lora") & (figure.table["steps"] == 400)].iloc[0]
    assert (last["lowest"], last["highest"]) == pytest.approx((min(means), max(means)))
    assert (last["seeds"], last["modules"]) == (3, 6)
    assert "median and range over 3 seeds" in figure.plot.layout.title.subtitle.text
    assert "fewest first: full" in figure.text
    assert "Not measured" not in figure.text


def test_intruders_name_the_methods_in_which_none_were_measured() -> None:
    assert "hooks=[Intruders()]" in notes(figures.intruders(race(seeds=1)))
    runs = [history(measures=True), history("lora")]
    figure = figures.intruders(runs)
    assert figure.text.endswith("Not measured: lora.")
    assert traces(figure, "lora") == []
    assert "one seed" in figure.plot.layout.title.subtitle.text


# The common language.


def test_every_method_is_told_apart_in_colour_and_in_grey() -> None:
    styles = [figures.style(name) for name in figures.METHODS]
    assert len({(s.colour, s.dash) for s in styles}) == len(styles)
    assert len({(s.dash, s.marker) for s in styles}) == len(styles)
    assert figures.style("LoRA_GA") == figures.style("lora-ga")
    assert figures.style("a method to come") == figures.style("a method to come")


def test_a_figure_shows_itself_in_words() -> None:
    figure = figures.costs(race())
    assert str(figure).startswith(figure.text)
    assert "xgblora" in str(figure).splitlines()[2]
    assert figure._repr_mimebundle_()["text/plain"] == str(figure)


def test_figures_refuse_what_is_not_a_history() -> None:
    with pytest.raises(ValueError, match="not dict"):
        figures.loss([{}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="empty"):
        figures.race([])
    with pytest.raises(ValueError, match="one run and got 2"):
        figures.spectrum([history(), history()])


# The settings of a run.


def test_settings_come_back_from_json_and_refuse_what_they_do_not_know() -> None:
    settings = history(versions={"torch": "2.13.0"}).settings
    assert RunSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert RunSettings.from_dict({"lr": 0.1, "seed": 3}) == RunSettings(lr=0.1, seed=3)
    with pytest.raises(ValueError, match="Unknown setting floor of a run; accepted: label, options"):
        RunSettings.from_dict({"floor": 0.5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.options["rank"] = 2  # type: ignore[index]


def test_a_run_is_called_by_its_label_else_by_its_method() -> None:
    run = History("xgblora")
    assert (run.label, History().label) == ("xgblora", "run")
    run.label = "XGBLoRA"
    assert run.settings.to_dict() == replace(run.settings, label="XGBLoRA").to_dict()  # a rate may be nan
    assert figures.loss(history(label="mine")).text.startswith("mine: in 20 rounds")


# What a method states about its rank, against what it does.


def trained(method: Method) -> History:
    """Four rounds of a method on a small model, with the spectra."""
    bench = Bench(tiny.tiny_llama(), ToyTask(), method, steps=8, batch_size=4, hooks=[Spectrum()])
    with bench:
        return bench.run(progress=False)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_is_called_an_error(name: str) -> None:
    few = {"gora": {"passes": 2}, "lora-ga": {"passes": 2}, "alora": {"every": 1, "score_rows": 4}}
    fields = {f.name for f in dataclasses.fields(METHODS[name])}
    rank = {"rank": 2} if "rank" in fields else {}
    run = trained(make_method(name, steps_per_round=2, **rank, **few.get(name, {})))
    figure = figures.ranks(run)
    assert "error" not in figure.text
    assert run.settings.merges == (name in ("xgblora", "relora", "cola"))
    bounded = name not in ("full", "dora")
    assert figure.table["bound"].notna().all() == bounded
    assert ("no module exceeds its own" in figure.text) == bounded


def test_a_new_merging_method_has_its_bound_without_being_listed() -> None:
    @dataclasses.dataclass
    class Twice(XGBLoRA):
        """Boosters of rank 2 on all modules, under a name that the package does not know."""

        rank: int = 2
        selection: str = "all"

        name: ClassVar[str] = "twice"

    figure = figures.ranks(trained(Twice(steps_per_round=2)))
    last = figure.table[figure.table["round"] == 3]
    assert (last["bound"] == 8).all()
    assert (last["numerical rank"] == 8).all()
    assert "no module exceeds its own" in figure.text


def test_ranks_that_move_may_gather_on_one_module() -> None:
    method = make_method("alora", rank=4, reallocations=1)
    assert method.rank_bound(2) == 4 + 1  # one of the eight ranks moves
    assert make_method("alora", rank=4).rank_bound(2) == 8  # and never more than there are
    assert make_method("gora", rank=4).rank_bound(2) == 16
    assert make_method("gora", rank=4, r_max=6).rank_bound(2) == 6
    assert make_method("pissa", rank=4).rank_bound(2) == 8


# Figures at home, in the dark, and as images.


def test_no_figure_offers_to_send_itself_to_a_cloud() -> None:
    from plotly.io import renderers

    from xgblora_lab.figures._figure import keep_at_home

    foreign = go.Figure({"data": [{"type": "scatter", "y": [1, 2]}]})
    mime = "application/vnd.plotly.v1+json"
    keep_at_home()
    for plot in (foreign, figures.loss(history()).plot):
        shown = renderers["plotly_mimetype"].to_mimebundle(plot.to_dict())[mime]
        assert shown["config"]["showSendToCloud"] is False


def test_the_dark_sheet_gives_every_ink_a_twin_and_no_method() -> None:
    sheet = figures.dark("#page")
    assert sheet.startswith("@media screen")
    assert '#page .js-plotly-plot [style*="fill: rgb(34, 34, 34)"]' in sheet
    for look in map(figures.style, figures.METHODS):
        rgb = ", ".join(str(int(look.colour[i : i + 2], 16)) for i in (1, 3, 5))
        assert (f"rgb({rgb})" in sheet) == (look.colour == "#000000")  # black alone vanishes in the dark


def test_a_figure_is_saved_as_a_page_and_says_what_an_image_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = figures.loss(history())
    figure.save(tmp_path / "loss.html")
    page = (tmp_path / "loss.html").read_text(encoding="utf-8")
    assert '"showSendToCloud": false' in page
    assert "Plotly.downloadImage(plot" in page
    assert "{plot_id}" not in page
    monkeypatch.setattr(go.Figure, "to_image", lambda self, **options: options["format"].encode())
    figure.save(tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").read_bytes() == b"svg"

    def missing(self: go.Figure, **options: object) -> bytes:
        raise ValueError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(go.Figure, "to_image", missing)
    with pytest.raises(RuntimeError, match=r"needs kaleido .+ save a page \(loss\.html\): its buttons save"):
        figure.save(tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
    with pytest.raises(ValueError, match=r"loss\.gif ends in neither"):
        figure.save(tmp_path / "loss.gif")


def test_the_toolbar_has_room_of_its_own_beside_titles_and_colour_bars() -> None:
    for draw in RUN.values():
        plot = draw(history(measures=True)).plot
        assert plot.layout.modebar.orientation == "v"
        assert plot.layout.margin.r >= 44
    assert figures.boosting_map(cells()).plot.layout.margin.r >= 44 + 80


def test_a_logarithmic_axis_says_so() -> None:
    for draw in (*RUN.values(), lambda runs: figures.boosting_map(cells())):
        plot = draw(history(measures=True)).plot
        for name in plot.layout:
            if name.startswith(("xaxis", "yaxis")) and plot.layout[name].type == "log":
                assert "log scale" in plot.layout[name].title.text


def test_a_bright_cell_is_a_large_value_in_every_heat_map() -> None:
    heats = [
        t
        for draw in (figures.spectrum, figures.gains)
        for t in draw(history()).plot.data
        if t.type == "heatmap"
    ]
    assert len(heats) == 2
    for heat in heats:
        first, last = heat.colorscale[0][1], heat.colorscale[-1][1]
        light = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (first, last)]
        assert light[0] < light[1]
        assert not heat.reversescale


def test_a_run_beside_stands_where_it_had_done_as_many_steps() -> None:
    run, other = history(rounds=6), history("lora", rounds=3, rank=8)
    other.rounds = [replace(r, step=2 * r.step) for r in other]
    figure = figures.spectrum(run, MODULES[0], beside=other)
    loss, spectrum = traces(figure, "beside: lora")
    assert list(loss.x) == pytest.approx([-1, 1, 3, 5])
    assert loss.y[-1] == other[-1].probe_after
    values = other[0].measurements["spectrum"][MODULES[0]]
    figure.scrub(1)
    assert [v for v in spectrum.y if v == v] == pytest.approx(values)
    figure.scrub(0)  # the run beside had not yet ended a round
    assert not [v for v in spectrum.y if v == v]
    assert traces(figures.spectrum(run, MODULES[0]), "beside: lora") == []


def test_the_panels_share_one_axis_of_rounds_on_which_a_round_is_marked() -> None:
    plot = figures.spectrum(history()).plot
    assert plot.layout.hoversubplots == "axis"
    assert plot.layout.xaxis2.spikemode == "across"
    assert {t.yaxis for t in plot.data if t.xaxis == "x2"} == {"y2", "y3"}


def test_one_matrix_shows_the_least_loss_of_the_rank_reached() -> None:
    from xgblora_lab import matrix

    model, task = matrix(d=4, k=4)
    with Bench(model, task, XGBLoRA(steps_per_round=2), steps=4, batch_size=1, hooks=[Spectrum()]) as bench:
        run = bench.run(progress=False)
    (least,) = traces(figures.spectrum(run), "least loss of that rank")
    assert list(least.y) == pytest.approx([task.floor(rank) for rank in range(3)])
    empty = figures.spectrum(History("xgblora", run.settings), planned=5)
    assert traces(empty, "target")
    assert empty.plot.layout.xaxis2.range[1] > 4
    assert "no round yet" in empty.text
