"""The panels of `spectrum`: the residual loss above a heat map on one axis of rounds, and the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go

from xgblora_lab.bench.records import History
from xgblora_lab.figures._read import Array, residual, spectra, starting_loss, unit
from xgblora_lab.figures._style import BLACK, GREY, HEAT, VERMILLION, log_ticks, ratio_axis, scaled, style

GHOSTS = ("#C9C9C9", "#A3A3A3", "#7D7D7D", "#555555")  # earlier rounds are paler
UNNAMED = {"showlegend": False, "hoverinfo": "skip"}
CURVES = {"xaxis": "x", "yaxis": "y"}
LOSS = {"xaxis": "x2", "yaxis": "y2"}
HEAT_MAP = {"xaxis": "x2", "yaxis": "y3"}  # on the loss's axis of rounds
LEFT, RIGHT, GAP = (0.0, 0.42), (0.62, 1.0), 0.06  # shares of the width, and of the height between the panels


@dataclass(frozen=True)
class Module:
    """One module's spectra as they are drawn: by measured round, beside the target."""

    name: str
    indices: list[int]  # the measured rounds
    values: list[Array]  # singular values after each, descending
    goal: Array | None
    goal_name: str
    width: int  # how many singular values are drawn

    @cached_property
    def rows(self) -> list[Array]:
        """What is drawn of every measured round."""
        return [visible(s, self.width) for s in self.values]


@dataclass(frozen=True)
class Staged:
    """What the panels show: a run, one of its modules, and a run beside it."""

    history: History
    shown: Module
    beside: History | None
    planned: int  # rounds that the axis has room for at least

    def place(self, history: History) -> list[float]:
        """Where a run's base and rounds stand on this run's axis of rounds: after as many optimizer steps."""
        steps = [0, *(r.step for r in self.history)]
        ends = [r.step for r in history]
        if len(steps) == 1:  # no round here yet, so those of the other run count
            return [-1, *range(len(ends))]
        last = steps[-1] - steps[-2]
        late = [len(steps) - 2 + (step - steps[-1]) / last for step in ends if step > steps[-1]]
        inside = np.interp([step for step in ends if step <= steps[-1]], steps, range(-1, len(steps) - 1))
        return [-1, *inside.tolist(), *late]

    def other_rows(self) -> list[Array]:
        """The spectrum of the run beside after as many steps as each measured round had done."""
        assert self.beside is not None
        measured, found = spectra(self.beside)
        rows = found.get(self.shown.name, [])
        ends = {r.index: r.step for r in self.beside}
        steps = {r.index: r.step for r in self.history}
        drawn = []
        for t in self.shown.indices:
            before = [row for m, row in zip(measured, rows, strict=False) if ends[m] <= steps[t]]
            drawn.append(visible(before[-1] if before else np.zeros(0), self.shown.width))
        return drawn


def visible(values: Array, width: int) -> Array:
    """Padded to `width`; numerical zeros (below 1e-6 of the largest) are gaps, as on any log axis."""
    padded = np.full(width, np.nan)
    padded[: min(width, len(values))] = values[:width]
    largest = np.nanmax(padded) if np.isfinite(padded).any() else 0.0
    padded[~(padded > 1e-6 * largest)] = np.nan
    return padded


def canvas() -> go.Figure:
    """The empty panels; what is pointed at in a round of one panel is marked in the other one too."""
    half = (1 - GAP) / 2
    plot = go.Figure()
    plot.update_layout(
        xaxis={"domain": RIGHT, "anchor": "y"},
        yaxis={"domain": (0, 1), "anchor": "x"},
        xaxis2={"domain": LEFT, "anchor": "y3"},
        yaxis2={"domain": (half + GAP, 1), "anchor": "x2"},
        yaxis3={"domain": (0, half), "anchor": "x2"},
        hoversubplots="axis",
    )
    return plot


