"""Hostile input: what once went wrong, a sample of the harness, and a check of the harness."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faults.hostile import Input, given, judge, run
from faults.hostile_inputs import inputs
from toy import ToyTask

from xgblora_lab import cli
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.racing.race import race

SAMPLE = 60
ALWAYS = (  # one of each kind that once was accepted, hung, or ended in a traceback
    "race --trials=abc",
    "race --limit=0",
    "race --seeds=999999999999999999999",
    "race --batch-size=999999999999999999999",
    "race --spectrum='1/i'",
    "race --data='csv'",
    "race --out='rows.csv'",
    "race --methods='lora:r=1000000000'",
    "planted --metric=loss",
    "race into settings 'null'",
    "lora:rank twice",
    "xgblora:lr=inf",
    ".jsonl with null",
    ".json with null",
    ".csv with two equal names",
    ".csv with infinite labels",
    ".jsonl with nested text",
    ".csv with a ZIP",
    "the name 'p[1].csv'",
    "the name '$HOME.jsonl'",
    "the name 'a::b.json'",
    "the text '007' in .csv",
    "the text '1e5' in .csv",
    "the text '2020-01-01' in .jsonl",
    "in memory {'dev': {'text': ['a b', 'b c'], 'label': [0, 1]}}",
    "load_task(limit=-1)",
    "load_task(seed=-1)",
    "planted(sequences=1000000000000000000)",
    "config with 1 layers",
    "config with 100000 layers",
    "config _attn_implementation=evil/evil",
    "config transformers_weights=adapter_model.bin",
    "config.json b'null'",
    "tokenizer.json b'[]'",
    "weights with a header of 18446744073709551615",
    "an index that names pytorch_model.bin",
    "an adapter",
    "race.json 'null'",
    "a cell cut at 0",
)


@pytest.mark.filterwarnings("ignore")
def test_hostile_input_is_answered_by_a_sentence() -> None:
    cases = inputs()
    assert len(cases) >= 500
    by_name = {case.name: case for case in cases}
    rest = [case for case in cases if case.name not in ALWAYS]
    chosen = [*(by_name[name] for name in ALWAYS), *random.Random(0).sample(rest, SAMPLE)]
    wrong = run(chosen)
    assert {case.name: fault for case, fault in wrong.items()} == {}


def _two_lines() -> None:
    raise ValueError("the first line of two\nthe second")


def _busy() -> None:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def _left() -> None:
    Path("out").mkdir()
    raise ValueError("a refusal that leaves something behind")


def _given_and_refused() -> None:
    given("rows.csv", "x")
    raise ValueError("rows.csv has no header; give it one")


@pytest.mark.parametrize(
    ("run_", "fault"),
    [
        (lambda: {}["a key"], "KeyError"),
        (_two_lines, "more than a line"),
        (lambda: (_ for _ in ()).throw(ValueError("no")), "no sentence"),
        (lambda: None, "accepted"),
        (_busy, "s of computing"),
        (lambda: time.sleep(30), "Hung"),
        (lambda: torch.load("x"), "Forbidden"),
        (lambda: Path("../else.txt").write_text("x"), "accepted"),
        (_left, "left work/out"),
        (_given_and_refused, "^$"),
    ],
)
def test_the_harness_sees_what_is_wrong(tmp_path: Path, run_: Callable[[], Any], fault: str) -> None:
    alarm = 0.5 if fault == "Hung" else 60
    answer = judge(Input("", "", run_), tmp_path / "x", seconds=0.1, alarm=alarm)
    assert re.search(fault, answer), answer


def test_the_harness_sees_what_is_written_outside(tmp_path: Path) -> None:
    away = Input("", "", lambda: Path("../else.txt").write_text("x"), accepted=True)
    assert judge(away, tmp_path / "x") == "wrote else.txt"
    good = Input("", "", lambda: Path("out").write_text("x"), accepted=True)
    assert judge(good, tmp_path / "y") == ""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            KeyError("a name"),
            1,
            "A fault of xgblora-lab, or input that it does not foresee (KeyError: 'a name')",
        ),
        (MemoryError(), 2, "The memory does not suffice; take a smaller model"),
        (PermissionError(13, "Permission denied", "runs"), 2, "runs: permission denied; give another path"),
        (RuntimeError("Every run\nof the race failed."), 2, "Every run of the race failed."),
        (ValueError("A refusal."), 2, "A refusal."),
    ],
)
def test_every_error_is_a_sentence_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    sentence: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules[race.__module__], "race", fail)
    monkeypatch.setattr(sys, "argv", ["xgblora-lab", "race", "--workers", "1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == code
    assert said.startswith(f"xgblora-lab: {sentence}")
    assert len(said.splitlines()) == 1


def test_a_race_folder_belongs_to_the_contents_and_the_hooks(tmp_path: Path) -> None:
    def again(model: Any = None, task: Any = None, **options: Any) -> Any:
        shared: dict[str, Any] = {"lrs": [1e-2], "seeds": 1, "steps": 2, "batch_size": 2, "progress": False}
        return race(
            model or tiny.tiny_llama(), task or ToyTask(), ["lora:r=1"], out=tmp_path, **shared, **options
        )

    first = again()
    assert again().histories[0].to_dict() == first.histories[0].to_dict()  # the same contents: nothing is run
    with pytest.raises(ValueError, match="other settings \\(model's contents\\)"):
        again(tiny.tiny_llama(seed=1))
    with pytest.raises(ValueError, match="other settings \\(data's contents\\)"):
        again(task=ToyTask(rows=40))
    with pytest.raises(ValueError, match="other settings \\(hooks\\)"):
        again(hooks=lambda: [Spectrum()])
    watched = again(watch=lambda: [Spectrum(limit=2)])
    assert len(next(iter(watched.histories[0][0].measurements["spectrum"].values()))) <= 2
    more = again(watch=lambda: [Spectrum(limit=4)])  # other hooks to watch with are another run
    assert more.settings == watched.settings
    assert len(list((tmp_path / "runs").glob("*_watched.json"))) == 2
