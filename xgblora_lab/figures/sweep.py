"""Which learning rates every method was tried at, and how much the others lose."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._lanes import Measure, alike, entries, in_words, measure_of
from xgblora_lab.figures._read import brief, listed, number, plural
from xgblora_lab.figures._style import GREY, HEAT, INK, VERMILLION, layout, log_ticks
from xgblora_lab.racing.result import Race
from xgblora_lab.racing.summary import best, edge

LOST = 0.5  # what is further behind, as a share of the best score, has the palest colour
LARGE, SMALL = 30.0, 12.0  # diameters in pixels of the best rate and of the palest
FINISHED, EARLY, FAILED, DIVERGED = "finished", "ended early", "failed", "diverged"


def sweep(source: Race | History | Iterable[History]) -> Figure:
    """Learning rate × method as a matrix of dots, by how far each rate is behind the method's best.

    Where a rate was tried with several sets of other knobs, its best score counts. The chosen rate
    is ringed. A rate that failed or diverged is a cross.

    Parameters
    ----------
    source : Race, History or iterable of History
        A race has all its trials, scored on dev by one seed. Histories are those trials alone that ran over
        the whole plan; they are ranked as in `figures.race`, by their median over seeds, and without a mark
        the best rate is ringed.

    Returns
    -------
    Figure
        With one row per method and learning rate in its table.

    Raises
    ------
    ValueError
        Where there is no history.
    """
    title = "Learning-rate sweep"
    trials = source.trials if isinstance(source, Race) else []
    runs = [h for h in listed(source.histories if isinstance(source, Race) else source) if len(h)]
    if not runs:
        return blank(title, "No history in this sweep has a round yet: run the race first.")
    measure = measure_of(runs)
    if isinstance(source, Race) and any(math.isfinite(number(t["dev"])) for t in trials):
        measure = measure_of(runs, score="dev")
        rows = _of_trials(source, measure.ranked)
    else:
        rows = _of_histories(runs, measure)
    if not rows:
        return blank(title, "No run here knows its learning rate: record it with RunSettings(lr=…).")
    told = in_words(runs[0], measure)
    table = _table(rows, measure.ranked)
    plot = go.Figure()
    _draw(plot, table, told)
    methods = list(dict.fromkeys(table["method"]))
    note = f"dark and large: {told} near the method's best"
    layout(plot, f"{title}: {plural(len(methods), 'method')}", note, max(480, 56 * len(methods) + 240))
    plot.update_layout(showlegend=True)
    plot.update_xaxes(title_text="peak learning rate, log scale", **log_ticks(table["lr"]))
    shown = {"type": "category", "categoryorder": "array", "categoryarray": methods[::-1]}
    plot.update_yaxes(range=[-0.6, len(methods) - 0.4], **shown)
    marked = any(r["chosen"] for r in rows)
    return Figure(plot, _words(table, told, marked), table.rename(columns={"score": told}))


def _of_trials(race: Race, greater: bool) -> list[dict[str, Any]]:
    """One row per label and rate, from all trials of a race."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for trial in race.trials:
        groups.setdefault((trial["label"], number(trial["lr"])), []).append(trial)
    rows = []
    for (label, lr), tried in groups.items():
        scores = [number(trial["dev"]) for trial in tried]
        at = best(scores, greater)
        row = {"method": label, "lr": lr, "score": scores[at], "outcome": _outcome(race, tried[at])}
        rows.append(row | {"chosen": any(trial["chosen"] for trial in tried)})
    return rows


def _outcome(race: Race, trial: Mapping[str, Any]) -> str:
    """How a trial ended."""
    if trial["dev"] is not None:
        return FINISHED if math.isfinite(number(trial["dev"])) else DIVERGED
    words = [f"lr {trial['lr']:.4g}", *(f"{name} {value}" for name, value in trial["knobs"].items())]
    cell = f"{trial['label']}, {', '.join(words)}, "  # as a race names its failures
    return FAILED if any(name.startswith(cell) for name in race.failures) else EARLY


def _of_histories(runs: Sequence[History], measure: Measure) -> list[dict[str, Any]]:
    """One row per label and rate, from runs over the whole plan."""
    rows, groups = [], defaultdict(list)
    for entry in entries(runs):
        if entry.lr > 0:
            groups[entry.label].append(entry)
    for group in groups.values():
        for entry in alike(group):
            score = measure.middle(entry)
            outcome = FINISHED if math.isfinite(score) else DIVERGED
            row = {"method": entry.label, "lr": entry.lr, "score": score, "outcome": outcome}
            rows.append(row | {"chosen": entry.marked})
    return rows


