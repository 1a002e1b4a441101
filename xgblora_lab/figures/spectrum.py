"""The singular spectrum of the accumulated update, round by round, beside the residual loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

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
)
from xgblora_lab.figures._staged import Module, Staged, canvas, draw, set_axes
from xgblora_lab.figures._style import layout

MISSING = "No spectrum was measured: add the hook, Bench(…, hooks=[Spectrum()]), and run again."
TITLE = "Singular spectrum of the accumulated update"


def spectrum(
    history: History | Iterable[History],
    module: str | None = None,
    *,
    target: Mapping[str, Sequence[float]] | History | None = None,
    rounds: Sequence[int] | None = None,
    top: int = 64,
    beside: History | None = None,
    planned: int = 0,
) -> Figure:
    """Singular values of a module's accumulated update after every round, with a slider that needs no kernel.

    Left the residual loss, and below it a heat map rounds × singular index on the same axis of rounds. Right
    the spectrum after the round under the slider, over those of some chosen rounds and the target.

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
    beside : History, optional
        Another run to compare with. Its loss and spectrum stand where it had done as many optimizer steps.
    planned : int, default 0
        How many rounds the axis has room for at least. Where it is above 0, a run without rounds is drawn
        too: its target, and panels that are still empty.

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
    goals, goal_name = target_spectrum(history, target)
    if not any(len(rows[-1]) for rows in found.values() if rows):
        if len(history) or not planned:
            return blank(TITLE, MISSING)
        found = {name: [] for name in ([module] if module else list(goals)[:1])} or {"": []}
    name = module or max(found, key=lambda m: float(np.square(found[m][-1]).sum()) if found[m] else 0.0)
    if name not in found:
        raise ValueError(f"No spectrum of module {name!r} was measured; measured are {', '.join(found)}.")
    goal = goals.get(name)
    longest = max(len(s) for s in [*found[name], goal if goal is not None else ()])
    shown = Module(name, indices, found[name], goal, goal_name, max(1, min(top, longest)))
    pick = _spread(indices) if rounds is None else [indices.index(t) for t in rounds if t in indices]
    plot = canvas()
    staged = Staged(history, shown, beside, planned)
    losses = draw(plot, staged, pick)
    cut = f" · the {shown.width} largest of {longest} singular values" if longest > shown.width else ""
    layout(plot, f"{TITLE}: {subject(history)}", name + cut, height=720)
    set_axes(plot, staged)
    if len(indices) > 1:
        _slider(plot, indices)
    if not len(history):
        return Figure(plot, f"{subject(history)}: no round yet.", _table(shown))
    words = tuple(_frame_words(t, s, v) for t, s, v in zip(indices, shown.values, losses, strict=True))
    return Figure(plot, _words(history, shown), _table(shown), words)


def _spread(indices: Sequence[int]) -> list[int]:
    """Four rounds, evenly spaced, without the last (it is under the slider at first)."""
    return sorted({int(i) for i in np.linspace(0, len(indices) - 1, 5)[:-1]}) if len(indices) > 1 else []


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


def _words(history: History, shown: Module) -> str:
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


def _table(shown: Module) -> pd.DataFrame:
    named = list(zip(map(str, shown.indices), shown.values, strict=True))
    if shown.goal is not None:
        named.append(("target", shown.goal))
    columns = range(min(shown.width, 8))
    return pd.DataFrame(
        {"round": name} | {f"σ{i + 1}": values[i] if i < len(values) else 0.0 for i in columns}
        for name, values in named
    )
