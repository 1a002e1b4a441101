"""`xgblora-lab race` as a user gives it, on the embedded default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xgblora_lab.methods import METHODS
from xgblora_lab.racing.race import Race

SHORT = [
    "--trials",
    "1",
    "--workers",
    "1",
    "--seeds",
    "1",
    "--steps",
    "3",
    "--steps-per-round",
    "2",
    "--batch-size",
    "2",
]


def race(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "xgblora_lab.cli", "race", *SHORT, "--limit", "8", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_all_methods_make_one_table_with_a_row_each(tmp_path: Path) -> None:
    printed = race(tmp_path, "--methods", "all", "--out", "all")
    rows = [line.split()[0] for line in printed.splitlines() if line]
    assert [name for name in rows if name in METHODS] == list(METHODS)
    found = Race.load(tmp_path / "all")
    assert list(found.table.index) == list(METHODS)
    assert found.reference == "lora"
    bytes_ = found.table["optimizer bytes"]
    assert bytes_["full"] > bytes_["lora-pro"] > bytes_["lora"] > bytes_["xgblora"]
    passes, forwards = found.table["extra passes"], found.table["extra forwards"]
    assert passes["lora-ga"] > 0 == passes["lora"]
    assert forwards["xgblora"] == 0


def test_processes_share_the_runs_and_the_table_is_the_same(tmp_path: Path) -> None:
    methods = ["--methods", "xgblora,lora:r=2", "--data", "planted"]
    race(tmp_path, *methods, "--out", "two", "--workers", "2")
    race(tmp_path, *methods, "--out", "one")
    two, one = (Race.load(tmp_path / name).table.drop(columns="seconds") for name in ("two", "one"))
    assert list(two.index) == ["xgblora", "lora:rank=2"]
    # Another number of threads sums in another order.
    for column in ("dev relative", "test relative"):
        assert two[column].astype(float).tolist() == pytest.approx(
            one[column].astype(float).tolist(), rel=1e-3
        )
    assert (two["peak parameters"] == one["peak parameters"]).all()