def _table(rows: Sequence[dict[str, Any]], greater: bool) -> pd.DataFrame:
    """The rows with their distance behind the method's best; where nothing was chosen, the best one is."""
    parts = []
    for _, tried in pd.DataFrame(rows).groupby("method", sort=False):
        part = tried.sort_values("lr").reset_index(drop=True)
        top = best(part["score"].tolist(), greater)
        best_score = part["score"][top]
        if not part["chosen"].any() and math.isfinite(best_score):
            part.loc[top, "chosen"] = True
        distance = (part["score"] - best_score).abs()
        share = distance / abs(best_score) if best_score else distance.where(distance == 0, math.inf)
        parts.append(part.assign(behind=share))
    return pd.concat(parts, ignore_index=True)[["method", "lr", "score", "behind", "outcome", "chosen"]]


def _draw(plot: go.Figure, table: pd.DataFrame, told: str) -> None:
    _draw_finished(plot, table[table["outcome"] == FINISHED], told)
    ring = {"symbol": "circle-open", "size": LARGE + 12, "color": INK, "line": {"width": 3}}
    early = {"symbol": "circle-open", "size": SMALL, "color": GREY, "line": {"width": 2}}
    cross = {"symbol": "x", "size": 14, "color": VERMILLION}
    others = (
        ("chosen", table[table["chosen"]], ring),
        (EARLY, table[table["outcome"] == EARLY], early),
        ("failed or diverged", table[table["outcome"].isin((FAILED, DIVERGED))], cross),
    )
    for name, rows, marker in others:
        if len(rows):
            said = "%{y}, lr %{x:.3g}: " + name + "<extra></extra>"
            skip = {"hoverinfo": "skip"} if name == "chosen" else {"hovertemplate": said}
            plot.add_scatter(x=rows["lr"], y=rows["method"], name=name, mode="markers", marker=marker, **skip)


def _draw_finished(plot: go.Figure, done: pd.DataFrame, told: str) -> None:
    """Dots whose colour and size say the same: how far a rate is behind."""
    lost = np.minimum(done["behind"].to_numpy(dtype=float), LOST)
    limit = max(0.01, float(lost.max(initial=0.0)))
    ticks = [0, limit / 2, limit]
    names = [f"{100 * tick:.2g} %" for tick in ticks]
    if (done["behind"] > LOST).any():
        names[-1] = f"≥ {names[-1]}"
    bar = {"title": {"text": "behind the method's best", "side": "right"}, "thickness": 18}
    marker = {"color": lost, "cmin": 0, "cmax": limit, "colorscale": HEAT, "showscale": True, "opacity": 1}
    marker |= {"size": LARGE - (LARGE - SMALL) * lost / limit, "line": {"width": 1, "color": INK}}
    plot.add_scatter(
        x=done["lr"],
        y=done["method"],
        name=FINISHED,
        mode="markers",
        showlegend=False,
        marker=marker | {"colorbar": bar | {"tickvals": ticks, "ticktext": names}},
        customdata=np.stack([done["score"], 100 * done["behind"]], axis=-1),
        hovertemplate="%{y}, lr %{x:.3g}: "
        + told
        + " %{customdata[0]:.4g}, %{customdata[1]:.3g} % behind<extra></extra>",
    )


def _words(table: pd.DataFrame, told: str, marked: bool) -> str:
    parts, cautions = [], ""
    for label, tried in table.groupby("method", sort=False):
        rates, picked = tried["lr"].tolist(), tried[tried["chosen"]]
        text = f"{label}: {plural(len(rates), 'rate')} from {min(rates):.3g} to {max(rates):.3g}"
        if len(rates) == 1:
            text = f"{label}: one rate, {rates[0]:.3g}"
            cautions += f" {label} was run at one learning rate only: it is not tuned."
        if picked.empty:
            parts.append(f"{text}, none finished")
            continue
        row = picked.iloc[0]
        text += f", chosen {row['lr']:.3g} with {brief(row['score'])}"
        others = tried.loc[~tried["chosen"], "behind"].dropna()
        parts.append(text + (f", the best other {100 * others.min():.3g} % behind" if len(others) else ""))
        if edge(row["lr"], rates):
            cautions += f" {label}'s learning rate is at the edge of its sweep; a better one may exist."
    text = f"Learning rates by {told}: {'; '.join(parts)}."
    if not marked:
        text += " No run was marked as chosen; the best rate of each method is taken."
    early = int((table["outcome"] == EARLY).sum())
    text += f" {plural(early, 'rate')} ended early." if early else ""
    for outcome in (FAILED, DIVERGED):
        rows = table[table["outcome"] == outcome]
        named = [f"{method} at {lr:.3g}" for method, lr in zip(rows["method"], rows["lr"], strict=True)]
        text += f" {outcome.capitalize()}: {', '.join(named)}." if named else ""
    return text + cautions