def draw(plot: go.Figure, staged: Staged, pick: Sequence[int]) -> Array:
    """Put traces and frames on the plot; returns the residual loss after every measured round."""
    shown = staged.shown
    indices, rows, width = shown.indices, shown.rows, shown.width
    empty = np.full(width, np.nan)
    others = staged.other_rows() if staged.beside is not None else []
    if staged.beside is not None:
        _beside(plot, staged.beside, staged.place(staged.beside), others[-1] if others else empty)
    _curves(plot, staged.history.method, shown, pick)
    current = len(plot.data) - 1
    _heat(plot, indices, rows, width)
    losses = _loss(plot, staged)
    t = indices[-1] if indices else -1
    plot.add_scatter(**_line_at(t, width if indices else 0), **HEAT_MAP)
    plot.add_scatter(**_dot_at(t, losses[-1] if indices else np.nan), **LOSS)
    moving = [current, len(plot.data) - 2, len(plot.data) - 1, *([1] if others else [])]
    plot.frames = [
        {
            "name": str(t),
            "traces": moving,
            "data": [
                {"type": "scatter", "y": row},
                {"type": "scatter", "x": [t, t]},
                {"type": "scatter", "x": [t], "y": np.array([loss])},
                *([{"type": "scatter", "y": others[i]}] if others else []),
            ],
        }
        for i, (t, row, loss) in enumerate(zip(indices, rows, losses, strict=True))
    ]
    return losses


def _beside(plot: go.Figure, other: History, place: list[float], row: Array) -> None:
    """The first two traces: the loss of the run beside, and its spectrum."""
    look, name = style(other.method, 1), f"beside: {other.label}"
    common = {"name": name, "legendgroup": "beside"}
    values = [starting_loss(other), *residual(other)[0]] if len(other) else []
    hover = "round %{x:.3g}: %{y:.4g}<extra>" + name + "</extra>"
    plot.add_scatter(
        x=place[: len(values)], y=np.array(values), mode="lines", line=look.line(2.5), hovertemplate=hover,
        **common, **LOSS,
    )  # fmt: skip
    plot.add_scatter(
        x=np.arange(1, len(row) + 1), y=row, mode="lines+markers", line=look.line(2.5), showlegend=False,
        marker=look.points(8), hovertemplate="σ<sub>%{x}</sub> = %{y:.3g}<extra>" + name + "</extra>",
        **common, **CURVES,
    )  # fmt: skip


def _curves(plot: go.Figure, method: str, shown: Module, pick: Sequence[int]) -> None:
    """The target, some earlier rounds, and the round under the slider, which is the last trace."""
    index, rows = np.arange(1, shown.width + 1), shown.rows
    curve: dict[str, Any] = {"x": index, "mode": "lines+markers", **CURVES}
    curve["hovertemplate"] = "σ<sub>%{x}</sub> = %{y:.3g}"
    if shown.goal is not None:
        line = {"color": BLACK, "dash": "dot", "width": 2.5}
        bars = {"symbol": "line-ew-open", "size": 14, "color": BLACK, "line": {"width": 2.5}}
        goal = visible(shown.goal, shown.width)
        plot.add_scatter(y=goal, name=shown.goal_name, line=line, marker=bars, **curve)
    for shade, p in zip(GHOSTS[-len(pick) :], pick, strict=False):
        name, line = f"after round {shown.indices[p]}", {"color": shade, "width": 2}
        plot.add_scatter(y=rows[p], name=name, line=line, marker={"size": 5}, **curve)
    look = style(method)
    now = rows[-1] if rows else np.full(shown.width, np.nan)
    name = "after the round under the slider"
    known = {"showlegend": bool(rows)}
    plot.add_scatter(y=now, name=name, line=look.line(3.5), marker=look.points(), **known, **curve)


