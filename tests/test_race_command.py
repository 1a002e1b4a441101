"""`xgblora-lab race` as a user gives it, on the embedded default."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
from tiny import save_tiny, tiny_llama
from typer.testing import CliRunner

from xgblora_lab.bench.records import History
from xgblora_lab.cli import app
from xgblora_lab.methods import METHODS
from xgblora_lab.racing import cells, processes
from xgblora_lab.racing.cells import Cell
from xgblora_lab.racing.race import Race

pytestmark = pytest.mark.long

SHORT = ["--trials=1", "--seeds=1", "--steps=3", "--steps-per-round=2", "--batch-size=2", "--limit=8"]


def test_all_methods_make_one_table_with_a_row_each(tmp_path: Path) -> None:
    model = save_tiny(tiny_llama(), tmp_path / "model")
    rows = [f"{'a good one' if i % 2 else 'a bad one'} {i},{i % 2}" for i in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    given = ["--model", str(model), "--data", str(tmp_path / "data.csv"), "--out", str(tmp_path / "all")]
    done = CliRunner().invoke(app, ["race", *SHORT, "--workers", "1", "--methods", "all", *given])
    assert done.exit_code == 0, done.output[-3000:]
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [name for name in rows if name in METHODS] == list(METHODS)
    found = Race.load(tmp_path / "all")
    assert list(found.table.index) == list(METHODS)
    assert found.reference == "lora"
    bytes_ = found.table["optimizer bytes"]
    assert bytes_["full"] > bytes_["lora-pro"] > bytes_["lora"] > bytes_["xgblora"]
    passes, forwards = found.table["extra passes"], found.table["extra forwards"]
    assert passes["lora-ga"] > 0 == passes["lora"]
    assert forwards["xgblora"] == 0


def test_processes_share_the_runs_and_the_table_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked.serve()  # they take their work as spawned ones do, and need not import everything again
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda kind: forked.SERVER)
    for name, workers in (("two", "2"), ("one", "1")):
        arguments = ["race", *SHORT, "--methods", "xgblora,lora:r=2", "--max-length", "16"]
        done = CliRunner().invoke(app, [*arguments, "--workers", workers, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output[-3000:]
    two, one = (Race.load(tmp_path / name).table.drop(columns="seconds") for name in ("two", "one"))
    assert list(two.index) == ["xgblora", "lora:rank=2"]
    # Another number of threads sums in another order.
    for column in ("dev accuracy", "test accuracy"):
        assert two[column].astype(float).tolist() == pytest.approx(
            one[column].astype(float).tolist(), rel=1e-3
        )
    assert (two["peak parameters"] == one["peak parameters"]).all()


def test_ctrl_c_says_how_to_go_on_and_the_race_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole, trained = cells.train, []

    def interrupted(cell: Cell, own_copy: bool = False) -> History:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(str(cell))
        return whole(cell, own_copy)

    command = ["race", *SHORT, "--methods", "xgblora,lora:r=2", "--data", "planted", "--workers", "1"]
    monkeypatch.setattr(cells, "train", interrupted)
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 130
    assert "Stopped. Finished runs in runs/race: 1. Give the same command again" in stopped.output
    trained[:] = []
    monkeypatch.setattr(cells, "train", lambda *given: trained.append(str(given[0])) or whole(*given))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [name for name in trained if name.startswith("lora") and "watched" not in name]
    assert not [name for name in trained if name.startswith("xgblora") and "watched" not in name]
    assert max(map(len, done.output.splitlines())) <= 100
    assert "All columns: runs/race/table.md" in done.output.replace("\\", "/")
