"""A race in the terminal: what its live table says, and a result that fits."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import synthetic
from rich.console import Console

from xgblora_lab import cli_live
from xgblora_lab.methods import METHODS
from xgblora_lab.racing.cells import Cell
from xgblora_lab.racing.result import Race
from xgblora_lab.racing.tuning import Trial


def cell(name: str, seed: int = 0, share: float = 1.0) -> Any:
    trial = Trial(name, METHODS[name](lr=0.01))
    return Cell("lab", "pydocs", {}, {"steps": 40}, tuple, trial, seed, share)


def run(score: float, **scores: float) -> Any:
    return dataclasses.replace(
        synthetic.history(rounds=2, greater_is_better=True), scores={"dev": score, **scores}
    )


def text(table: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_live_table_says_what_runs_the_best_so_far_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(cli_live.time, "monotonic", lambda: now[0])
    board = cli_live.Board(workers=2)
    assert "0 of 0 runs" in text(board.view())
    board.expects(6)
    short, first, second, third = (
        cell("xgblora", share=0.5),
        cell("xgblora"),
        cell("lora"),
        cell("lora", seed=1),
    )
    board.planned([short, first, second, third])
    said = text(board.view())
    assert "0 of 4 runs planned so far" in said
    assert "the time left is not known yet" in said
    assert said.count("seed") == 2  # of two workers
    assert "first 20 steps" in said

    now[0] += 30
    board.ended(first, run(0.7), kept=True)  # it lay there: it tells nothing of the time
    assert "not known yet" in text(board.view())
    board.ended(short, run(0.0, early_loss=2.5))
    said = text(board.view())
    assert "2/2" in said
    assert "dev loss 0.7, lr 0.01" in said  # a part of the plan does not replace the whole
    assert "about 4 min left" in said  # 4.5 of 6 plans, at a minute each
    assert "seed 1" in said
    board.ended(second, run(0.9))
    board.ended(third, ValueError("no"))
    said = text(board.view())
    assert "2/2, 1 failed" in said
    assert "seed" not in said.splitlines()[-2]
    assert board.seconds_left() == pytest.approx(30 * 2.5 / 2.5)
    leader = [row.style for row in board.table().rows]
    assert leader == ["", "bold"]


def test_elsewhere_than_in_a_terminal_a_line_tells_of_a_run() -> None:
    out = io.StringIO()
    with cli_live.shown(1, Console(file=out, width=20)) as progress:
        progress.expects(2)
        progress.planned([cell("lora"), cell("full")])
        progress.ended(cell("lora"), run(0.5), kept=True)
        progress.ended(cell("full"), run(0.25))
    assert out.getvalue() == "full, lr 0.01, seed 0: dev loss 0.25 (1 s)\n"


def test_the_result_of_all_methods_fits_100_columns() -> None:
    found = Race()
    for name in METHODS:
        knobs = {"steps_per_round": 25, "modules_per_round": 0.3}
        label = f"{name}:modules_per_round=.3" if name != "lora" else name
        for seed in range(3):
            made = synthetic.history(name, rounds=2, seed=seed, peak=123_456_789, label=label)
            score = 0.5 + 0.1 * seed
            found.histories.append(dataclasses.replace(made, scores={"dev": score, "test": score}))
            found.histories[-1].settings = dataclasses.replace(made.settings, chosen=True)
        found.trials.append({"label": label, "lr": 1e-2, "knobs": knobs, "chosen": True, "dev": 0.5})
    assert max(map(len, str(found).splitlines())) > 250
    out = io.StringIO()
    cli_live.print_result(found, Console(file=out, width=300))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    for name in METHODS:
        assert any(line.split()[:1] and line.split()[0].startswith(name) for line in lines)
    assert "…" not in "".join(line for line in lines if "xgblora" in line or "steps_per" in line)
    assert "123,456,789" in out.getvalue()
