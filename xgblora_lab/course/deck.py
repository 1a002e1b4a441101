"""What the deck and the handout show: one matrix, raced by this code, and a 7B model on paper.

The names of `Board.pictures` and `Board.numbers` are those that `deck.md` and `handout.md` have in braces.
Where the runs do not show what the slides say, no board is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from xgblora_lab import figures
from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.bench.records import History
from xgblora_lab.course.board import chart, line
from xgblora_lab.course.ledger import map_numbers, on_paper, pair_numbers
from xgblora_lab.course.pictures import boosted_stumps
from xgblora_lab.figures import Figure, style
from xgblora_lab.figures._style import BLUE, DIVERGING, GREY, VERMILLION, layout
from xgblora_lab.methods import LoRA, XGBLoRA
from xgblora_lab.racing.race import race
from xgblora_lab.tasks.matrix import matrix

if TYPE_CHECKING:
    from torch import Tensor

    from xgblora_lab.methods.base import Method
    from xgblora_lab.tasks.matrix import MatrixTask


@dataclass(frozen=True)
class Board:
    """Pictures and numbers by name, and the handout's picture of the stairs as SVG."""

    pictures: dict[str, Figure]
    numbers: dict[str, str]
    stairs: str


@dataclass(frozen=True)
class _Races:
    """The runs on one matrix, each at its best learning rate; losses are relative to the untrained one."""

    task: MatrixTask
    tails: list[float]
    runs: dict[str, History]

    def curve(self, name: str) -> np.ndarray:
        run = self.runs[name]
        losses = [loss for record in run for loss in record.losses] + [run[-1].probe_after]
        return np.array(losses) / self.task.floor(0)

    def steps_to(self, name: str, loss: float) -> int | None:
        reached = np.flatnonzero(self.curve(name) <= loss)
        return int(reached[0]) if len(reached) else None


def board(
    size: int = 32,
    rounds: int = 8,
    kappa: int = 125,
    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3),
) -> Board:
    """Run what the deck shows: notebook 01's matrix, boosting and LoRA at their best rates.

    Parameters
    ----------
    size : int, default 32
        Rows and columns of the matrix.
    rounds : int, default 8
        Of boosting, and the rank of the LoRA beside it.
    kappa : int, default 125
        Steps in a round.
    lrs : tuple of float
        Learning rates that every method tries.

    Raises
    ------
    RuntimeError
        The runs do not show what the slides say; the sentence names it.
    """
    model, task = matrix("1/i", d=size, k=size, seed=0)
    steps = rounds * kappa
    methods: dict[str, Method] = {
        "boost": XGBLoRA(steps_per_round=kappa, schedule="constant"),
        "low": LoRA(rank=1, schedule="constant"),
        "high": LoRA(rank=rounds, schedule="constant"),
        "full": LoRA(rank=size, schedule="constant"),
    }
    found = race(
        model, task, list(methods.values()), lrs=lrs, seeds=1, steps=steps, batch_size=1, progress=False
    )
    runs = {name: found.chosen(label)[0] for name, label in zip(methods, found.labels, strict=True)}
    races = _Races(task, [task.floor(r) / task.floor(0) for r in range(size + 1)], runs)
    best = XGBLoRA(steps_per_round=kappa, schedule="constant", lr=runs["boost"].settings.lr)
    with Bench(model, task, best, steps=steps, batch_size=1, hooks=[Spectrum()]) as bench:
        history = bench.run(progress=False)
        history.label = "Boosting"
        pair = bench.ensemble[0]["matrix"]
    _check(races, rounds, size)
    return Board(
        {
            "booster": _booster(*pair),
            "trees": _trees(),
            "pictures": _pictures(task.truth["matrix"]),
            "tail": _tail(races, rounds),
            "lora": _lora(races, rounds, size),
            "stairs": _stairs(races, rounds, kappa),
            "spectrum": figures.spectrum(history, "matrix"),
        },
        _numbers(races, size, rounds, steps),
        stairs_svg(races.curve("boost"), races.tails[: rounds + 1]),
    )


def _check(races: _Races, rounds: int, size: int) -> None:
    """What the slides say in words, as facts of these runs."""
    ends = {name: races.curve(name)[-1] for name in races.runs}
    tails = races.tails
    staged = [1.0] + [r.probe_after / races.task.floor(0) for r in races.runs["boost"]]
    near = 1.05 * tails[rounds]
    first, second = races.steps_to("high", near), races.steps_to("boost", near)
    facts = {
        "LoRA stops on the tail of its rank": all(
            0.99 < ends[name] / tails[r] < 1.05 for name, r in (("low", 1), ("high", rounds))
        ),
        "every round ends on the next tail": all(
            0.99 < a / b < 1.05 for a, b in zip(staged, tails, strict=False)
        ),
        "LoRA is first at the tail": first is not None and second is not None and first < second,
        "LoRA at full rank ends lowest": ends["full"] == min(ends.values()),
        "LoRA of rank 1 never gets there": races.steps_to("low", near) is None,
    }
    wrong = [fact for fact, holds in facts.items() if not holds]
    if wrong:
        raise RuntimeError(f"The deck's runs do not show what its slides say: {'; '.join(wrong)}.")


