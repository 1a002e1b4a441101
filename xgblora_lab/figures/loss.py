"""The residual loss, round by round, as a staircase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import (
    array,
    brief,
    chosen,
    listed,
    number,
    plural,
    residual,
    starting_loss,
    subject,
    unit,
    variants,
)
from xgblora_lab.figures._style import GREY, INK, layout, log_ticks, ratio_axis, say, scaled, style

Floor = float | Sequence[float] | None


def loss(histories: History | Iterable[History], *, floor: Floor = None, log: bool | None = None) -> Figure:
    """Residual loss against optimizer steps: a staircase with one step per round.

    One history shows the loss inside every round, before and after it on its own batch, and on the probe
    batch. Several are compared on the probe.

    Parameters
    ----------
    histories : History or iterable of History
        Of a race, only the runs at the chosen options are drawn.
    floor : float or sequence of float, optional
        The least loss possible (Eckart–Young's tail, the teacher's loss): one number, or one for the base
        and one for every round.
    log : bool, optional
        Whether the loss axis is logarithmic. Default: where the losses span more than a factor of eight.

    Returns
    -------
    Figure
        With one row per run and round in its table.

    Raises
    ------
    ValueError
        Where there is no history.
    """
    runs = [h for h in chosen(listed(histories)) if len(h)]
    if not runs:
        return blank("Residual loss", "This history has no rounds yet: run the bench for a round first.")
    one = runs[0] if len(runs) == 1 else None
    least = _floor_by_step(runs[0], floor)
    plot = go.Figure()
    if one is not None:
        _inside(plot, one)
    _stairs(plot, runs)
    if least is not None:
        line = {"color": INK, "dash": "dot", "width": 2, "shape": "hv"}
        hover = "floor: %{y:.4g}<extra></extra>"
        plot.add_scatter(x=least[0], y=least[1], mode="lines", name="floor", line=line, hovertemplate=hover)
    who = subject(one) if one else plural(len({h.label for h in runs}), "method")
    layout(plot, f"Residual loss, round by round: {who}")
    plot.update_xaxes(title_text="optimizer steps", rangemode="tozero")
    every = [v for trace in plot.data for v in array(trace.y)]
    kind = ratio_axis(every) if log is None else "log" if log else "linear"
    ticks = log_ticks(every) if kind == "log" else {"type": kind}
    plot.update_yaxes(title_text=scaled(f"loss ({unit(runs[0])})", kind), **ticks)
    _mark_divergence(plot, runs)
    text = _words(one, least[1][-1] if least else None) if one else _compared(runs)
    return Figure(plot, text, _table(runs))


def _floor_by_step(history: History, floor: Floor) -> tuple[list[int], list[float]] | None:
    """Steps and the least loss there."""
    if floor is None:
        return None
    steps = [0, *(r.step for r in history)]
    if not isinstance(floor, Sequence | np.ndarray):
        value = number(floor)
        return ([0, steps[-1]], [value, value]) if math.isfinite(value) else None
    values = [number(v) for v in floor][: len(steps)]
    return steps[: len(values)], values


def _stairs(plot: go.Figure, runs: Sequence[History]) -> None:
    styles = variants(runs)
    width = 2 if len(runs) > len(styles) else 3.5  # thin where a label has several seeds
    shown: set[str] = set()
    for history in runs:
        name, (values, where) = history.label, residual(history)
        look = style(*styles[name])
        plot.add_scatter(
            x=[0, *(r.step for r in history)],
            y=[starting_loss(history), *values],
            name=f"residual loss, {where}" if len(runs) == 1 else name,
            mode="lines+markers",
            line=look.line(width) | {"shape": "hv"},
            marker=look.points(),
            legendgroup=name,
            showlegend=name not in shown,
            hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
        )
        shown.add(name)


def _inside(plot: go.Figure, history: History) -> None:
    """The loss at every step, and each round's own batch before and after it."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    steps: list[float | None] = []
    own: list[float | None] = []
    for r in history:
        start = r.step - len(r.losses)
        xs += [*range(start, r.step), None]
        ys += [*r.losses, None]
        steps += [start, r.step, r.step, None]
        own += [r.loss_before, r.loss_before, r.loss_after, None]
    hover = "step %{x}: %{y:.4g}<extra>training</extra>"
    line: dict[str, object] = {"color": "#BBBBBB", "width": 1.5}
    plot.add_scatter(
        x=xs, y=ys, mode="lines", name="training loss at every step", line=line, hovertemplate=hover
    )
    hover = "step %{x}: %{y:.4g}<extra>own batch</extra>"
    line = {"color": GREY, "width": 2, "dash": "dash"}
    plot.add_scatter(
        x=steps, y=own, mode="lines", name="own batch, before → after", line=line, hovertemplate=hover
    )


