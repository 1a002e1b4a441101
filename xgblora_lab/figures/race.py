"""The convergence race: any metric against any budget, beside the learning-rate sweep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._lanes import AXES, Lane, Measure, in_words, lanes, measure_of, rises, score_name
from xgblora_lab.figures._read import brief, listed, number, plural, unit
from xgblora_lab.figures._style import GREY, banded, layout, log_ticks, ratio_axis, say, scaled
from xgblora_lab.racing.summary import edge, median, spread


def race(
    histories: History | Iterable[History],
    x: str = "step",
    y: str = "residual",
    *,
    score: str | None = None,
    greater_is_better: bool | None = None,
    target: float | None = None,
    menu: bool = True,
) -> Figure:
    """Every method's `y` against the budget `x` (median, range over seeds), beside the learning-rate sweep.

    Of each method the runs that the race chose are drawn; without a choice, those at the best learning rate
    of the sweep.

    Parameters
    ----------
    histories : History or iterable of History
        The runs of a race, those of its sweep too.
    x : str, default "step"
        One of `AXES`: step, adapter_steps, tokens, seconds, flops, peak_parameters, total_parameters.
    y : str, default "residual"
        "residual" (the loss), a field of `Round`, or a scalar measurement.
    score : str, optional
        The key of `History.scores` that the sweep ranks by. Default: "dev" where `y` is the loss and every
        run has it, else the last `y`.
    greater_is_better : bool, optional
        Of `y` and the score. Default: what the task says of its metric; losses and distances fall.
    target : float, optional
        The value that steps are counted to. Default: the worst method's best median.
    menu : bool, default True
        Whether the figure has a list of budgets to choose from, which needs no kernel.

    Returns
    -------
    Figure
        With one row per method in its table.

    Raises
    ------
    ValueError
        Where there is no history, for an unknown `x`, or a `y` that no history has.
    """
    runs = listed(histories)
    if x not in AXES:
        raise ValueError(f"A race has no axis {x!r}; it has {', '.join(AXES)}.")
    runs = [h for h in runs if len(h)]
    if not runs:
        return blank("Convergence race", "No history in this race has a round yet: run the race first.")
    measure = measure_of(runs, y, score, greater_is_better)
    field = lanes(runs, measure)
    goal = target if target is not None else _goal(field, measure.greater)
    told = in_words(runs[0], measure)
    table = _table(field, goal, measure, told)
    name = f"loss ({unit(runs[0])})" if y == "residual" else y.replace("_", " ")
    plot = _plot(field, x, measure, name, told)
    _draw_goal(plot, goal)
    if menu:
        _menu(plot, field, x)
    return Figure(plot, _words(field, table, goal, measure, told), table)


def _plot(field: Sequence[Lane], x: str, measure: Measure, name: str, told: str) -> go.Figure:
    """Curves and sweep with their axes; name, told: what they show, in words."""
    swept = any(len({e.lr for e in lane.sweep}) > 1 for lane in field)
    plot = _canvas(swept)
    for lane in field:
        _draw(plot, lane, x)
    for lane in field if swept else ():
        _draw_sweep(plot, lane, measure)
    _layout(plot, field, name)
    _axes(plot, field, x, name, told if swept else None)
    _say_what_is_missing(plot, field, x)
    return plot


def _goal(field: Sequence[Lane], greater: bool) -> float:
    """The worst method's best median; nan for a single method."""
    curves = [lane.mid[np.isfinite(lane.mid)] for lane in field]
    reached = [float(curve.max() if greater else curve.min()) for curve in curves if curve.size]
    if len(field) < 2 or not reached:
        return math.nan
    return min(reached) if greater else max(reached)


def _canvas(swept: bool) -> go.Figure:
    if not swept:
        return make_subplots(rows=1, cols=1)
    titles = ("", "sweep (ring: chosen)")
    return make_subplots(
        rows=1, cols=2, column_widths=[0.66, 0.34], horizontal_spacing=0.13, subplot_titles=titles
    )


