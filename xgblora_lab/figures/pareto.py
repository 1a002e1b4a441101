"""What a score costs: which methods no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._lanes import AXES, Measure, in_words, measure_of, rises
from xgblora_lab.figures._read import brief, chosen, in_bytes, listed, measured, number, plural, variants
from xgblora_lab.figures._style import GREY, INK, layout, log_ticks, style
from xgblora_lab.racing.summary import median, spread

COSTS = {  # what a score may be paid with: name → title with its unit
    "forgetting": "forgetting: rise of the loss on the base's own text (nats)",
    "memory": "peak memory of gradients and optimizer (bytes)",
    "gradient_bytes": "peak memory of gradients (bytes)",
    "optimizer_bytes": "peak memory of the optimizer (bytes)",
    "peak_parameters": AXES["peak_parameters"],
    "total_parameters": AXES["total_parameters"],
    "seconds": AXES["seconds"],
}
BYTES = ("memory", "gradient_bytes", "optimizer_bytes")


def pareto(
    histories: History | Iterable[History],
    x: str = "forgetting",
    *,
    score: str | None = None,
    greater_is_better: bool | None = None,
) -> Figure:
    """The final score of every run against what it cost, and the Pareto front of the methods.

    Small markers are runs, the large one is their median. On the front are the methods that no other one
    beats in score without costing more; it is drawn through the medians, because a front through single runs
    would reward luck.

    Parameters
    ----------
    histories : History or iterable of History
        Of a race, the runs at the chosen options count.
    x : str, default "forgetting"
        What less of is better: "forgetting" (the last measurement of the hook
        `xgblora_lab.racing.Forgetting`, in nats), "memory" (the most bytes of gradients and optimizer in one
        round), gradient_bytes, optimizer_bytes, peak_parameters, total_parameters or seconds.
    score : str, optional
        The key of `History.scores`. Default: "test", else "dev", where every run has it, else the last
        residual loss.
    greater_is_better : bool, optional
        Of the score. Default: what the task says of its metric; losses fall.

    Returns
    -------
    Figure
        With one row per method in its table.

    Raises
    ------
    ValueError
        Where there is no history, for an unknown `x`, or a score that no history has.
    """
    if x not in COSTS:
        raise ValueError(f"A score cannot be drawn against {x!r}; accepted are {', '.join(COSTS)}.")
    runs = [h for h in chosen(listed(histories)) if len(h)]
    title = f"Score against {x.replace('_', ' ')}"
    if not runs:
        return blank(title, "No history here has a round yet: run the bench or the race first.")
    measure = _measure(runs, score, greater_is_better)
    known = [h for h in runs if _cost(h, x) is not None]
    if not known:
        return blank(
            title, "No forgetting was measured: train with the hook Forgetting(task), on a task of text."
        )
    told = in_words(runs[0], measure)
    points = _points(known, x, measure)
    if not np.isfinite(points[["cost", "score"]]).all(axis=1).any():
        return blank(title, f"No run has a finite {told} and cost: all diverged. Lower the learning rate.")
    table = _table(points, measure.ranked)
    looks = variants(runs)
    plot = _plot(points, table, looks, x, told, measure.ranked)
    unknown = [label for label in looks if label not in set(table["method"])]
    text = _words(table, x, told, unknown)
    return Figure(plot, text, table.rename(columns={"cost": x, "score": f"{told} (median)"}))


def _plot(
    points: pd.DataFrame,
    table: pd.DataFrame,
    looks: Mapping[str, tuple[str, int]],
    x: str,
    told: str,
    greater: bool,
) -> go.Figure:
    plot = go.Figure()
    _draw_front(plot, table, points, greater)
    for label in table["method"]:
        _draw(plot, label, points[points["method"] == label], table, looks[label])
    note = f"left and {'up' if greater else 'down'} is better; "
    several = table["runs"].max() > 1
    note += "small markers are runs, large ones medians" if several else "one seed: differences may be chance"
    layout(plot, f"{told[:1].upper()}{told[1:]} against {x.replace('_', ' ')}", note)
    plot.update_layout(showlegend=True)
    _axes(plot, points, x, told)
    return plot


def _measure(runs: Sequence[History], score: str | None, greater: bool | None) -> Measure:
    if score is not None and not any(score in h.scores for h in runs):
        found = ", ".join(sorted({name for h in runs for name in h.scores})) or "none"
        raise ValueError(f"No history has the score {score!r}; scores are: {found}.")
    common = (name for name in ("test", "dev") if all(name in h.scores for h in runs))
    name = score or next(common, None)
    ranked = greater if greater is not None else rises(runs[0], name or "residual")
    return Measure(measure_of(runs).y, False, name, ranked)


def _cost(history: History, x: str) -> float | None:
    """What a run cost; None where it was not measured, nan where it diverged."""
    if x == "forgetting":
        found = measured(history, "forgetting")
        return number(found[-1][1]) if found else None
    if x == "memory":
        return max(r.gradient_bytes + r.optimizer_bytes for r in history)
    values = [float(getattr(r, x)) for r in history]
    return sum(values) if x == "seconds" else max(values)


def _points(runs: Sequence[History], x: str, measure: Measure) -> pd.DataFrame:
    """One row per run."""
    rows = [{"method": h.label, "cost": _cost(h, x), "score": measure.final(h)} for h in runs]
    return pd.DataFrame(rows).astype({"cost": float, "score": float})


def _table(points: pd.DataFrame, greater: bool) -> pd.DataFrame:
    """One row per method: medians over its runs, range of its score, whether it is on the front."""
    rows = []
    for label, runs in points.groupby("method", sort=False):
        found = spread(runs["score"].tolist(), greater)
        row = {"method": label, "cost": median(runs["cost"].tolist()), "score": found.median}
        rows.append(
            row
            | {"lowest": found.low, "highest": found.high, "runs": found.count, "diverged": found.diverged}
        )
    table = pd.DataFrame(rows)
    merit = table["score"] if greater else -table["score"]
    return table.assign(front=_front(table["cost"].tolist(), merit.tolist()))


def _front(costs: Sequence[float], merits: Sequence[float]) -> list[bool]:
    """Of every point, whether no other one is at least as cheap and as good, and better in one of the two."""
    points = list(zip(costs, merits, strict=True))
    return [
        math.isfinite(cost + merit)
        and not any(c <= cost and m >= merit and (c < cost or m > merit) for c, m in points)
        for cost, merit in points
    ]


def _draw_front(plot: go.Figure, table: pd.DataFrame, points: pd.DataFrame, greater: bool) -> None:
    """The border of what is dominated: a staircase from the worst score to the largest cost."""
    front = table[table["front"]].sort_values("cost")
    if front.empty:
        return
    finite = points[np.isfinite(points[["cost", "score"]]).all(axis=1)]
    worst = finite["score"].min() if greater else finite["score"].max()
    plot.add_scatter(
        x=[front["cost"].iloc[0], *front["cost"], finite["cost"].max()],
        y=[worst, *front["score"], front["score"].iloc[-1]],
        name="Pareto front",
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 2.5, "shape": "hv"},
        hoverinfo="skip",
    )


def _draw(
    plot: go.Figure, label: str, runs: pd.DataFrame, table: pd.DataFrame, variant: tuple[str, int]
) -> None:
    """The runs of one method, small, and their median, large."""
    look = style(*variant)
    middle = table[table["method"] == label].iloc[0]
    group = {"mode": "markers", "legendgroup": label, "name": label}
    where = "%{x:,.3s}: %{y:.4g}<extra>" + label
    if len(runs) > 1:
        plot.add_scatter(
            x=runs["cost"],
            y=runs["score"],
            marker={"color": look.colour, "symbol": look.marker, "size": 9, "opacity": 0.55},
            showlegend=False,
            hovertemplate=f"{where}, one run</extra>",
            **group,
        )
    large = {"color": look.colour, "symbol": look.marker, "size": 19, "line": {"width": 1.5, "color": INK}}
    plot.add_scatter(
        x=[middle["cost"]],
        y=[middle["score"]],
        marker=large,
        hovertemplate=f"{where}{', median' if len(runs) > 1 else ''}</extra>",
        **group,
    )


def _axes(plot: go.Figure, points: pd.DataFrame, x: str, told: str) -> None:
    costs = points["cost"]
    log = x != "forgetting" and bool((costs > 0).all())
    ticks = log_ticks(costs, "B" if x in BYTES else "") if log else {}
    plot.update_xaxes(title_text=COSTS[x] + (", log scale" if log else ""), **ticks)
    plot.update_yaxes(title_text=told)
    if x == "forgetting":
        plot.add_vline(x=0, line={"color": INK, "width": 1.5})


def _words(table: pd.DataFrame, x: str, told: str, unknown: Sequence[str]) -> str:
    written = in_bytes if x in BYTES else brief

    def place(row: pd.Series) -> str:
        return f"{row['method']} ({brief(row['score'])} at {written(row['cost'])})"

    ordered = table[np.isfinite(table[["cost", "score"]]).all(axis=1)].sort_values("cost")
    front = [place(row) for _, row in ordered[ordered["front"]].iterrows()]
    behind = [place(row) for _, row in ordered[~ordered["front"]].iterrows()]
    what = f"{told[:1].upper()}{told[1:]} against {x.replace('_', ' ')}"
    text = f"{what}: on the Pareto front {'is' if len(front) == 1 else 'are'} {', '.join(front) or 'none'}."
    if behind:
        text += f" Another method is better in one and no worse in the other than: {', '.join(behind)}."
    for _, row in table[table["diverged"] > 0].iterrows():
        text += f" {row['method']} diverged in {row['diverged']} of {plural(row['runs'], 'run')}."
    return text + (f" Not measured: {', '.join(unknown)}." if unknown else "")