def _numbers(races: _Races, size: int, rounds: int, steps: int) -> dict[str, str]:
    near, few = 1.05 * races.tails[rounds], rounds // 2
    numbers = {"size": size, "rounds": rounds, "steps": f"{steps:,}", "few": few}
    numbers |= {
        f"tail_{name}": f"{races.tails[r]:.0%}" for name, r in (("one", 1), ("few", few), ("rounds", rounds))
    }
    for name, run in races.runs.items():
        numbers |= {
            f"{name}_loss": f"{races.curve(name)[-1]:.2g}",
            f"{name}_steps": races.steps_to(name, near),
            f"{name}_peak": f"{run[-1].peak_parameters:,}",
            f"{name}_total": f"{run[-1].total_parameters:,}",
        }
    side = 4096
    numbers |= {"dense": f"{side**2:,}", "eight": f"{8 * 2 * side:,}", "one": f"{2 * side:,}"}
    from transformers import LlamaConfig

    big = on_paper(LlamaConfig())
    numbers |= {
        "weights_gb": f"{2 * sum(p.numel() for p in big.parameters()) / 1e9:.1f}",
        "eight_gb": f"{12 * pair_numbers(big, 8) / 1e9:.2f}",
        "one_gb": f"{12 * pair_numbers(big, 1) / 1e9:.2f}",
        "copy_gb": f"{4 * map_numbers(big) / 1e9:.1f}",
    }
    return {name: str(value) for name, value in numbers.items()}


def _maps(titles: list[str], maps: list[Tensor], widths: list[float], text: str) -> Figure:
    """Heat maps side by side, in one scale of colours each; a single row or column stays thin."""
    plot = make_subplots(
        rows=1, cols=len(maps), subplot_titles=titles, column_widths=widths, horizontal_spacing=0.05
    )
    for column, values in enumerate(maps, 1):
        reach = float(values.abs().max())
        look = {"zmin": -reach, "zmax": reach, "colorscale": DIVERGING, "showscale": False}
        plot.add_heatmap(z=values.numpy().round(4), **look, row=1, col=column)
        if len(values) == 1:
            half = values.shape[1] / 2
            plot.update_yaxes(range=[half, -half], col=column)
        else:
            plot.update_yaxes(autorange="reversed", col=column)
    layout(plot, "", height=440)
    plot.update_xaxes(showticklabels=False, ticks="", showline=False, showgrid=False, zeroline=False)
    plot.update_yaxes(showticklabels=False, ticks="", showline=False, showgrid=False, zeroline=False)
    return Figure(plot, text, pd.DataFrame())


def _booster(B: Tensor, A: Tensor) -> Figure:
    text = f"The first booster of the run: a column of {len(B)}, a row of {A.shape[1]}, and their product."
    return _maps(["B", "A", "B A"], [B, A, B @ A], [0.06, 0.47, 0.47], text)


def _pictures(truth: tuple[Tensor, Tensor]) -> Figure:
    target = truth[0] @ truth[1]
    U, s, Vh = torch.linalg.svd(target)
    sums = [(U[:, :t] * s[:t]) @ Vh[:t] for t in (1, 2, 4)]
    left = [float(s[t:].square().sum() / s.square().sum()) for t in (1, 2, 4)]
    text = "Of the sum of squared entries, " + ", ".join(
        f"{part:.0%} is left after {t} picture{'s' if t > 1 else ''}"
        for t, part in zip((1, 2, 4), left, strict=True)
    )
    titles = ["the target", "one picture", "a sum of two", "a sum of four"]
    return _maps(titles, [target, *sums], [0.25] * 4, f"{text}.")


def _trees() -> Figure:
    from sklearn.ensemble import GradientBoostingRegressor

    x = np.linspace(0, 1, 60)
    y = np.sin(7 * x) + np.random.default_rng(0).normal(0, 0.2, 60)
    trees = GradientBoostingRegressor(max_depth=1, n_estimators=14, learning_rate=0.5).fit(x[:, None], y)
    plot = boosted_stumps(x, y, [np.full(60, y.mean()), *trees.staged_predict(x[:, None])])
    texts = tuple(frame.layout.title.subtitle.text for frame in plot.frames)
    plot.layout.title.subtitle = None  # the slide's slider says it
    plot.update_layout(legend={"y": -0.2})
    return Figure(
        plot, f"Trees with one split on {len(x)} points, one more for each place.", pd.DataFrame(), texts
    )


