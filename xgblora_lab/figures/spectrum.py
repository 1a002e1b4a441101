"""The singular spectrum of the accumulated update, round by round, beside the residual loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import (
    Array,
    brief,
    plural,
    residual,
    single,
    spectra,
    starting_loss,
    subject,
    target_spectrum,
    unit,
)
from xgblora_lab.figures._style import BLACK, HEAT, VERMILLION, layout, log_ticks, style

MISSING = "No spectrum was measured: add the hook, Bench(…, hooks=[Spectrum()]), and run again."
GHOSTS = ("#C9C9C9", "#A3A3A3", "#7D7D7D", "#555555")  # earlier rounds are paler
UNNAMED = {"showlegend": False, "hoverinfo": "skip"}


@dataclass(frozen=True)
class _Module:
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
        return [_visible(s, self.width) for s in self.values]


def spectrum(
    history: History | Iterable[History],
    module: str | None = None,
    *,
    target: Mapping[str, Sequence[float]] | History | None = None,
    rounds: Sequence[int] | None = None,
    top: int = 64,
) -> Figure:
    """Singular values of a module's accumulated update after every round, with a slider that needs no kernel.

    Left the spectrum after the round under the slider, over those of some chosen rounds and the target; right
    a heat map rounds × singular index, and below it the residual loss.

    Parameters
    ----------
    history : History
        Of one run with the hook `Spectrum`.
    module : str, optional
        Default: the one with the largest accumulated update (Frobenius norm).
    target : mapping of str to sequence of float, or History, optional
        Module to singular values, or the history of full fine-tuning. Default: the planted truth's, where the
        task knows it.
    rounds : sequence of int, optional
        Earlier rounds to show. Default: four, evenly spaced.
    top : int, default 64
        How many singular values are drawn at most.

    Returns
    -------
    Figure
        With a frame per measured round, and one row per round in its table.

    Raises
    ------
    ValueError
        For several histories, a module that no round measured, or a target of another type.
    """
    history = single(history)
    indices, found = spectra(history)
    if not any(len(rows[-1]) for rows in found.values() if rows):
        return blank("Singular spectrum of the accumulated update", MISSING)
    name = module or max(found, key=lambda m: float(np.square(found[m][-1]).sum()))
    if name not in found:
        raise ValueError(f"No spectrum of module {name!r} was measured; measured are {', '.join(found)}.")
    goals, goal_name = target_spectrum(history, target)
    goal = goals.get(name)
    longest = max(len(s) for s in [*found[name], goal if goal is not None else ()])
    shown = _Module(name, indices, found[name], goal, goal_name, max(1, min(top, longest)))
    pick = _spread(indices) if rounds is None else [indices.index(t) for t in rounds if t in indices]
    plot = _canvas()
    words = _draw(plot, history, shown, pick)
    cut = f" · the {shown.width} largest of {longest} singular values" if longest > shown.width else ""
    layout(plot, f"Singular spectrum of the accumulated update: {subject(history)}", name + cut, height=720)
    _axes(plot, shown, unit(history))
    if len(indices) > 1:
        _slider(plot, indices)
    return Figure(plot, _words(history, shown), _table(shown), words)


def _canvas() -> go.Figure:
    return make_subplots(
        rows=2,
        cols=2,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        column_widths=[0.45, 0.55],
        row_heights=[0.66, 0.34],
        horizontal_spacing=0.13,
        vertical_spacing=0.1,
    )


def _draw(plot: go.Figure, history: History, shown: _Module, pick: Sequence[int]) -> tuple[str, ...]:
    """Put traces and frames on the plot; returns the sentence of every frame."""
    indices, rows, width = shown.indices, shown.rows, shown.width
    _curves(plot, history.method, shown, pick)
    current = len(plot.data) - 1
    _heat(plot, indices, rows, width)
    losses = _loss(plot, history, indices)
    plot.add_scatter(**_line_at(indices[-1], width), row=1, col=2)
    plot.add_scatter(**_dot_at(indices[-1], losses[-1]), row=2, col=2)
    moving = [current, len(plot.data) - 2, len(plot.data) - 1]
    plot.frames = [
        {
            "name": str(t),
            "traces": moving,
            "data": [
                {"type": "scatter", "y": row},
                {"type": "scatter", "x": [t, t]},
                {"type": "scatter", "x": [t], "y": [loss]},
            ],
        }
        for t, row, loss in zip(indices, rows, losses, strict=True)
    ]
    return tuple(_frame_words(t, s, v) for t, s, v in zip(indices, shown.values, losses, strict=True))


def _curves(plot: go.Figure, method: str, shown: _Module, pick: Sequence[int]) -> None:
    """The target, some earlier rounds, and the round under the slider, which is the last trace."""
    index, rows = np.arange(1, shown.width + 1), shown.rows
    curve: dict[str, Any] = {"x": index, "mode": "lines+markers", "row": 1, "col": 1}
    if shown.goal is not None:
        line = {"color": BLACK, "dash": "dot", "width": 2.5}
        bars = {"symbol": "line-ew-open", "size": 14, "color": BLACK, "line": {"width": 2.5}}
        goal = _visible(shown.goal, shown.width)
        plot.add_scatter(y=goal, name=shown.goal_name, line=line, marker=bars, **curve)
    for shade, p in zip(GHOSTS[-len(pick) :], pick, strict=False):
        name, line = f"after round {shown.indices[p]}", {"color": shade, "width": 2}
        plot.add_scatter(y=rows[p], name=name, line=line, marker={"size": 5}, **curve)
    look = style(method)
    line = {"color": look.colour, "width": 3.5}
    name = "after the round under the slider"
    plot.add_scatter(y=rows[-1], name=name, line=line, marker=look.points(), **curve)


def _visible(values: Array, width: int) -> Array:
    """Padded to `width`; numerical zeros (below 1e-6 of the largest) are gaps, as on any log axis."""
    padded = np.full(width, np.nan)
    padded[: min(width, len(values))] = values[:width]
    largest = np.nanmax(padded) if np.isfinite(padded).any() else 0.0
    padded[~(padded > 1e-6 * largest)] = np.nan
    return padded


def _spread(indices: Sequence[int]) -> list[int]:
    """Four rounds, evenly spaced, without the last (it is under the slider at first)."""
    return sorted({int(i) for i in np.linspace(0, len(indices) - 1, 5)[:-1]}) if len(indices) > 1 else []


def _heat(plot: go.Figure, indices: Sequence[int], rows: Sequence[Array], width: int) -> None:
    z = np.log10(np.array(rows).T)
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 0.0)
    ticks = np.linspace(low, high, 4) if high > low else np.array([low])
    bar = {"title": {"text": "σ<sub>i</sub>", "side": "top"}, "thickness": 16}
    bar |= {"len": 0.62, "y": 1, "yanchor": "top"}
    plot.add_heatmap(
        x=indices,
        y=np.arange(1, width + 1),
        z=z,
        zmin=low,
        zmax=max(high, low + 1e-9),
        colorscale=HEAT,
        customdata=np.array(rows).T,
        hovertemplate="round %{x}, σ<sub>%{y}</sub> = %{customdata:.3g}<extra></extra>",
        colorbar=bar | {"tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks]},
        row=1,
        col=2,
    )


def _loss(plot: go.Figure, history: History, indices: Sequence[int]) -> Array:
    """Draw the residual loss; returns its values after the measured rounds."""
    values = dict(zip((r.index for r in history), residual(history)[0], strict=True))
    plot.add_scatter(
        x=list(values),
        y=list(values.values()),
        mode="lines",
        showlegend=False,
        line=style(history.method).line(2.5),
        hovertemplate="round %{x}: %{y:.4g}<extra>residual loss</extra>",
        row=2,
        col=2,
    )
    return np.array([values[t] for t in indices])


def _line_at(t: int, width: int) -> dict[str, Any]:
    """The round under the slider, on the heat map."""
    line = {"color": VERMILLION, "width": 3}
    return {"x": [t, t], "y": [0.5, width + 0.5], "mode": "lines", "line": line} | UNNAMED


def _dot_at(t: int, value: float) -> dict[str, Any]:
    """The round under the slider, on the loss."""
    marker = {"color": VERMILLION, "size": 14, "line": {"color": "white", "width": 2}}
    return {"x": [t], "y": [value], "mode": "markers", "marker": marker} | UNNAMED


def _axes(plot: go.Figure, shown: _Module, loss_unit: str) -> None:
    indices, width = shown.indices, shown.width
    goal = [] if shown.goal is None else [_visible(shown.goal, width)]
    every = np.concatenate([*shown.rows, *goal])
    positive = every[np.isfinite(every) & (every > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    span = [float(np.log10(low)) - 0.15, float(np.log10(high)) + 0.15]
    ticks = log_ticks([low, high])
    plot.update_yaxes(**ticks, range=span, title_text="singular value σ<sub>i</sub>", row=1, col=1)
    plot.update_xaxes(title_text="singular index i", range=[0.4, width + 0.6], row=1, col=1)
    step = {"dtick": 1} if width <= 8 else {}
    plot.update_xaxes(**step, row=1, col=1)
    plot.update_yaxes(title_text="index i", range=[width + 0.5, 0.5], **step, row=1, col=2)
    edges = [min(indices) - 0.5, max(indices) + 0.5]
    few = {"dtick": 1} if len(indices) <= 8 else {}
    plot.update_xaxes(range=edges, **few, showticklabels=False, row=1, col=2)
    plot.update_xaxes(range=edges, **few, title_text="round t", row=2, col=2)
    title = "residual loss" if len(loss_unit) > 8 else f"loss ({loss_unit})"
    plot.update_yaxes(title_text=title, nticks=4, row=2, col=2)


def _slider(plot: go.Figure, indices: Sequence[int]) -> None:
    def go_to(names: list[str] | list[None] | None, pause: int) -> list[Any]:
        frame = {"duration": pause, "redraw": False}
        return [
            names,
            {"frame": frame, "transition": {"duration": 0}, "mode": "immediate", "fromcurrent": True},
        ]

    steps = [{"label": str(t), "method": "animate", "args": go_to([str(t)], 0)} for t in indices]
    slider = {"steps": steps, "active": len(steps) - 1, "pad": {"t": 10}, "font": {"size": 13}}
    slider |= {"x": 0.2, "len": 0.8, "y": -0.33, "yanchor": "top"}
    slider |= {"currentvalue": {"prefix": "after round ", "font": {"size": 18}}}
    buttons = [
        {"label": "Play", "method": "animate", "args": go_to(None, 150)},
        {"label": "Pause", "method": "animate", "args": go_to([None], 0)},
    ]
    menu = {"type": "buttons", "buttons": buttons, "direction": "left", "showactive": False}
    menu |= {"x": 0, "xanchor": "left", "y": -0.39, "yanchor": "top"}
    legend = {"y": -0.16, "font": {"size": 14}}  # one row, or it pushes the slider off the figure
    plot.update_layout(sliders=[slider], updatemenus=[menu], legend=legend)


def _frame_words(t: int, values: Array, loss: float) -> str:
    if not np.isfinite(values).all():
        return f"After round {t}: the update holds values that are not numbers; the run diverged."
    count = int((values > 1e-6 * values[0]).sum()) if len(values) and values[0] > 0 else 0
    top = f"the largest is {brief(float(values[0]))}" if count else "the update is still zero"
    return f"After round {t}: {plural(count, 'singular value')}, {top}; residual loss {brief(float(loss))}."


def _words(history: History, shown: _Module) -> str:
    last, goal = shown.values[-1], shown.goal
    tops = ", ".join(brief(float(v)) for v in last[:3]) or "none"
    text = f"{subject(history)}, module {shown.name}, {plural(len(shown.indices), 'measured round')}"
    text += f" (the last is {shown.indices[-1]}): "
    text += f"the accumulated update's largest singular values are now {tops}."
    start = starting_loss(history)
    text += f" Residual loss {brief(start)} before, {brief(float(residual(history)[0][-1]))} after."
    if goal is not None and len(goal) and goal[0] > 0:
        name = shown.goal_name
        text += f" {name[:1].upper()}{name[1:]}: {', '.join(brief(float(v)) for v in goal[:3])};"
        reach = float(last[0] / goal[0]) if len(last) else 0.0
        share = f"has reached {reach:.0%} of it" if name == "target" else f"is {brief(reach)} times its"
        text += f" the first singular value {share}."
    return text


def _table(shown: _Module) -> pd.DataFrame:
    named = list(zip(map(str, shown.indices), shown.values, strict=True))
    if shown.goal is not None:
        named.append(("target", shown.goal))
    columns = range(min(shown.width, 8))
    return pd.DataFrame(
        {"round": name} | {f"σ{i + 1}": values[i] if i < len(values) else 0.0 for i in columns}
        for name, values in named
    )
