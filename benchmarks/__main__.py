"""`python -m benchmarks` prints the table of costs and writes it as JSON, markdown and a figure."""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import rows, steps
from benchmarks.measure import DEVICE, Row
from xgblora_lab.files import write_json, write_text
from xgblora_lab.racing.result import markdown

WORDS = {"reached": "yes", "NOT reached": "**no**", "not counted": "not counted"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, half a minute: do the numbers come?"
    )
    names = {section.__name__: section for section in rows.SECTIONS}
    parser.add_argument("--only", choices=names, nargs="+", help="these rows, and nothing is written")
    parser.add_argument("--out", type=Path, help="folder to write to (default: benchmarks/performance)")
    given = parser.parse_args(arguments)
    quick: bool = given.quick
    out = given.out or (None if quick or given.only else Path(__file__).parent / "performance")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's
    found: list[Row] = []
    for name in given.only or names:
        for row in names[name](quick):
            found.append(row)
            sys.stdout.write(f"{line(row)}\n")
            sys.stdout.flush()
    if given.only:
        return 0
    family = steps.family(quick)
    more = {} if quick else steps.compiled(quick)
    sys.stdout.write("".join(f"{entry}\n" for entry in [*family, *([more] if more else [])]))
    if out is not None:
        save(out, found, family, more)
        sys.stdout.write(f"Written: {out}\n")
    return 0


def line(row: Row) -> str:
    """A row in words."""
    sign = "≥" if row.faster else "≤"
    limit = f" | limit: {row.limit}" if row.limit else ""
    spread = f", quartiles {row.quartiles}" if row.spread else ""
    verdict = f"{sign} {row.reach:.3g}, {row.verdict}{spread}"
    return f"{row.what} | {row.against} | {row.ratio:.3g} ({verdict}){limit}"


def save(out: Path, found: list[Row], family: list[dict[str, Any]], more: dict[str, Any]) -> None:
    """Write `table.json`, `table.md`, `family.md` and `table.html`."""
    import pandas as pd

    machine = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_json(
        out / "table.json",
        {"machine": machine, "rows": [r.to_dict() for r in found], "family": family, "compile": more},
    )
    table = pd.DataFrame(
        {
            "what": [r.what for r in found],
            "against": [r.against for r in found],
            "ratio": [f"{r.ratio:.3g}" for r in found],
            "quartiles": [r.quartiles for r in found],
            "to reach": [f"{'≥' if r.faster else '≤'} {r.reach:.3g}" for r in found],
            "reached": [WORDS[r.verdict] for r in found],
            "limit": [r.limit for r in found],
        }
    )
    write_text(out / "table.md", markdown(table))
    write_text(out / "family.md", markdown(pd.DataFrame(family)))
    figure(found).write_html(out / "table.html", include_plotlyjs=True)


def figure(found: list[Row]) -> Any:
    """How far each row is from what was to be reached: 1 is just reached, to the left is better."""
    import plotly.graph_objects as go

    found = [row for row in found if row.counted]
    spent = [r.reach / r.ratio if r.faster else r.ratio / r.reach for r in found]
    labels = [f"{r.what}<br><sub>against {r.against}</sub>" for r in found]
    colours = ["#0072B2" if r.reached else "#D55E00" for r in found]
    plot = go.Figure(
        go.Scatter(
            x=spent,
            y=labels,
            mode="markers+text",
            marker={"size": 14, "color": colours, "symbol": ["circle" if r.reached else "x" for r in found]},
            text=[f"  {r.ratio:.3g}" for r in found],
            textposition="middle right",
            hovertext=[line(r) for r in found],
        )
    )
    plot.add_vline(x=1, line_dash="dash", line_color="#666666")
    plot.update_layout(
        title="Cost over what was to be reached (● reached, ✕ not); the number is the measured ratio",
        xaxis={"type": "log", "title": "measured / aimed at (left of 1: better)"},
        yaxis={"autorange": "reversed"},
        template="simple_white",
        height=90 + 52 * len(found),
        margin={"l": 430},
        font_size=14,
    )
    return plot


if __name__ == "__main__":
    raise SystemExit(main())
