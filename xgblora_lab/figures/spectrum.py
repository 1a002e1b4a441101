"""Figure 2: the singular spectrum of the accumulated update, round by round, beside the residual loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    floor_by_step,
    plural,
    residual,
    single,
    spectra,
    starting_loss,
    subject,
    target_spectrum,
    unit,
)
from xgblora_lab.figures._style import BLACK, HEAT, INK, VERMILLION, layout, log_ticks, style

MISSING = "No spectrum was measured: add the hook, Bench(…, hooks=[Spectrum()]), and run again."
GHOSTS = ("#C9C9C9", "#A3A3A3", "#7D7D7D", "#555555")  # earlier rounds are paler


def spectrum(
    history: History | Iterable[History],
    module: str | None = None,
    *,
    target: Mapping[str, Sequence[float]] | History | None = None,
    rounds: Sequence[int] | None = None,
    top: int = 64,
) -> Figure:
    """Singular values of a module's accumulated update after every round, with a slider that needs no kernel.

    Left the spectrum after the round under the slider, over those of some chosen `rounds` (default: four,
    evenly spaced) and the target; right a heat map rounds × singular index, and below it the residual loss.
    `module`: default the one with the largest accumulated update (Frobenius norm). `target`: module →
    singular values, or the History of full fine-tuning; default `settings["truth_spectrum"]`. `top`: largest
    index drawn. Raises ValueError for a module that no round measured.
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
    width = max(1, min(top, longest))
    rows = [_visible(s, width) for s in found[name]]
    pick = _spread(indices) if rounds is None else [indices.index(t) for t in rounds if t in indices]

    plot = make_subplots(
        rows=2, cols=2, specs=[[{"rowspan": 2}, {}], [None, {}]], column_widths=[0.45, 0.55],
        row_heights=[0.66, 0.34],
        horizontal_spacing=0.13, vertical_spacing=0.1,
    )  # fmt: skip
    if goal is not None:
        plot.add_scatter(
            x=np.arange(1, width + 1), y=_visible(goal, width), name=goal_name, mode="lines+markers",
            line={"color": BLACK, "dash": "dot", "width": 2.5}, row=1, col=1,
            marker={"symbol": "line-ew-open", "size": 14, "color": BLACK, "line": {"width": 2.5}},
        )  # fmt: skip
    for shade, p in zip(GHOSTS[-len(pick) :], pick, strict=False):
        plot.add_scatter(
            x=np.arange(1, len(rows[p]) + 1), y=rows[p], name=f"after round {indices[p]}",
            mode="lines+markers",
            line={"color": shade, "width": 2}, marker={"size": 5}, row=1, col=1,
        )  # fmt: skip
    look = style(history.method)
    plot.add_scatter(
        x=np.arange(1, width + 1), y=rows[-1], name="after the round under the slider", mode="lines+markers",
        line={"color": look.colour, "width": 3.5}, marker=look.points(), row=1, col=1,
    )  # fmt: skip
    current = len(plot.data) - 1
    _heat(plot, indices, rows, width)
    losses = _loss(plot, history, indices)
    plot.add_scatter(**_line_at(indices[-1], width), row=1, col=2)
    plot.add_scatter(**_dot_at(indices[-1], losses[-1]), row=2, col=2)

    moving = [current, len(plot.data) - 2, len(plot.data) - 1]
    words = tuple(_frame_words(t, s, v) for t, s, v in zip(indices, found[name], losses, strict=True))
    plot.frames = [
        {
            "name": str(t), "traces": moving,
            "data": [
                {"type": "scatter", "y": rows[i]},
                {"type": "scatter", "x": _line_at(t, width)["x"]},
                {"type": "scatter", "x": [t], "y": [losses[i]]},
            ],
        }
        for i, t in enumerate(indices)
    ]  # fmt: skip
    note = f"{name}" + (f" · the {width} largest of {longest} singular values" if longest > width else "")
    layout(plot, f"Singular spectrum of the accumulated update: {subject(history)}", note, height=720)
    _axes(plot, rows, goal, width, indices, history)
    if len(indices) > 1:
        _slider(plot, indices)
    text = _words(history, name, indices, found[name], goal, goal_name)
    return Figure(plot, text, _table(indices, found[name], goal, width), words)


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
    plot.add_heatmap(
        x=indices, y=np.arange(1, width + 1), z=z, zmin=low, zmax=max(high, low + 1e-9), colorscale=HEAT,
        row=1, col=2,
        customdata=np.array(rows).T,
        hovertemplate="round %{x}, σ<sub>%{y}</sub> = %{customdata:.3g}<extra></extra>",
        colorbar={
            "title": {"text": "σ<sub>i</sub>", "side": "top"}, "len": 0.62, "y": 1, "yanchor": "top",
            "thickness": 16,
            "tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks],
        },
    )  # fmt: skip


