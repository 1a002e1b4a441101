"""Pictures under a slider that need no kernel: a matrix as a sum of rank-1 pictures, and boosted stumps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.figures._style import BLUE, DIVERGING, GREY, VERMILLION, layout


def rank_one_sum(U: Any, s: Any, Vh: Any, count: int) -> go.Figure:
    """Draw a matrix as a sum of its first rank-1 pictures, one more for each place of the slider.

    Parameters
    ----------
    U : array (d, r)
        Left singular vectors.
    s : array (r,)
        Singular values, descending.
    Vh : array (r, k)
        Right singular vectors.
    count : int
        The most pictures that are summed.

    Returns
    -------
    plotly.graph_objects.Figure
        The target, the t-th picture, the sum of the first t, and what is left, in one scale of colours. The
        line below the title says how much is left.
    """
    U, s, Vh = (np.asarray(part, dtype=float) for part in (U, s, Vh))
    target = (U * s) @ Vh
    reach = float(np.abs(target).max())
    titles = ("target W*", "picture t", "sum of t pictures", "what is left")
    figure = make_subplots(rows=1, cols=4, subplot_titles=titles, horizontal_spacing=0.03)
    look: dict[str, Any] = {"zmin": -reach, "zmax": reach, "colorscale": DIVERGING}
    look["hovertemplate"] = "%{z:.2f}<extra></extra>"
    frames: list[list[Any]] = []
    labels = []
    for t in range(count + 1):
        total = (U[:, :t] * s[:t]) @ Vh[:t]
        picture = s[t - 1] * np.outer(U[:, t - 1], Vh[t - 1]) if t else np.zeros_like(target)
        frames.append([picture, total, target - total])
        left = float((s[t:] ** 2).sum() / (s**2).sum())
        labels.append(f"sum of {t}: {left:.0%} of the sum of squared entries is left")
    for column, z in enumerate([target, *frames[0]], 1):
        bar = {"showscale": column == 4, "colorbar": {"title": "entry", "thickness": 12}}
        figure.add_heatmap(z=z.round(4), **look, **bar, row=1, col=column)
    layout(figure, "A matrix is a sum of pictures of rank 1", labels[0], 440)
    figure.update_xaxes(showticklabels=False, ticks="", showline=False, constrain="domain")
    figure.update_yaxes(showticklabels=False, ticks="", showline=False, autorange="reversed")
    _slide(figure, labels, [[{"z": z.round(4)} for z in frame] for frame in frames], (1, 2, 3))
    return figure


def boosted_stumps(x: Any, y: Any, stages: Sequence[Any]) -> go.Figure:
    """Draw boosted regression on a line, one more round for each place of the slider.

    Parameters
    ----------
    x, y : array (n,)
        The data; x ascends.
    stages : sequence of array (n,)
        Predictions after 0, 1, 2, … rounds, as `staged_predict` yields them behind a first one.

    Returns
    -------
    plotly.graph_objects.Figure
        On the left the data and the sum of the trees so far, on the right the residuals and what the next
        tree adds.
    """
    x, y = np.ravel(np.asarray(x, dtype=float)), np.asarray(y, dtype=float)
    stages = [np.asarray(stage, dtype=float) for stage in stages]
    shown = range(len(stages) - 1)
    titles = ("data, and the sum of all trees so far", "residuals, and what the next tree adds")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.17)
    dots = {"mode": "markers", "marker": {"color": GREY, "size": 7}}
    stairs = {"mode": "lines", "line": {"shape": "hvh", "width": 3.5}}
    figure.add_scatter(x=x, y=y, name="data", **dots, row=1, col=1)
    figure.add_scatter(x=x, y=stages[0], name="sum of trees", **stairs, line_color=VERMILLION, row=1, col=1)
    figure.add_scatter(x=x, y=y - stages[0], name="residual", **dots, marker_symbol="diamond", row=1, col=2)
    figure.add_scatter(
        x=x, y=stages[1] - stages[0], name="next tree, shrunk", **stairs, line_color=BLUE, line_dash="dash",
        row=1, col=2,
    )  # fmt: skip
    labels = [
        f"{t} tree{'s' if t != 1 else ''}: the mean squared residual is {np.mean((y - stages[t]) ** 2):.3f}"
        for t in shown
    ]
    layout(figure, "Boosting on a line: each tree is fitted to what is left", labels[0], 520)
    figure.update_xaxes(title_text="x").update_yaxes(title_text="y", col=1)
    first = y - stages[0]  # the largest residuals: one scale for all rounds
    edge = 0.1 * float(first.max() - first.min())
    ends = [float(first.min()) - edge, float(first.max()) + edge]
    figure.update_yaxes(title_text="y − prediction", range=ends, col=2)
    figure.update_layout(legend={"y": -0.55})
    moved = [[{"y": stages[t]}, {"y": y - stages[t]}, {"y": stages[t + 1] - stages[t]}] for t in shown]
    _slide(figure, labels, moved, (1, 2, 3))
    return figure


def _slide(
    figure: go.Figure, labels: Sequence[str], moved: Sequence[list[dict[str, Any]]], traces: Sequence[int]
) -> None:
    """Add the frames, the slider that goes through them, and a line below the title that follows it."""
    kinds = [figure.data[i].type for i in traces]
    figure.frames = [
        {
            "name": str(place),
            "traces": list(traces),
            "data": [{"type": kind, **values} for kind, values in zip(kinds, data, strict=True)],
            "layout": {"title": {"subtitle": {"text": text}}},
        }
        for place, (text, data) in enumerate(zip(labels, moved, strict=True))
    ]
    go_to = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [
        {"label": str(place), "method": "animate", "args": [[str(place)], go_to]}
        for place in range(len(labels))
    ]
    now = {"prefix": "t = ", "font": {"size": 18}}
    figure.update_layout(sliders=[{"steps": steps, "active": 0, "pad": {"t": 40}, "currentvalue": now}])
