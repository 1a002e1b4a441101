"""Boosting on the hardest examples, in orthogonal subspaces: what the options promise."""

from __future__ import annotations

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench import Bench, Checkpoint, resume
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.methods import XGBLoRA

OPTIONS = {"lr": 0.05, "steps_per_round": 2, "selection": "all"}


def bench_of(model=None, steps=8, hooks=(), **options):
    method = XGBLoRA(**{**OPTIONS, **options})
    return Bench(model or tiny.tiny_llama(), ToyTask(), method, steps=steps, batch_size=4, hooks=hooks)


def overlap(bench) -> float:
    """Largest cosine between directions of different rounds on one module."""
    worst = 0.0
    for name in bench.modules:
        A = torch.nn.functional.normalize(bench.ensemble.factors(name)[1], dim=1)
        gram = (A @ A.T).abs()
        rounds = torch.arange(len(A)) // bench.method.rank
        worst = max(worst, float(gram[rounds[:, None] != rounds].max()))
    return worst


@pytest.mark.parametrize("rank", [1, 2])
def test_orthogonal_rounds_never_share_a_direction_and_each_adds_rank(rank):
    bench = bench_of(subspace="orthogonal", rank=rank)
    bench.run(progress=False)
    assert overlap(bench) < 1e-5
    for name in bench.modules:
        assert int(torch.linalg.matrix_rank(bench.update(name), rtol=1e-5)) == 4 * rank
    free = bench_of(rank=rank)
    free.run(progress=False)
    assert overlap(free) > 0.1


def test_the_projection_after_every_step_is_what_keeps_them_orthogonal():
    class OnlyAtTheStart(XGBLoRA):
        def after_step(self, bench):
            pass

    method = OnlyAtTheStart(**OPTIONS, subspace="orthogonal")
    bench = Bench(tiny.tiny_llama(), ToyTask(), method, steps=8, batch_size=4)
    bench.run(progress=False)
    assert overlap(bench) > 1e-3


def test_no_direction_left_is_refused():
    bench = bench_of(subspace="orthogonal", rank=20, steps=6)
    bench.step()
    with pytest.raises(ValueError, match="none is left"):
        bench.step()
    assert len(bench.history) == 1


def test_the_hardest_rows_are_the_half_with_the_higher_loss_and_are_counted():
    used = []

    class Rows(Hook):
        def on_step(self, bench, step, loss):
            used.append(bench.trainer.batch_indices(bench.trained_steps - 1))

    bench = bench_of(examples="hardest", hooks=[Rows()])
    pool = [row for step in range(4) for row in bench.trainer.planned_rows(step)]
    with torch.no_grad():
        alone = {row: float(bench.task.loss(bench.model, bench.task.batch("train", [row]))) for row in pool}
    record = bench.step()
    picked = [row for rows in used for row in rows]
    assert len(picked) == 8
    assert min(alone[row] for row in picked) >= max(alone[row] for row in set(pool) - set(picked))
    assert record.extra_forwards == 4  # 16 single rows, batches of 4
    assert bench.trainer.batch_indices(0) == bench.trainer.planned_rows(0)  # nothing stays behind
    first = bench.task.batch("train", used[0])
    bench.rewind(0)
    with torch.no_grad():
        assert record.losses[0] == pytest.approx(float(bench.task.loss(bench.model, first)), abs=1e-5)
    assert picked != pool[:8]


def test_the_picks_are_made_again_after_a_rewind_and_after_a_resume(tmp_path):
    bench = bench_of(examples="hardest", subspace="orthogonal", hooks=[Checkpoint(tmp_path / "run")])
    bench.run(progress=False)
    losses = [r.losses for r in bench.history]
    bench.rewind(2)
    bench.run(progress=False)
    assert [r.losses for r in bench.history] == losses
    again = bench_of(examples="hardest", subspace="orthogonal", hooks=[Checkpoint(tmp_path / "half")])
    again.run(2, progress=False)
    resumed = resume(tmp_path / "half", tiny.tiny_llama(), ToyTask())
    resumed.run(progress=False)
    assert [r.losses for r in resumed.history] == losses


@pytest.mark.parametrize("options", [{"examples": "wrong"}, {"subspace": "rotated"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(ValueError, match="must be one of"):
        XGBLoRA(**options)