def _heat(plot: go.Figure, indices: Sequence[int], rows: Sequence[Array], width: int) -> None:
    z = np.log10(np.array(rows).T) if len(rows) else np.full((width, 1), np.nan)
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 0.0)
    ticks = np.linspace(low, high, 3) if high > low else np.array([low])
    bar: dict[str, Any] = {"title": {"text": "σ<sub>i</sub>", "side": "top"}, "thickness": 12}
    bar |= {"x": LEFT[1], "xpad": 6, "len": (1 - GAP) / 2, "y": 0, "yanchor": "bottom"}
    plot.add_heatmap(
        x=indices or [0],
        y=np.arange(1, width + 1),
        z=z,
        zmin=low,
        zmax=max(high, low + 1e-9),
        colorscale=HEAT,
        showscale=bool(finite.size),
        customdata=np.array(rows).T if len(rows) else z,
        hovertemplate="round %{x}, σ<sub>%{y}</sub> = %{customdata:.3g}<extra></extra>",
        hoverongaps=False,
        colorbar=bar | {"tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks]},
        **HEAT_MAP,
    )


def _loss(plot: go.Figure, staged: Staged) -> Array:
    """Draw the residual loss, and the best of its rank; returns the losses after the measured rounds."""
    history, shown = staged.history, staged.shown
    after = residual(history)[0]
    values = {-1: starting_loss(history)} if len(history) else {}
    values |= dict(zip((r.index for r in history), after, strict=True))
    plot.add_scatter(
        x=list(values),
        y=np.array(list(values.values()), dtype=float),  # an array may hold nan on its way to the page
        mode="lines",
        showlegend=False,
        line=style(history.method).line(2.5),
        hovertemplate="round %{x}: %{y:.4g}<extra>residual loss</extra>",
        **LOSS,
    )
    if history.settings.kind == "matrix" and shown.goal is not None:
        known = [0, *(int(np.isfinite(row).sum()) for row in shown.rows)]
        tails = [0.5 * float(np.square(shown.goal[rank:]).sum()) for rank in known]
        plot.add_scatter(
            x=[-1, *shown.indices],
            y=tails,
            mode="lines",
            name="least loss of that rank",
            showlegend=len(history) > 0,
            line={"color": GREY, "dash": "dot", "width": 2},
            hovertemplate="round %{x}: %{y:.4g}<extra>least loss of that rank</extra>",
            **LOSS,
        )
    return np.array([values[t] for t in shown.indices])


def _line_at(t: int, width: int) -> dict[str, Any]:
    """The round under the slider, on the heat map."""
    line = {"color": VERMILLION, "width": 3}
    return {"x": [t, t], "y": [0.5, width + 0.5], "mode": "lines", "line": line} | UNNAMED


def _dot_at(t: int, value: float) -> dict[str, Any]:
    """The round under the slider, on the loss."""
    marker = {"color": VERMILLION, "size": 14, "line": {"color": "white", "width": 2}}
    return {"x": [t], "y": np.array([value]), "mode": "markers", "marker": marker} | UNNAMED


def set_axes(plot: go.Figure, staged: Staged) -> None:
    """Ranges, ticks and titles of the panels."""
    shown, width = staged.shown, staged.shown.width
    goal = [] if shown.goal is None else [visible(shown.goal, width)]
    every = np.concatenate([np.zeros(0), *shown.rows, *goal])
    positive = every[np.isfinite(every) & (every > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    span = [float(np.log10(low)) - 0.15, float(np.log10(high)) + 0.15]
    indices = {"dtick": 1} if width <= 8 else {}
    last = max([*shown.indices, *(r.index for r in staged.history), staged.planned - 1, 0])
    stride = next(s for n in range(9) for s in (10**n, 2 * 10**n, 5 * 10**n) if last < 8 * s)
    loss = [v for t in plot.data if t.yaxis == "y2" and t.y is not None for v in t.y]
    loss = [v for v in loss if v > 0]  # the least loss of full rank is 0
    kind = ratio_axis(loss)
    scale = log_ticks(loss) if kind == "log" else {"type": "linear", "nticks": 4}
    name = unit(staged.history)
    title = "residual loss" if len(name) > 8 else f"loss ({name})"
    rounds = {"tickvals": list(range(0, last + 1, stride)), "range": [-1.3, last + 0.6]}
    spikes = {"showspikes": True, "spikemode": "across", "spikethickness": 1, "spikecolor": GREY}
    plot.update_layout(
        hovermode="x",
        xaxis=indices | {"title": {"text": "singular index i"}, "range": [0.4, width + 0.6]},
        yaxis=log_ticks([low, high])
        | {"title": {"text": scaled("singular value σ<sub>i</sub>", "log")}, "range": span},
        xaxis2=rounds | spikes | {"title": {"text": "round t"}},
        yaxis2=scale | {"title": {"text": scaled(title, kind)}},
        yaxis3=indices | {"title": {"text": "index i"}, "range": [width + 0.5, 0.5]},
    )