def _draw(plot: go.Figure, lane: Lane, x: str) -> None:
    """Three traces per method, on which the menu relies."""
    low, high = (lane.low, lane.high) if len(lane.entry.runs) > 1 else (lane.mid, lane.mid)
    banded(plot, lane.spent[x], (lane.mid, low, high), lane.label, lane.look, row=1, col=1)


def _draw_sweep(plot: go.Figure, lane: Lane, measure: Measure) -> None:
    name, look = lane.label, lane.look
    here = {"legendgroup": name, "showlegend": False, "row": 1, "col": 2}
    plot.add_scatter(
        x=[e.lr for e in lane.sweep],
        y=[measure.middle(e) for e in lane.sweep],
        name=name,
        mode="lines+markers",
        line=look.line(2.5),
        marker=look.points(9),
        hovertemplate="lr %{x:.3g}: %{y:.4g}<extra>" + name + "</extra>",
        **here,
    )
    plot.add_scatter(
        x=[lane.entry.lr],
        y=[measure.middle(e) for e in lane.sweep if e.lr == lane.entry.lr],
        name="chosen",
        mode="markers",
        marker={"symbol": "circle-open", "size": 22, "color": look.colour, "line": {"width": 3}},
        hovertemplate="chosen: lr %{x:.3g}, %{y:.4g}<extra>" + name + "</extra>",
        **here,
    )


def _draw_goal(plot: go.Figure, goal: float) -> None:
    if not math.isfinite(goal):
        return
    look = {"color": GREY, "dash": "dot", "width": 2}
    # in the legend, where no curve runs through its words
    plot.add_hline(y=goal, line=look, row=1, col=1, name=f"target {brief(goal)}", showlegend=True)


def _layout(plot: go.Figure, field: Sequence[Lane], name: str) -> None:
    seeds = max(len(lane.entry.runs) for lane in field)
    note = f"median and range over {plural(seeds, 'seed')}"
    what = "Residual loss" if name.startswith("loss (") else name
    title = f"{what} by budget: {plural(len(field), 'method')}"
    layout(plot, title, note if seeds > 1 else "one seed: differences may be chance", 620)


def _axis_type(field: Sequence[Lane], x: str) -> str:
    if not x.endswith("parameters"):
        return "linear"
    return ratio_axis(np.concatenate([lane.spent[x] for lane in field]), 50)


def _axes(plot: go.Figure, field: Sequence[Lane], x: str, name: str, told: str | None) -> None:
    """told: what the sweep shows, where it is drawn."""
    every = np.concatenate([lane.mid for lane in field])
    kind = ratio_axis(every) if name.startswith("loss") else "linear"
    ticks = log_ticks(every) if kind == "log" else {"type": kind}
    spent = _axis_type(field, x)
    plot.update_xaxes(title_text=scaled(AXES[x], spent), type=spent, row=1, col=1)
    plot.update_yaxes(title_text=scaled(name, kind), **ticks, row=1, col=1)
    if told is not None:
        plot.update_xaxes(title_text="learning rate, log scale", type="log", dtick=1, row=1, col=2)
        plot.update_yaxes(title_text=told, **(ticks if told.startswith("last") else {}), row=1, col=2)


def _menu(plot: go.Figure, field: Sequence[Lane], x: str) -> None:
    """A list of budgets in the figure; each entry moves the three traces of every method."""
    known = [axis for axis in AXES if any(np.isfinite(lane.spent[axis]).any() for lane in field)]
    if len(known) < 2:
        return
    traces = list(range(3 * len(field)))
    buttons = []
    for axis in known:
        moved = {"x": [lane.spent[axis] for lane in field for _ in range(3)]}
        kind = _axis_type(field, axis)
        titles = {"xaxis.title.text": scaled(AXES[axis], kind), "xaxis.type": kind}
        args = [moved, titles | {"xaxis.autorange": True}, traces]
        buttons.append({"label": AXES[axis].partition(" (s")[0], "method": "update", "args": args})
    menu = {"buttons": buttons, "active": known.index(x) if x in known else 0, "direction": "down"}
    menu |= {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "font": {"size": 15}}
    plot.update_layout(updatemenus=[menu | {"showactive": True}], margin={"t": 140})