def _tail(races: _Races, rounds: int) -> Figure:
    plot = chart("", "rank r", "least loss (1 = untrained)", log="y")
    ranks = range(len(races.tails) - 1)
    line(plot, "the tail", ranks, races.tails[:-1], mode="lines+markers")
    left = ", ".join(f"rank {r} {races.tails[r]:.0%}" for r in (1, rounds // 2, rounds))
    text = f"Singular values 1, 1/2, 1/3 … on {len(ranks)} rows. Left over at best: {left}."
    return Figure(plot, text, pd.DataFrame())


def _floor(plot: go.Figure, races: _Races, rank: int) -> None:
    plot.add_hline(y=races.tails[rank], line={"color": GREY, "width": 1})
    plot.add_annotation(
        x=1, xref="paper", y=np.log10(races.tails[rank]), text=f"best of rank {rank}", showarrow=False,
        font_color=GREY, xanchor="right", yanchor="top",  # below: no curve of its rank goes there
    )  # fmt: skip


def _lora(races: _Races, rounds: int, size: int) -> Figure:
    plot = chart("", "optimizer step", "loss (1 = untrained)", log="y")
    for variant, (name, rank) in enumerate((("low", 1), ("high", rounds), ("full", size))):
        curve = races.curve(name)
        line(plot, f"LoRA, rank {rank}", range(len(curve)), curve, style("lora", variant))
        if rank < size:
            _floor(plot, races, rank)
    plot.update_yaxes(range=[float(np.log10(races.tails[rounds])) - 2, 0.2])
    ends = ", ".join(
        f"rank {r} {races.curve(name)[-1]:.2g} (tail {races.tails[r]:.2g})"
        for name, r in (("low", 1), ("high", rounds))
    )
    return Figure(plot, f"Each at its best learning rate. Loss at the end: {ends}.", pd.DataFrame())


def _stairs(races: _Races, rounds: int, kappa: int) -> Figure:
    plot = chart("", "optimizer step", "loss (1 = untrained)", log="y")
    curve, edges = races.curve("boost"), [kappa * t for t in range(rounds + 1)]
    line(plot, "boosting, rank 1", range(len(curve)), curve, style("xgblora"))
    rings = {"color": BLUE, "symbol": "circle-open", "size": 13, "line": {"width": 3}}
    tails = races.tails[: rounds + 1]
    line(plot, "best of rank t, when t rounds are done", edges, tails, mode="markers", marker=rings)
    plot.update_xaxes(tickvals=edges, showgrid=True)
    worst = max(curve[edge] / tail for edge, tail in zip(edges, tails, strict=True)) - 1
    text = f"{rounds} rounds of {kappa} steps. No round ends more than {worst:.2%} above its tail."
    return Figure(plot, text, pd.DataFrame())


def stairs_svg(curve: Any, tails: Any) -> str:
    """Draw the stairs as an SVG that prints: the loss over the steps, and the tail after every round.

    Parameters
    ----------
    curve : array (steps + 1,)
        The relative loss, on a logarithmic axis.
    tails : sequence of float
        The tail of rank 0, 1, 2, …, one for each round's end.
    """
    width, height, low = 640, 190, float(np.log10(min(tails))) - 0.1

    def at(step: float, loss: float) -> str:
        x = 40 + (width - 60) * step / (len(curve) - 1)
        return f"{x:.1f},{15 + (height - 45) * float(np.log10(loss)) / low:.1f}"

    path = " ".join(at(step, loss) for step, loss in enumerate(curve))
    rounds = len(tails) - 1
    rings = "".join(
        '<circle cx="{}" cy="{}" r="6" fill="none" stroke="{}" stroke-width="2.5"/>'.format(
            *at((len(curve) - 1) * t / rounds, tail).split(","), BLUE
        )
        for t, tail in enumerate(tails)
    )
    said = f"The loss of boosting over {len(curve) - 1} steps: it falls to the tail of rank t in round t"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">'
        f'<polyline points="{path}" fill="none" stroke="{VERMILLION}" stroke-width="2.5"/>{rings}'
        f'<path d="M40 10V{height - 28}H{width - 20}" fill="none" stroke="currentColor"/>'
        f'<g fill="currentColor" font-size="13"><text x="{width - 20}" y="{height - 8}" text-anchor="end">'
        f"{rounds} rounds of {(len(curve) - 1) // rounds} steps; line: boosting; rings: the tails</text>"
        f'<text x="44" y="{height - 8}">loss, log scale</text></g></svg>'
    )
