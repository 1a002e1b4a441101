"""What a method costs, in bytes at the peak and in seconds per step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import (
    brief,
    chosen,
    in_bytes,
    listed,
    plural,
    variants,
)
from xgblora_lab.figures._style import BLUE, GREEN, ORANGE, layout, log_ticks, ratio_axis, style

PARTS = {"trainable": (BLUE, ""), "gradients": (ORANGE, "/"), "optimizer": (GREEN, "x")}  # colour, pattern
BESIDE = {"textposition": "outside", "cliponaxis": False, "textfont": {"size": 14}}  # a bar's number


def costs(histories: History | Iterable[History]) -> Figure:
    """Peak bytes of what is trained (parameters, gradients, optimizer) and seconds per step, by method.

    The base model and activations, which every method holds, are not counted.

    Parameters
    ----------
    histories : History or iterable of History
        Of a race, the runs at the chosen options count, as their median over seeds.

    Returns
    -------
    Figure
        With one row per method in its table.

    Raises
    ------
    ValueError
        Where there is no history.
    """
    runs = [h for h in chosen(listed(histories)) if len(h)]
    if not runs:
        return blank("Memory and time", "No history here has a round yet: run the bench or the race first.")
    table = _table(runs)
    count = len(table)
    plot = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.06,
        shared_yaxes=True,
        subplot_titles=("peak memory of what is trained", "time"),
    )
    _draw_bytes(plot, table)
    _draw_seconds(plot, table, variants(runs))
    layout(plot, f"Memory and time: {plural(count, 'method')}", height=max(440, 90 * count + 200))
    plot.update_layout(barmode="group", bargap=0.25, legend={"traceorder": "normal"})
    _axes(plot, table)
    return Figure(plot, _words(table), table)


def _draw_bytes(plot: go.Figure, table: pd.DataFrame) -> None:
    for part, (colour, shape) in PARTS.items():
        values = table[f"{part} bytes"]
        pattern = {"shape": shape, "bgcolor": colour, "fgcolor": "white", "size": 8}
        plot.add_bar(
            x=values,
            y=table["method"],
            orientation="h",
            name=part,
            text=[in_bytes(v) for v in values],
            constraintext="none",
            marker={"color": colour, "pattern": pattern},
            hovertemplate="%{y}: %{text}<extra>" + part + "</extra>",
            **BESIDE,
            row=1,
            col=1,
        )


def _draw_seconds(plot: go.Figure, table: pd.DataFrame, looks: Mapping[str, tuple[str, int]]) -> None:
    seconds = table["seconds per step"]
    plot.add_bar(
        x=seconds,
        y=table["method"],
        orientation="h",
        name="seconds per step",
        showlegend=False,
        text=[f"{brief(v)} s" for v in seconds],
        marker={"color": [style(*looks[name]).colour for name in table["method"]]},
        width=0.5,
        hovertemplate="%{y}: %{x:.3g} s per step<extra></extra>",
        **BESIDE,
        row=1,
        col=2,
    )


def _axes(plot: go.Figure, table: pd.DataFrame) -> None:
    every = table[[f"{part} bytes" for part in PARTS]].to_numpy().ravel()
    positive = every[np.isfinite(every) & (every > 0)]
    if ratio_axis(positive, 20) == "log":
        span = [math.log10(positive.min()) - 0.4, math.log10(positive.max()) + 0.7]
        plot.update_xaxes(title_text="bytes, log scale", range=span, row=1, col=1, **log_ticks(positive, "B"))
    else:
        room = [0, 1.25 * positive.max()] if positive.size else None
        ticks = {"nticks": 5, "exponentformat": "SI", "minexponent": 0, "ticksuffix": "B"}
        plot.update_xaxes(title_text="bytes", range=room, row=1, col=1, **ticks)
    seconds = table["seconds per step"]
    slow = float(np.nanmax(seconds)) if np.isfinite(seconds).any() else 1.0
    plot.update_xaxes(title_text="seconds per step", range=[0, 1.35 * slow], nticks=5, row=1, col=2)
    plot.update_yaxes(autorange="reversed", ticks="", showgrid=False)


def _table(runs: list[History]) -> pd.DataFrame:
    rows = []
    for h in runs:
        steps = sum(len(r.losses) for r in h)
        gradients = max(r.gradient_bytes for r in h)
        rows.append(
            {
                "method": h.label,
                "trainable bytes": gradients,  # a gradient has its parameter's shape and type
                "gradients bytes": gradients,
                "optimizer bytes": max(r.optimizer_bytes for r in h),
                "seconds per step": sum(r.seconds for r in h) / steps if steps else math.nan,
                "extra passes": sum(r.extra_passes for r in h),
            }
        )
    return pd.DataFrame(rows).groupby("method", as_index=False, sort=False).median(numeric_only=True)


def _words(table: pd.DataFrame) -> str:
    parts = []
    for _, row in table.iterrows():
        total = sum(row[f"{part} bytes"] for part in PARTS)
        parts.append(f"{row['method']} {in_bytes(total)} and {brief(row['seconds per step'])} s per step")
    text = "Peak trainable, gradient and optimizer bytes together, and time: " + "; ".join(parts) + "."
    if len(table) > 1:
        totals = table[[f"{part} bytes" for part in PARTS]].sum(axis=1)
        small, large = totals.idxmin(), totals.idxmax()
        if totals[small] > 0 and small != large:
            ratio = brief(round(float(totals[large] / totals[small]), 1))
            text += f" {table['method'][large]} holds {ratio} times what {table['method'][small]} does."
    return text
