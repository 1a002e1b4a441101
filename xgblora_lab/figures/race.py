"""Figure 5: the convergence race, any metric against any budget, beside the learning-rate sweep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._entries import AXES, Entry, best, cost, entries, middle, series, spread
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import Array, brief, listed, number, plural, setting, unit
from xgblora_lab.figures._style import GREY, INK, Style, layout, log_ticks, ratio_axis, say, style


@dataclass(frozen=True)
class _Lane:
    """One method's chosen entry: its median curve, its spread, its sweep."""

    entry: Entry
    sweep: tuple[Entry, ...]
    tuned: bool  # the race marked the learning rate (else it is picked here)
    mid: Array
    low: Array
    high: Array
    costs: dict[str, Array]  # axis → median over seeds of what was spent by every round's end

    @property
    def look(self) -> Style:
        return style(self.entry.method, self.entry.variant)

    def spent(self, axis: str) -> Array:
        return self.costs[axis]


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

    `x`: step, adapter_steps, tokens, seconds, flops, peak_parameters or total_parameters; `menu` puts a list
    to choose from into the figure, which needs no kernel. `y`: `"residual"` (loss), a field of the record or
    a scalar measurement. `score`: the key of `History.scores` that the sweep ranks by; default "dev", else
    the last `y`. `target`: the value that steps-to-target counts to; default the worst method's best median,
    which every method reached. Of each method the learning rate marked by `settings["chosen"]` is drawn;
    without a mark, the best in the sweep. Raises ValueError for an unknown `x`, or a `y` that no history has.
    """
    runs = listed(histories)
    if x not in AXES:
        raise ValueError(f"A race has no axis {x!r}; it has {', '.join(AXES)}.")
    runs = [h for h in runs if len(h)]
    if not runs:
        return blank("Convergence race", "No history in this race has a round yet: run the race first.")
    if not any(_has(h, y) for h in runs):
        raise ValueError(
            f"No history measured {y!r}: use 'residual', a field of Round, or a hook's measurement."
        )
    if score is None and y == "residual" and all("dev" in h.scores for h in runs):
        score = "dev"  # what `race` tunes by
    greater = _greater(runs[0], y, greater_is_better)
    ranked = _greater(runs[0], score, greater_is_better) if score else greater

    def rank_by(history: History) -> float:
        return number(history.scores.get(score)) if score else float(series(history, y)[-1])

    lanes = _lanes(runs, y, greater, rank_by, ranked)
    goal = target if target is not None else _goal(lanes, greater) if len(lanes) > 1 else math.nan
    swept = any(len({e.lr for e in lane.sweep}) > 1 for lane in lanes)
    plot = make_subplots(
        rows=1, cols=2 if swept else 1, column_widths=[0.66, 0.34] if swept else None,
        horizontal_spacing=0.13,
        subplot_titles=("", "learning-rate sweep") if swept else None,
    )  # fmt: skip
    for lane in lanes:
        _draw(plot, lane, x)
    if math.isfinite(goal):
        plot.add_hline(y=goal, line={"color": GREY, "dash": "dot", "width": 2}, row=1, col=1)
    if swept:
        for lane in lanes:
            _sweep(plot, lane, rank_by, ranked)
    name = f"loss ({unit(runs[0])})" if y == "residual" else y.replace("_", " ")
    seeds = max(len(lane.entry.runs) for lane in lanes)
    note = (
        f"median and range over {plural(seeds, 'seed')}"
        if seeds > 1
        else "one seed: differences may be chance"
    )
    layout(
        plot,
        f"{'Residual loss' if y == 'residual' else name} by budget: {plural(len(lanes), 'method')}",
        note,
        620,
    )
    told = _score_name(runs[0], score) if score else f"last {'residual loss' if y == 'residual' else name}"
    _axes(plot, lanes, x, name, told, swept)
    if math.isfinite(goal):
        height = math.log10(goal) if plot.layout.yaxis.type == "log" else goal  # plotly's convention
        plot.add_annotation(
            text=f"target {brief(goal)}", x=0.01, xref="x domain", xanchor="left", y=height, yref="y",
            yanchor="bottom", showarrow=False, font={"size": 15, "color": INK},
        )  # fmt: skip
    if menu:
        _menu(plot, lanes, x)
    if not any(np.isfinite(lane.spent(x)).any() for lane in lanes):
        say(plot, _unspent(x), xref="x domain", yref="y domain")
    elif not any(np.isfinite(lane.mid).any() for lane in lanes):
        say(
            plot,
            "No run of this race has a finite value: all diverged. Lower the learning rates and race again.",
        )
    table = _table(lanes, goal, greater, rank_by, told)
    return Figure(plot, _words(lanes, table, goal, greater, y, rank_by, ranked), table)


def _has(history: History, y: str) -> bool:
    return y == "residual" or any(hasattr(r, y) or y in r.measurements for r in history)


def _score_name(history: History, score: str) -> str:
    """`race` keeps the metric's value on a split under the split's name."""
    return (
        f"{score} {setting(history, 'metric', '')}".strip()
        if score in ("dev", "test")
        else score.replace("_", " ")
    )


def _greater(history: History, name: str | None, given: bool | None) -> bool:
    if given is not None:
        return given
    if name in ("dev", "test"):
        return bool(setting(history, "greater_is_better", False))
    if name is None or any(
        word in name for word in ("loss", "residual", "probe", "perplexity", "error", "distance")
    ):
        return False
    return bool(setting(history, "greater_is_better", True))


def _lanes(runs: Sequence[History], y: str, greater: bool, rank_by: Any, ranked: bool) -> list[_Lane]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries(runs):
        groups.setdefault(entry.label, []).append(entry)
    lanes = []
    for group in groups.values():
        entry, tuned = best(group, rank_by, ranked)
        mid, low, high = spread([series(h, y) for h in entry.runs], greater)
        spent = {axis: spread([cost(h, axis) for h in entry.runs], greater=True)[0] for axis in AXES}
        lanes.append(_Lane(entry, tuple(group), tuned or len(group) == 1, mid, low, high, spent))
    return lanes


def _goal(lanes: Sequence[_Lane], greater: bool) -> float:
    reached = [
        float(np.nanmax(lane.mid) if greater else np.nanmin(lane.mid))
        for lane in lanes
        if np.isfinite(lane.mid).any()
    ]
    return (min(reached) if greater else max(reached)) if reached else math.nan


def _draw(plot: go.Figure, lane: _Lane, x: str) -> None:
    """Three traces per method, in the order that the menu relies on: band, its edge, the median."""
    at, name = lane.spent(x), lane.entry.label
    hidden = {
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    several = len(lane.entry.runs) > 1
    edges = (lane.low, lane.high) if several else (lane.mid, lane.mid)
    plot.add_scatter(x=at, y=edges[0], **hidden, row=1, col=1)
    plot.add_scatter(
        x=at, y=edges[1], fill="tonexty", fillcolor=_faint(lane.look.colour), **hidden, row=1, col=1
    )
    plot.add_scatter(
        x=at, y=lane.mid, name=name, legendgroup=name, mode="lines+markers", line=lane.look.line(3.5),
        marker=lane.look.points(), row=1, col=1, hovertemplate="%{x:,}: %{y:.4g}<extra>" + name + "</extra>",
    )  # fmt: skip


def _sweep(plot: go.Figure, lane: _Lane, rank_by: Any, greater: bool) -> None:
    scores = [[rank_by(h) for h in e.runs] for e in lane.sweep]
    mid = [middle(s, greater) for s in scores]
    here = lane.sweep.index(lane.entry)
    plot.add_scatter(
        x=[e.lr for e in lane.sweep], y=mid, name=lane.entry.label, legendgroup=lane.entry.label,
        showlegend=False,
        mode="lines+markers", line=lane.look.line(2.5), marker=lane.look.points(9), row=1, col=2,
        hovertemplate="lr %{x:.3g}: %{y:.4g}<extra>" + lane.entry.label + "</extra>",
    )  # fmt: skip
    plot.add_scatter(
        x=[lane.entry.lr], y=[mid[here]], name="chosen", legendgroup=lane.entry.label, showlegend=False,
        mode="markers",
        marker={"symbol": "circle-open", "size": 22, "color": lane.look.colour, "line": {"width": 3}}, row=1,
        col=2,
        hovertemplate="chosen: lr %{x:.3g}, %{y:.4g}<extra>" + lane.entry.label + "</extra>",
    )  # fmt: skip


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _axis_type(lanes: Sequence[_Lane], x: str) -> str:
    return (
        ratio_axis(np.concatenate([lane.spent(x) for lane in lanes]), 50)
        if x.endswith("parameters")
        else "linear"
    )


def _axes(plot: go.Figure, lanes: Sequence[_Lane], x: str, name: str, told: str, swept: bool) -> None:
    kind = ratio_axis(np.concatenate([lane.mid for lane in lanes])) if name.startswith("loss") else "linear"
    plot.update_xaxes(title_text=AXES[x], type=_axis_type(lanes, x), row=1, col=1)
    every = np.concatenate([lane.mid for lane in lanes])
    ticks = log_ticks(every) if kind == "log" else {"type": kind}
    plot.update_yaxes(title_text=name, **ticks, row=1, col=1)
    if swept:
        plot.update_xaxes(title_text="learning rate (ring: chosen)", type="log", dtick=1, row=1, col=2)
        plot.update_yaxes(title_text=told, **(ticks if told.startswith("last") else {}), row=1, col=2)


def _menu(plot: go.Figure, lanes: Sequence[_Lane], x: str) -> None:
    """A list of budgets in the figure; each entry moves the three traces of every method."""
    known = [axis for axis in AXES if any(np.isfinite(lane.spent(axis)).any() for lane in lanes)]
    buttons = [
        {
            "label": AXES[axis].partition(" (s")[0], "method": "update",
            "args": [
                {"x": [lane.spent(axis) for lane in lanes for _ in range(3)]},
                {"xaxis.title.text": AXES[axis], "xaxis.type": _axis_type(lanes, axis),
                "xaxis.autorange": True},
                list(range(3 * len(lanes))),
            ],
        }
        for axis in known
    ]  # fmt: skip
    if len(buttons) > 1:
        active = known.index(x) if x in known else 0
        plot.update_layout(
            updatemenus=[{
                "buttons": buttons, "active": active, "x": 0, "xanchor": "left", "y": 1.02,
                "yanchor": "bottom",
                "direction": "down", "showactive": True, "font": {"size": 15},
            }],
            margin={"t": 140},
        )  # fmt: skip


def _unspent(x: str) -> str:
    if x == "flops":
        return 'No floating-point operations were counted: add a hook that measures "flops" per round.'
    return f"No run of this race recorded {AXES[x]}."


def _reached(lane: _Lane, goal: float, greater: bool) -> float:
    """Steps at the end of the first round whose median has reached the goal; nan if none has."""
    hit = lane.mid >= goal if greater else lane.mid <= goal
    return float(lane.spent("step")[int(np.argmax(hit))]) if hit.any() else math.nan


def _table(lanes: Sequence[_Lane], goal: float, greater: bool, rank_by: Any, name: str) -> pd.DataFrame:
    rows = []
    for lane in lanes:
        finals = [rank_by(h) for h in lane.entry.runs]
        finite = [v for v in finals if math.isfinite(v)] or [math.nan]
        row: dict[str, Any] = {
            "method": lane.entry.label, "lr": lane.entry.lr if lane.entry.lr >= 0 else math.nan,
            "lrs tried": len(lane.sweep), "seeds": len(finals),
            "diverged": sum(not math.isfinite(v) for v in finals),
            f"{name} (median)": middle(finals, greater), "lowest": min(finite), "highest": max(finite),
        }  # fmt: skip
        if math.isfinite(goal):
            row[f"steps to {brief(goal)}"] = _reached(lane, goal, greater)
        tests = [number(h.scores["test"]) for h in lane.entry.runs if "test" in h.scores]
        if tests:
            row[_score_name(lane.entry.runs[0], "test")] = middle(
                tests, _greater(lane.entry.runs[0], "test", None)
            )
        row |= {axis.replace("_", " "): float(lane.spent(axis)[-1]) for axis in AXES}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in ("flops",) if table[c].isna().all()])


def _words(
    lanes: Sequence[_Lane],
    table: pd.DataFrame,
    goal: float,
    greater: bool,
    y: str,
    rank_by: Any,
    ranked: bool,
) -> str:
    column = next(c for c in table.columns if c.endswith("(median)"))
    order = table.sort_values(column, ascending=not ranked)
    columns = (order[c] for c in ("method", column, "lowest", "highest", "seeds"))
    parts = [
        f"{name} {brief(value)}" + (f" ({brief(low)} to {brief(high)})" if count > 1 else "")
        for name, value, low, high, count in zip(*columns, strict=True)
    ]
    seeds = int(table["seeds"].max())
    over = "median (range) over seeds" if seeds > 1 else "one seed"
    text = f"{column.removesuffix(' (median)').capitalize()}, best first, {over}: "
    text += "; ".join(parts) + "."
    if math.isfinite(goal):
        steps = [_reached(lane, goal, greater) for lane in lanes]
        counts = [
            f"{lane.entry.label} {brief(s) if math.isfinite(s) else 'never'}"
            for lane, s in zip(lanes, steps, strict=True)
        ]
        text += f" Steps to {brief(goal)}: {', '.join(counts)}."
    for lane in lanes:
        tried = [e for e in lane.sweep if e.lr >= 0]
        if len(tried) < 2:
            text += f" {lane.entry.label} was run at one learning rate only: it is not tuned."
        elif lane.entry.lr in (tried[0].lr, tried[-1].lr):
            text += (
                f" {lane.entry.label}'s learning rate is at the edge of its sweep; a better one may exist."
            )
        if not lane.tuned:
            text += f" {lane.entry.label}'s learning rate was picked here, by its best last value."
        broken = sum(not math.isfinite(rank_by(h)) for h in lane.entry.runs)
        if broken:
            text += f" {lane.entry.label} diverged in {broken} of {plural(len(lane.entry.runs), 'run')}."
    return text
