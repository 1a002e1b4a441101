"""bfloat16: a step in one function is the step in parts, and "auto" takes what was measured to be faster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_llama
from torch import Tensor, nn
from toy import ToyTask

from xgblora_lab import Bench, XGBLoRA, precision
from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.racing.identity import precision_of
from xgblora_lab.racing.race import race

TOLERANCE = 0.02  # bfloat16 keeps 8 bits, so one rounding is wrong by up to 0.004


class InParts(LowRank):
    """A booster that adds its part as autograd would."""


def gradients(kind: type[LowRank], scale: float, started: bool, half: bool) -> tuple[str, list[Tensor]]:
    """How the output was made; the output and the gradients of x, A and B."""
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float32 if half else torch.float64

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    module = nn.Linear(24, 16, dtype=dtype).requires_grad_(False)
    module.weight.data.copy_(drawn(16, 24) / 24**0.5)
    module.bias.data.zero_()
    booster = kind(drawn(2, 24) / 24**0.5, drawn(16, 2), scale)
    if started:
        booster.start = drawn(16, 2), drawn(2, 24) / 24**0.5
    booster.attach(module)
    x, D = drawn(3, 5, 24).requires_grad_(), drawn(3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = module(x)
    (out.to(dtype) * D).sum().backward()
    found = [out.detach(), x.grad, booster.A.grad, booster.B.grad]
    return out.grad_fn.name(), [t.double() for t in found]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative distance of two lists of tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("started", [False, True])
def test_one_function_adds_in_bfloat16_what_the_parts_add(started: bool) -> None:
    made, fused = gradients(LowRank, 0.5, started, half=True)
    assert made == "_AddLowRankBackward"
    parts_made, parts = gradients(InParts, 0.5, started, half=True)
    assert parts_made != made
    _, exact = gradients(LowRank, 0.5, started, half=False)
    assert 0 < distance(fused, exact) < TOLERANCE
    assert distance(fused, exact) < 1.2 * distance(parts, exact)
    _, wrong = gradients(LowRank, 0.55, started, half=True)  # a tenth too large
    assert distance(wrong, exact) > TOLERANCE


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """As in a process that has not asked accelerate for a precision."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(("measured", "chosen"), [(0.5, "bf16"), (0.95, "no"), (30.0, "no")])
def test_auto_is_what_was_measured_and_stands_in_the_record(
    measured: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(precision, "relative_time", lambda *at: asked.append(at) or measured)
    model = tiny_llama()
    with Bench(
        model, ToyTask(), XGBLoRA(steps_per_round=1), steps=1, batch_size=2, accelerator="auto"
    ) as bench:
        bench.run(progress=False)
    assert bench.history.settings.precision == chosen
    assert f"precision {chosen}" in repr(bench)
    assert [width for _, width in asked] == [model.config.hidden_size]
    monkeypatch.setattr(precision, "relative_time", lambda *at: 1.0 / measured)
    assert precision.fastest(32) == chosen  # the process has its precision


@pytest.mark.usefixtures("fresh_process")
def test_a_race_that_goes_on_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "relative_time", lambda *at: 0.5)
    assert precision_of("no", "lab", tmp_path) == "no"
    assert precision_of(None, "lab", tmp_path) is None
    assert precision_of("auto", "lab", tmp_path) == precision_of("auto", tiny_llama(), None) == "bf16"
    (tmp_path / "settings.json").write_text(json.dumps({"precision": "no"}))
    assert precision_of("auto", "lab", tmp_path) == "no"
    (tmp_path / "settings.json").write_text("{")
    assert precision_of("auto", "lab", tmp_path) == "bf16"


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(("measured", "chosen"), [(0.5, "bf16"), (1.5, "no")])
def test_every_run_of_a_race_has_the_precision_that_was_measured(
    measured: float, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "relative_time", lambda *at: measured)
    plan = {"lrs": [0.01], "seeds": 2, "steps": 2, "batch_size": 4, "progress": False}
    result = race(tiny_llama(), ToyTask(), ["lora"], precision="auto", out=tmp_path, **plan)
    assert result.settings["precision"] == chosen
    assert [h.settings.precision for h in result.histories] == [chosen] * 2
    assert json.loads((tmp_path / "settings.json").read_text())["precision"] == chosen


def test_the_measurement_is_a_ratio_and_is_taken_once() -> None:
    precision.relative_time.cache_clear()
    first = precision.relative_time("cpu", 16)
    assert first > 0
    assert precision.relative_time("cpu", 16) == first  # to the last digit: it was not timed again
