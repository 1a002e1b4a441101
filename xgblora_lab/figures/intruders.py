"""How many directions a method adds that the base does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import plotly.graph_objects as go

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import brief, by_module, chosen, listed, measured, plural, variants
from xgblora_lab.figures._style import banded, layout, style
from xgblora_lab.racing.summary import spread

MISSING = (
    "No intruder dimensions were measured: train with the hook, Bench(…, hooks=[Intruders()]), or give it "
    "to the race, race(…, hooks=lambda: [Intruders()])."
)


def intruders(histories: History | Iterable[History]) -> Figure:
    """Mean number of intruder dimensions per module against the optimizer steps, one line a label.

    An intruder is a leading singular vector of the tuned weight that is far from every singular vector of
    the base's. Steps, not rounds, are the axis, so that methods with rounds of different length compare.

    Parameters
    ----------
    histories : History or iterable of History
        Runs with the measurement `"intruders"` (a count by module), which the hook
        `xgblora_lab.racing.Intruders` makes. Of a race, the runs at the chosen options count; several seeds
        give their median and range.

    Returns
    -------
    Figure
        With one row per method and measured step in its table.

    Raises
    ------
    ValueError
        Where there is no history.

    References
    ----------
    Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
    """
    runs = chosen(listed(histories))
    known = [h for h in runs if measured(h, "intruders")]
    title = "Intruder dimensions"
    if not known:
        return blank(title, MISSING)
    table = _table(known)
    looks = variants(runs)
    plot = go.Figure()
    for label, rows in table.groupby("method", sort=False):
        columns = (rows["intruders (median)"], rows["lowest"], rows["highest"])
        banded(plot, rows["steps"], columns, str(label), style(*looks[str(label)]))
    seeds = int(table["seeds"].max())
    note = (
        f"median and range over {plural(seeds, 'seed')}"
        if seeds > 1
        else "one seed: differences may be chance"
    )
    layout(plot, f"{title}: {plural(table['method'].nunique(), 'method')}", note)
    plot.update_layout(showlegend=True)
    top = max(1.0, float(table["highest"].max(skipna=True)))
    plot.update_xaxes(title_text="optimizer steps", rangemode="tozero")
    plot.update_yaxes(
        title_text="intruder dimensions per module", range=[-0.03 * top, 1.05 * top]
    )  # 0 is a value
    unknown = [label for label in looks if label not in set(table["method"])]
    return Figure(plot, _words(table, unknown), table)


def _table(runs: Sequence[History]) -> pd.DataFrame:
    found: dict[str, dict[int, list[float]]] = {}  # label → step → a mean per seed
    modules: dict[str, int] = {}
    for h in runs:
        steps = {r.index: r.step for r in h}
        frame = by_module(h, "intruders")
        modules[h.label] = frame.shape[1]
        for index, mean in frame.mean(axis=1, skipna=False).items():
            found.setdefault(h.label, {}).setdefault(steps[index], []).append(float(mean))
    rows = []
    for label, by_step in found.items():
        for step, values in sorted(by_step.items()):
            here = spread(values)
            row = {"method": label, "steps": step, "intruders (median)": here.median, "lowest": here.low}
            rows.append(row | {"highest": here.high, "seeds": here.count, "modules": modules[label]})
    return pd.DataFrame(rows)


def _words(table: pd.DataFrame, unknown: Sequence[str]) -> str:
    last = table.groupby("method", sort=False).tail(1).sort_values("intruders (median)")
    parts = []
    for _, row in last.iterrows():
        text = f"{row['method']} {brief(row['intruders (median)'])}"
        if row["seeds"] > 1:
            text += f" ({brief(row['lowest'])} to {brief(row['highest'])})"
        parts.append(f"{text} after {plural(int(row['steps']), 'step')}")
    text = f"Intruder dimensions per module at the end, fewest first: {'; '.join(parts)}."
    return text + (f" Not measured: {', '.join(unknown)}." if unknown else "")