def _say_what_is_missing(plot: go.Figure, field: Sequence[Lane], x: str) -> None:
    if not any(np.isfinite(lane.spent[x]).any() for lane in field):
        message = f"No run of this race recorded {AXES[x]}."
        if x == "flops":
            message = 'No floating-point operations were counted: add a hook that measures "flops" per round.'
        say(plot, message, xref="x domain", yref="y domain")
    elif not any(np.isfinite(lane.mid).any() for lane in field):
        message = (
            "No run of this race has a finite value: all diverged. Lower the learning rates and race again."
        )
        say(plot, message)


def _table(field: Sequence[Lane], goal: float, measure: Measure, told: str) -> pd.DataFrame:
    rows = []
    for lane in field:
        runs = lane.entry.runs
        ends = spread([measure.final(h) for h in runs], measure.ranked)
        row: dict[str, Any] = {
            "method": lane.label,
            "lr": lane.entry.lr if lane.entry.lr >= 0 else math.nan,
            "lrs tried": len(lane.sweep),
            "seeds": ends.count,
            "diverged": ends.diverged,
            f"{told} (median)": ends.median,
            "lowest": ends.low,
            "highest": ends.high,
        }
        if math.isfinite(goal):
            row[f"steps to {brief(goal)}"] = measure.steps(lane.entry, goal)
        if tests := [number(h.scores["test"]) for h in runs if "test" in h.scores]:
            row[score_name(runs[0], "test")] = median(tests, rises(runs[0], "test"))
        row |= {axis.replace("_", " "): float(lane.spent[axis][-1]) for axis in AXES}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.drop(columns="flops") if table["flops"].isna().all() else table


def _words(field: Sequence[Lane], table: pd.DataFrame, goal: float, measure: Measure, told: str) -> str:
    ordered = table.sort_values(f"{told} (median)", ascending=not measure.ranked)
    parts = []
    for _, row in ordered.iterrows():
        text = f"{row['method']} {brief(row[f'{told} (median)'])}"
        several = f" ({brief(row['lowest'])} to {brief(row['highest'])})"
        parts.append(text + (several if row["seeds"] > 1 else ""))
    over = "median (range) over seeds" if table["seeds"].max() > 1 else "one seed"
    text = f"{told[:1].upper()}{told[1:]}, best first, {over}: {'; '.join(parts)}."
    if math.isfinite(goal):
        steps = dict(zip(table["method"], table[f"steps to {brief(goal)}"], strict=True))
        counts = [f"{name} {brief(s) if math.isfinite(s) else 'never'}" for name, s in steps.items()]
        text += f" Steps to {brief(goal)}: {', '.join(counts)}."
    broken = dict(zip(table["method"], table["diverged"], strict=True))
    return text + "".join(_caution(lane, told, int(broken[lane.label])) for lane in field)


def _caution(lane: Lane, told: str, diverged: int) -> str:
    """What to know about a method's learning rate and its seeds before believing its curve."""
    name, text = lane.label, ""
    tried = [e.lr for e in lane.sweep if e.lr >= 0]
    if len(tried) < 2:
        text += f" {name} was run at one learning rate only: it is not tuned."
    elif edge(lane.entry.lr, tried):
        text += f" {name}'s learning rate is at the edge of its sweep; a better one may exist."
    if not lane.tuned:
        text += f" {name}'s learning rate was picked here, by its best {told}."
    if diverged:
        text += f" {name} diverged in {diverged} of {plural(len(lane.entry.runs), 'run')}."
    return text