def _loss(plot: go.Figure, history: History, indices: Sequence[int]) -> Array:
    values = dict(zip((r.index for r in history), residual(history)[0], strict=True))
    plot.add_scatter(
        x=list(values), y=list(values.values()), mode="lines", showlegend=False,
        line=style(history.method).line(2.5),
        hovertemplate="round %{x}: %{y:.4g}<extra>residual loss</extra>", row=2, col=2,
    )  # fmt: skip
    if (least := floor_by_step(history)) is not None:
        rounds = list(values) if len(least[1]) > 2 else [min(values), max(values)]
        floor = least[1][-len(rounds) :]
        plot.add_scatter(
            x=rounds[: len(floor)], y=floor, mode="lines", showlegend=False, row=2, col=2,
            line={"color": INK, "dash": "dot", "width": 2}, hovertemplate="floor: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    return np.array([values[t] for t in indices])


def _line_at(t: int, width: int) -> dict[str, Any]:
    """The round under the slider, on the heat map."""
    line = {"color": VERMILLION, "width": 3}
    return {
        "x": [t, t],
        "y": [0.5, width + 0.5],
        "mode": "lines",
        "line": line,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _dot_at(t: int, value: float) -> dict[str, Any]:
    marker = {"color": VERMILLION, "size": 14, "line": {"color": "white", "width": 2}}
    return {
        "x": [t],
        "y": [value],
        "mode": "markers",
        "marker": marker,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _axes(
    plot: go.Figure,
    rows: Sequence[Array],
    goal: Array | None,
    width: int,
    indices: Sequence[int],
    history: History,
) -> None:
    every = np.concatenate([*rows, _visible(goal, width) if goal is not None else np.zeros(0)])
    positive = every[np.isfinite(every) & (every > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    spread = [float(np.log10(low)) - 0.15, float(np.log10(high)) + 0.15]
    plot.update_yaxes(
        **log_ticks([low, high]), range=spread, title_text="singular value σ<sub>i</sub>", row=1, col=1
    )
    plot.update_xaxes(title_text="singular index i", range=[0.4, width + 0.6], row=1, col=1)
    step = {"dtick": 1} if width <= 8 else {}
    plot.update_xaxes(**step, row=1, col=1)
    plot.update_yaxes(title_text="index i", range=[width + 0.5, 0.5], **step, row=1, col=2)
    edges = [min(indices) - 0.5, max(indices) + 0.5]
    few = {"dtick": 1} if len(indices) <= 8 else {}
    plot.update_xaxes(range=edges, **few, showticklabels=False, row=1, col=2)
    plot.update_xaxes(range=edges, **few, title_text="round t", row=2, col=2)
    plot.update_yaxes(
        title_text="residual loss" if len(unit(history)) > 8 else f"loss ({unit(history)})",
        nticks=4,
        row=2,
        col=2,
    )


def _slider(plot: go.Figure, indices: Sequence[int]) -> None:
    def go_to(names: list[str] | list[None], pause: int) -> list[Any]:
        now = {
            "frame": {"duration": pause, "redraw": False},
            "transition": {"duration": 0},
            "mode": "immediate",
        }
        return [names, now | {"fromcurrent": True}]

    steps = [{"label": str(t), "method": "animate", "args": go_to([str(t)], 0)} for t in indices]
    buttons = [
        {"label": "Play", "method": "animate", "args": [None, go_to([], 150)[1]]},
        {"label": "Pause", "method": "animate", "args": go_to([None], 0)},
    ]
    plot.update_layout(
        sliders=[{
            "steps": steps, "active": len(steps) - 1, "x": 0.2, "len": 0.8, "y": -0.33, "yanchor": "top",
            "pad": {"t": 10},
            "currentvalue": {"prefix": "after round ", "font": {"size": 18}}, "font": {"size": 13},
        }],
        updatemenus=[{
            "type": "buttons", "buttons": buttons, "direction": "left", "x": 0, "xanchor": "left",
            "y": -0.39, "yanchor": "top", "showactive": False,
        }],
        legend={"y": -0.16, "font": {"size": 14}},  # one row, or it pushes the slider off the figure
    )  # fmt: skip


def _frame_words(t: int, values: Array, loss: float) -> str:
    if not np.isfinite(values).all():
        return f"After round {t}: the update holds values that are not numbers; the run diverged."
    count = int((values > 1e-6 * values[0]).sum()) if len(values) and values[0] > 0 else 0
    top = f"the largest is {brief(float(values[0]))}" if count else "the update is still zero"
    return f"After round {t}: {plural(count, 'singular value')}, {top}; residual loss {brief(float(loss))}."


def _words(
    history: History,
    name: str,
    indices: Sequence[int],
    rows: Sequence[Array],
    goal: Array | None,
    goal_name: str,
) -> str:
    last = rows[-1]
    tops = ", ".join(brief(float(v)) for v in last[:3]) or "none"
    text = f"{subject(history)}, module {name}, {plural(len(indices), 'measured round')}"
    text += f" (the last is {indices[-1]}): "
    text += f"the accumulated update's largest singular values are now {tops}."
    start = starting_loss(history)
    text += f" Residual loss {brief(start)} before, {brief(float(residual(history)[0][-1]))} after."
    if goal is not None and len(goal) and goal[0] > 0:
        text += f" {goal_name[:1].upper()}{goal_name[1:]}: {', '.join(brief(float(v)) for v in goal[:3])};"
        reach = float(last[0] / goal[0]) if len(last) else 0.0
        share = f"has reached {reach:.0%} of it" if goal_name == "target" else f"is {brief(reach)} times its"
        text += f" the first singular value {share}."
    return text


def _table(indices: Sequence[int], rows: Sequence[Array], goal: Array | None, width: int) -> pd.DataFrame:
    shown = min(width, 8)
    table = [{"round": str(t)} | {f"σ{i + 1}": row[i] if i < len(row) else 0.0 for i in range(shown)}
             for t, row in zip(indices, rows, strict=True)]  # fmt: skip
    if goal is not None:
        table.append(
            {"round": "target"} | {f"σ{i + 1}": goal[i] if i < len(goal) else 0.0 for i in range(shown)}
        )
    return pd.DataFrame(table)
