"""When boosting wins, over the steepness of the planted spectrum and the budget of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import brief, number, plural
from xgblora_lab.figures._style import DIVERGING, layout


def boosting_map(
    cells: pd.DataFrame | Iterable[Mapping[str, Any]] | Mapping[tuple[float, float], float],
    *,
    steepness: str = "steepness of the planted spectrum",
    budget: str = "step budget (optimizer steps)",
    reference: str = "LoRA of rank r",
) -> Figure:
    """XGBLoRA's loss divided by that of LoRA of rank r, for every steepness × step budget.

    Below 1 boosting wins.

    Parameters
    ----------
    cells : DataFrame, iterable of mapping, or mapping of (steepness, budget) to ratio
        A table has the columns steepness, budget and ratio. Several rows of one cell (seeds) give their
        median.
    steepness, budget : str
        Titles of the axes.
    reference : str
        What XGBLoRA is compared with, in words.

    Returns
    -------
    Figure
        With one row per cell in its table.

    Raises
    ------
    ValueError
        Where a column is missing or a ratio is negative.
    """
    frame = _frame(cells)
    title = f"When boosting wins: XGBLoRA's loss divided by {reference}'s"
    if frame.empty or not np.isfinite(frame["ratio"]).any():
        return blank(title, "The map has no finite ratio yet: race XGBLoRA and LoRA at a few budgets first.")
    table = frame.groupby(["steepness", "budget"], as_index=False)["ratio"].median()
    grid = table.pivot(index="steepness", columns="budget", values="ratio").sort_index().sort_index(axis=1)
    plot = go.Figure(_heat(grid))
    note = "below 1× (blue) boosting wins, above 1× (orange) it loses"
    layout(plot, title, note, max(480, 60 * len(grid) + 220))
    plot.update_xaxes(title_text=budget, type="category", showgrid=False)
    plot.update_yaxes(title_text=steepness, type="category", showgrid=False)
    return Figure(plot, _words(table, reference), table)


def _heat(grid: pd.DataFrame) -> go.Heatmap:
    """The cells by the logarithm of their ratio, so that a draw is the middle of the colours."""
    ratios = grid.to_numpy(dtype=float)
    logs = np.log2(ratios, where=ratios > 0, out=np.full_like(ratios, np.nan))
    limit = max(1.0, float(np.nanmax(np.abs(logs)))) if np.isfinite(logs).any() else 1.0
    ticks = sorted({-limit, -limit / 2, 0.0, limit / 2, limit})
    bar = {"title": {"text": "ratio of losses", "side": "right"}, "thickness": 18}
    return go.Heatmap(
        x=[brief(float(b)) for b in grid.columns],
        y=[brief(float(s)) for s in grid.index],
        z=logs,
        zmin=-limit,
        zmax=limit,
        colorscale=[list(c) for c in DIVERGING],
        xgap=3,
        ygap=3,
        text=[[f"{brief(v)}×" if math.isfinite(v) else "" for v in row] for row in ratios],
        texttemplate="%{text}",
        textfont={"size": 18},
        hovertemplate="steepness %{y}, budget %{x}: %{text}<extra></extra>",
        colorbar=bar | {"tickvals": ticks, "ticktext": [f"{brief(2**t)}×" for t in ticks]},
    )


def _frame(cells: Any) -> pd.DataFrame:
    if isinstance(cells, Mapping):
        cells = [{"steepness": s, "budget": b, "ratio": ratio} for (s, b), ratio in cells.items()]
    frame = pd.DataFrame(cells if isinstance(cells, pd.DataFrame) else list(cells))
    if frame.empty:
        return pd.DataFrame({"steepness": [], "budget": [], "ratio": []})
    missing = [name for name in ("steepness", "budget", "ratio") if name not in frame]
    if missing:
        raise ValueError(
            f"The map's table lacks {', '.join(missing)}; it needs columns steepness, budget and ratio."
        )
    frame = frame[["steepness", "budget", "ratio"]].map(number)
    if (frame["ratio"] < 0).any():
        raise ValueError("A ratio of losses cannot be negative: give XGBLoRA's loss divided by LoRA's.")
    return frame


def _words(table: pd.DataFrame, reference: str) -> str:
    known = table.dropna(subset="ratio")
    wins = known[known["ratio"] < 1]
    best, worst = known.loc[known["ratio"].idxmin()], known.loc[known["ratio"].idxmax()]

    def place(row: pd.Series) -> str:
        return (
            f"{brief(row['ratio'])}× at steepness {brief(row['steepness'])} and {brief(row['budget'])} steps"
        )

    text = f"Boosting's loss is below that of {reference} in {len(wins)} of {plural(len(known), 'cell')}."
    text += f" Most favourable to boosting: {place(best)}; least: {place(worst)}."
    missing = len(table) - len(known)
    return text + (f" {plural(missing, 'cell')} without a finite ratio." if missing else "")
