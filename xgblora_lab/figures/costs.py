"""Figure 8: what a method costs, in bytes at the peak and in seconds per step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import (
    brief,
    chosen,
    in_bytes,
    label,
    listed,
    number,
    plural,
    setting,
    variants,
)
from xgblora_lab.figures._style import BLUE, GREEN, ORANGE, layout, log_ticks, ratio_axis, style

PARTS = {"trainable": (BLUE, ""), "gradients": (ORANGE, "/"), "optimizer": (GREEN, "x")}  # colour, pattern


def costs(histories: History | Iterable[History]) -> Figure:
    """Peak bytes of what is trained (parameters, gradients, optimizer) and seconds per step, by method.

    Medians over the seeds of the chosen learning rate. Trainable bytes are `peak_parameters` × 4, or
    × `settings["parameter_bytes"]`. The base model and activations, which every method holds, are not
    counted.
    """
    runs = [h for h in chosen(listed(histories)) if len(h)]
    if not runs:
        return blank("Memory and time", "No history here has a round yet: run the bench or the race first.")
    table = _table(runs)
    names = list(table["method"])
    plot = make_subplots(
        rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.06, shared_yaxes=True,
        subplot_titles=("peak memory of what is trained", "time"),
    )  # fmt: skip
    for part, (colour, pattern) in PARTS.items():
        values = table[f"{part} bytes"]
        plot.add_bar(
            x=values, y=names, orientation="h", name=part, row=1, col=1, text=[in_bytes(v) for v in values],
            textposition="outside", cliponaxis=False, textfont={"size": 14}, constraintext="none",
            marker={"color": colour,
            "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "white", "size": 8}},
            hovertemplate="%{y}: %{text}<extra>" + part + "</extra>",
        )  # fmt: skip
    seconds = table["seconds per step"]
    looks = variants(runs)
    plot.add_bar(
        x=seconds, y=names, orientation="h", name="seconds per step", showlegend=False, row=1, col=2,
        text=[f"{brief(v)} s" for v in seconds], textposition="outside", cliponaxis=False,
        textfont={"size": 14},
        marker={"color": [style(*looks[n]).colour for n in names]}, width=0.5,
        hovertemplate="%{y}: %{x:.3g} s per step<extra></extra>",
    )  # fmt: skip
    every = table[[f"{part} bytes" for part in PARTS]].to_numpy().ravel()
    positive = every[np.isfinite(every) & (every > 0)]
    kind = ratio_axis(positive, 20)
    layout(plot, f"Memory and time: {plural(len(names), 'method')}", height=max(440, 90 * len(names) + 200))
    plot.update_layout(barmode="group", bargap=0.25, legend={"traceorder": "normal"})
    span = [math.log10(positive.min()) - 0.4, math.log10(positive.max()) + 0.7] if kind == "log" else None
    room = [0, 1.25 * positive.max()] if positive.size else None
    ticks = (
        log_ticks(positive, "B")
        if kind == "log"
        else {"nticks": 5, "exponentformat": "SI", "minexponent": 0, "ticksuffix": "B"}
    )
    title = "bytes, logarithmic axis" if kind == "log" else "bytes"
    plot.update_xaxes(title_text=title, range=span or room, row=1, col=1, **ticks)
    slow = float(np.nanmax(seconds)) if np.isfinite(seconds).any() else 1.0
    plot.update_xaxes(title_text="seconds per optimizer step", range=[0, 1.35 * slow], nticks=5, row=1, col=2)
    plot.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    return Figure(plot, _words(table), table)


def _table(runs: list[History]) -> pd.DataFrame:
    rows = []
    for h in runs:
        steps = sum(len(r.losses) for r in h)
        rows.append({
            "method": label(h),
            "trainable bytes": max(r.peak_parameters for r in h) * number(setting(h, "parameter_bytes", 4)),
            "gradients bytes": max(r.gradient_bytes for r in h),
            "optimizer bytes": max(r.optimizer_bytes for r in h),
            "seconds per step": sum(r.seconds for r in h) / steps if steps else math.nan,
            "extra passes": sum(r.extra_passes for r in h),
        })  # fmt: skip
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