def _mark_divergence(plot: go.Figure, runs: Sequence[History]) -> None:
    broken = [_diverged(h) for h in runs]
    if all(t == 0 for t in broken):
        message = (
            "No loss after a round is a number: the run diverged. Lower its learning rate and run it again."
        )
        say(plot, message)
    elif len(runs) == 1 and broken[0] is not None:
        record = runs[0][broken[0]]
        plot.add_vline(
            x=record.step - len(record.losses),
            line={"color": INK, "dash": "dash", "width": 2},
            annotation_position="top left",
            annotation_text=f"diverged in round {record.index}",
            annotation_font_size=16,
        )


def _diverged(history: History) -> int | None:
    """The position of the first round from which on no residual loss is a number."""
    finite = np.flatnonzero(np.isfinite(residual(history)[0]))
    first = int(finite[-1]) + 1 if finite.size else 0
    return first if first < len(history) else None


def _words(history: History, floor: float | None) -> str:
    values, where = residual(history)
    name, rounds = history.label, plural(len(history), "round")
    finite = np.flatnonzero(np.isfinite(values))
    if finite.size == 0:
        return f"{name}: after {rounds} no loss is a number; the run diverged, lower its learning rate."
    first, last = starting_loss(history), float(values[finite[-1]])
    text = f"{name}: in {rounds} ({history[-1].step:,} optimizer steps) the loss on the {where} went "
    text += f"from {brief(first)} to {brief(last)}"
    text += f" ({(last - first) / abs(first):+.0%})." if np.isfinite(first) and first else "."
    gains = array(r.gain for r in history)
    if len(history) > 1 and np.isfinite(gains).any():
        best = int(np.nanargmax(gains))
        half = gains[len(gains) // 2 :]
        text += f" The largest gain, {brief(float(gains[best]))}, came in round {history[best].index};"
        text += f" the second half of the rounds gained {brief(float(np.nansum(half)))}."
    if floor is not None:
        text += f" The floor is {brief(floor)}; the run ends {brief(last - floor)} above it."
    if (broken := _diverged(history)) is not None:
        text += f" From round {history[broken].index} on the loss is not a number: the run diverged."
    return text


def _compared(runs: list[History]) -> str:
    """One clause per label: the losses it ended with, over its seeds."""
    ends: dict[str, list[float]] = {}
    for history in runs:
        ends.setdefault(history.label, []).append(float(residual(history)[0][-1]))
    parts = []
    for name, values in ends.items():
        finite = [v for v in values if np.isfinite(v)]
        text = f"{brief(min(finite))}" if finite else "no number"
        text += f" to {brief(max(finite))}" if len(finite) > 1 else ""
        text += f" ({plural(len(values) - len(finite), 'run')} diverged)" if len(finite) < len(values) else ""
        parts.append(f"{name} {text}")
    starts = [v for v in map(starting_loss, runs) if np.isfinite(v)]
    begin = f" from {brief(starts[0])}" if starts else ""
    return f"Residual loss of {plural(len(runs), 'run')}{begin}, at the end: {'; '.join(parts)}."


def _table(runs: list[History]) -> pd.DataFrame:
    rows = [
        {
            "method": h.label,
            "seed": h.settings.seed,
            "round": r.index,
            "step": r.step,
            "loss before": r.loss_before,
            "loss after": r.loss_after,
            "probe before": r.probe_before,
            "probe after": r.probe_after,
            "gain": r.gain,
        }
        for h in runs
        for r in h
    ]
    table = pd.DataFrame(rows)
    return table.drop(columns="seed") if table["seed"].isna().all() else table
