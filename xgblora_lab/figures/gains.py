"""Where the gain comes from, as boosted trees show the importance of their features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import brief, layer, natural, number, plural, residual, short, single, subject
from xgblora_lab.figures._style import BLUE, GREY, HEAT, INK, VERMILLION, layout, say

WIDTHS = [0.66, 0.34]  # of the map and the bars
PANEL = 190  # height in pixels of the panel for the rounds left out
LeftOut = Mapping[int, Any] | Iterable[tuple[int, Any]]


def gains(
    history: History | Iterable[History],
    by: str = "module",
    *,
    left_out: LeftOut | None = None,
    whole: float | None = None,
) -> Figure:
    """Which modules were chosen when, and what each gained; below, the loss when a booster is left out.

    The gain of a module is the measurement `"gain"` where the hook `Gain` credited it, else the round's gain
    in equal parts to its modules.

    Parameters
    ----------
    history : History
        Of one run.
    by : str, default "module"
        Whose gain is shown: "module" or "layer".
    left_out : mapping or iterable of pairs, optional
        What `bench.left_out()` yields, or a dict of round to the loss without its boosters.
    whole : float, optional
        The loss with all boosters on the same split, `bench.evaluate("dev")["loss"]`. Default: the last
        residual loss.

    Returns
    -------
    Figure
        With one row per module or layer in its table.

    Raises
    ------
    ValueError
        For another `by`, or several histories.
    """
    if by not in ("module", "layer"):
        raise ValueError(f"Gain is shown by 'module' or by 'layer', not by {by!r}.")
    history = single(history)
    title = f"Where the gain comes from, by {by}"
    if not len(history):
        return blank(title, "This history has no rounds yet: run the bench for a round first.")
    credit, split = _credit(history, by)
    if credit.empty:
        return blank(title, "No round of this history trained a module, so there is no gain to share.")
    left = _left_out(history, left_out, whole)
    total = credit.sum(min_count=1)
    plot = _plot(history, credit, by, left)
    note = (
        "a round's gain split equally between its modules"
        if split
        else "gain credited to each module by a hook"
    )
    layout(plot, f"{title}: {subject(history)}", note, plot.layout.height)
    _axes(plot, credit)
    return Figure(plot, _words(history, credit, total, split, left, by), _table(credit, total))


def _plot(history: History, credit: pd.DataFrame, by: str, left: Mapping[int, float]) -> go.Figure:
    names = list(credit.columns)
    ticks = list(short(names).values()) if by == "module" else names
    plot = _canvas(len(ticks), bool(left))
    known = bool(np.isfinite(credit.to_numpy()).any())
    _draw_heat(plot, credit if known else _chosen(history, by).reindex(columns=names), ticks, known)
    _draw_total(plot, credit.sum(min_count=1), ticks)
    if left:
        _draw_left_out(plot, left)
    if not known:
        message = (
            "No gain in this history is a number: the run diverged. The map shows which modules were chosen."
        )
        say(plot, message)
    return plot


def _canvas(names: int, below: bool) -> go.Figure:
    """An empty figure with a row per name; `below`: with a panel for the rounds left out."""
    tall = min(1400, max(380, 24 * names + 160))
    titles = ["chosen when, and what the round gained", "gain in all rounds"]
    if not below:
        one = make_subplots(
            rows=1, cols=2, column_widths=WIDTHS, horizontal_spacing=0.05, subplot_titles=titles
        )
        return one.update_layout(height=tall)
    height = tall + PANEL
    two = make_subplots(
        rows=2,
        cols=2,
        column_widths=WIDTHS,
        row_heights=[tall / height, PANEL / height],
        horizontal_spacing=0.05,
        vertical_spacing=120 / (tall + 20),
        specs=[[{}, {}], [{}, None]],
        subplot_titles=[*titles, "the loss changes by this when a round's boosters are left out"],
    )
    return two.update_layout(height=height)


def _draw_heat(plot: go.Figure, drawn: pd.DataFrame, ticks: list[str], known: bool) -> None:
    share = plot.layout.yaxis.domain[1] - plot.layout.yaxis.domain[0]
    bar = {"title": {"text": "gain", "side": "right"}, "thickness": 14, "nticks": 5}
    plot.add_heatmap(
        x=drawn.index,
        y=ticks,
        z=drawn.to_numpy(dtype=float).T,
        colorscale=HEAT,
        xgap=1,
        ygap=1,
        showscale=known,
        colorbar=bar | {"len": share, "y": 1, "yanchor": "top"},
        hovertemplate="round %{x}, %{y}: gain %{z:.3g}<extra></extra>",
        row=1,
        col=1,
    )


def _draw_total(plot: go.Figure, total: pd.Series, ticks: list[str]) -> None:
    colours = [BLUE if v >= 0 else VERMILLION for v in total]
    plot.add_bar(
        x=total.to_numpy(),
        y=ticks,
        orientation="h",
        showlegend=False,
        marker={"color": colours, "pattern": {"shape": ["" if v >= 0 else "/" for v in total]}},
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        row=1,
        col=2,
    )


def _axes(plot: go.Figure, credit: pd.DataFrame) -> None:
    names = credit.shape[1]
    edges = [credit.index.min() - 0.5, credit.index.max() + 0.5]
    few = {"dtick": 1} if len(credit) <= 8 else {}
    plot.update_xaxes(title_text="round t", range=edges, **few, row=1, col=1)
    plot.update_xaxes(title_text="gain (decrease of the loss)", nticks=5, row=1, col=2)
    every = {"dtick": 1} if names <= 45 else {}
    plot.update_yaxes(range=[names - 0.5, -0.5], **every, row=1, col=1)
    plot.update_yaxes(range=[names - 0.5, -0.5], showticklabels=False, ticks="", row=1, col=2)


def _credit(history: History, by: str) -> tuple[pd.DataFrame, bool]:
    """Rounds × modules (or layers), nan where not chosen; and whether gains were split equally."""
    rows, split = {}, False
    for r in history:
        given = r.measurements.get("gain")
        if isinstance(given, Mapping):
            row = {name: number(v) for name, v in given.items()}
        else:
            split = True
            row = {name: r.gain / len(r.modules) for name in r.modules}
        rows[r.index] = row
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
    if by == "layer" and not frame.empty:
        frame = frame.T.groupby(layer).sum(min_count=1).T
    return frame[sorted(frame.columns, key=natural)], split


def _chosen(history: History, by: str) -> pd.DataFrame:
    """Rounds × modules (or layers): 1 where chosen, nan where not."""
    rows = {r.index: {(layer(m) if by == "layer" else m): 1.0 for m in r.modules} for r in history}
    return pd.DataFrame.from_dict(rows, orient="index")


def _left_out(history: History, given: LeftOut | None, whole: float | None) -> dict[int, float]:
    """Round → how the loss changes without its boosters, in the order of the rounds."""
    pairs = given.items() if isinstance(given, Mapping) else given or ()
    losses = {int(t): number(v["loss"] if isinstance(v, Mapping) else v) for t, v in pairs}
    base = number(residual(history)[0][-1] if whole is None else whole)
    return {t: loss - base for t, loss in sorted(losses.items())}


def _draw_left_out(plot: go.Figure, left: Mapping[int, float]) -> None:
    hover = "without round %{x}: %{y:+.4g}<extra></extra>"
    plot.add_bar(
        x=list(left),
        y=list(left.values()),
        showlegend=False,
        marker={"color": GREY},
        hovertemplate=hover,
        row=2,
        col=1,
    )
    plot.add_hline(y=0, line={"color": INK, "width": 1.5}, row=2, col=1)
    plot.update_xaxes(title_text="round left out", range=[min(left) - 0.5, max(left) + 0.5], row=2, col=1)
    plot.update_yaxes(title_text="loss change", nticks=4, row=2, col=1)


def _words(
    history: History, credit: pd.DataFrame, total: pd.Series, split: bool, left: Mapping[int, float], by: str
) -> str:
    text = f"{subject(history)}, {plural(len(credit), 'round')} over {plural(credit.shape[1], by)}: "
    if total.isna().all():
        return text + "no gain is a number; the run diverged."
    everything = float(total.sum())
    tops = total.sort_values(ascending=False).head(3)
    share = f" ({tops.sum() / everything:.0%} of {brief(everything)})" if everything > 0 else ""
    named = ", ".join(f"{m} ({brief(float(v))})" for m, v in tops.items())
    text += f"most was gained by {named}{share}."
    per_layer = total.groupby(layer).sum() if by == "module" else total
    if by == "module" and 1 < len(per_layer) < len(total):
        text += f" By layer, {per_layer.idxmax()} leads with {brief(float(per_layer.max()))}."
    if split:
        text += " A round's gain is split equally between its modules, because no hook credited it to each."
    finite = {t: v for t, v in left.items() if math.isfinite(v)}
    if finite:
        most = max(finite, key=lambda t: finite[t])
        text += f" Leaving out round {most} raises the loss most, by {finite[most]:+.3g}."
    return text


def _table(credit: pd.DataFrame, total: pd.Series) -> pd.DataFrame:
    times: Sequence[int] = [int(n) for n in credit.notna().sum()]
    everything = float(total.sum())
    table = pd.DataFrame({"name": credit.columns, "times chosen": times, "gain": total.to_numpy(dtype=float)})
    table["share"] = table["gain"] / everything if everything > 0 else math.nan
    return table.sort_values("gain", ascending=False, ignore_index=True)
