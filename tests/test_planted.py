from __future__ import annotations

import pytest
import torch
from tiny import PAD, VOCABULARY, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5
from torch import nn

from xgblora_lab.lowrank.linear import dense_weight, find_modules
from xgblora_lab.tasks.matrix import matrix, singular_values
from xgblora_lab.tasks.planted import add_update_, planted

MAKERS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama, "t5": tiny_t5}


def _plant_into(model: nn.Module, truth: dict, sign: float = 1.0) -> None:
    modules = dict(model.named_modules())
    for name, (B, A) in truth.items():
        add_update_(modules[name], sign * B, A)


@pytest.mark.parametrize("name", MAKERS)
def test_the_truth_solves_the_task(name: str) -> None:
    model = MAKERS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task = planted(model, sequences=32, length=8, rank=4)
    assert set(task.truth) == set(find_modules(model, "attention"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the student is untouched
    assert task.evaluate(model)["relative"] == 1.0
    _plant_into(model, task.truth)
    assert task.evaluate(model) == {"loss": 0.0, "relative": 0.0}
    assert task.evaluate(model, "train", limit=5)["relative"] == 0.0
    _plant_into(model, task.truth, -2.0)
    assert task.evaluate(model)["relative"] > 0.5  # merging into the student does not move the teacher


def test_a_limited_score_is_relative_to_the_base_on_the_same_rows() -> None:
    task = planted(tiny_gpt2(), sequences=32, length=8, rank=4)
    assert task.evaluate(tiny_gpt2(), "train", limit=5)["relative"] == 1.0
    whole = task.evaluate(tiny_gpt2(), "train")  # after the limited one, over all rows again
    assert whole["relative"] == 1.0
    five = task.evaluate(tiny_gpt2(), "train", limit=5)
    assert five["loss"] != whole["loss"]
    assert five["relative"] == pytest.approx(1.0, abs=1e-6)


def test_the_update_has_the_spectrum_and_the_strength() -> None:
    model = tiny_gpt2()  # Conv1D: weights are stored transposed
    task = planted(model, modules="all-linear", spectrum="1/i", rank=5, strength=0.3, sequences=4)
    assert len(task.truth) == 8
    for name, (B, A) in task.truth.items():
        weight = dense_weight(dict(model.named_modules())[name]).double()
        update = B.double() @ A.double()
        assert update.shape == weight.shape
        assert B.dtype == A.dtype == torch.float32
        values = torch.linalg.svdvals(update)
        torch.testing.assert_close(
            values[:5] / values[0], 1 / torch.arange(1.0, 6.0).double(), rtol=1e-5, atol=0
        )
        assert values[5] < 1e-6 * values[0]
        torch.testing.assert_close(update.norm(), 0.3 * weight.norm(), rtol=1e-5, atol=0)


def test_loss_is_the_divergence_per_position() -> None:
    student, other = tiny_llama(), tiny_llama()
    task = planted(student, sequences=16, length=6, rank=4, strength=2.0)
    batch = task.batch("train", [0, 3, 5])
    _plant_into(other, task.truth)
    p, q = (m(**batch).logits.double().log_softmax(-1) for m in (other, student))
    expected = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(task.loss(student, batch).double(), expected, rtol=1e-3, atol=1e-7)
    assert expected > 1e-4
    assert task.weight(batch) == task.tokens(batch) == 18


def test_gradients_reach_the_student_only() -> None:
    model = tiny_bert()
    task = planted(model, sequences=4, length=4, rank=2)
    task.loss(model, task.batch("train", [0])).backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_tokens_are_the_same_everywhere_and_spread() -> None:
    ids = planted(tiny_gpt2(), sequences=256, length=16, rank=1).batch("train", range(256))["input_ids"]
    again = planted(tiny_gpt2(), sequences=256, length=16, rank=1).batch("train", range(256))["input_ids"]
    other = planted(tiny_gpt2(), sequences=256, length=16, rank=1, seed=1).batch("train", range(256))[
        "input_ids"
    ]
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    counts = ids.flatten().bincount(minlength=VOCABULARY)
    assert counts[PAD] == 0
    assert (counts[1:] > 0).all()
    assert counts.max() < 40
    assert len(ids.unique(dim=0)) == 256


def test_an_encoder_decoder_gets_both_inputs() -> None:
    task = planted(tiny_t5(), sequences=8, length=5, rank=1)
    batch = task.batch("dev", [0])
    assert batch["decoder_input_ids"].shape == batch["input_ids"].shape == (1, 5)
    assert task.weight(batch) == 5
    assert task.tokens(batch) == 10


def test_evaluate_leaves_the_modes() -> None:
    model = tiny_bert().train()
    model.bert.embeddings.eval()
    task = planted(model, sequences=4, length=4, rank=1)
    task.evaluate(model)
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 33}, "A spectrum of 33 values does not fit"),
        ({"rank": 0}, "rank is 0"),
        ({"spectrum": "pink"}, "Unknown spectrum 'pink'; accepted are 1/i"),
        ({"spectrum": [1.0, -1.0]}, "positive numbers"),
        ({"spectrum": []}, "positive numbers"),
        ({"strength": 0}, "must be positive"),
        ({"modules": "no_such"}, "no_such"),
    ],
)
def test_what_cannot_be_planted(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        planted(tiny_bert(), **options)
    with pytest.raises(ValueError, match="no language model"):
        planted(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no holdout split"):
        planted(tiny_bert(), sequences=1, length=2, rank=1).size("holdout")


def test_matrix_floor_is_eckart_young() -> None:
    model, task = matrix([3.0, 2.0, 1.0], d=6, k=5)
    B, A = task.truth["matrix"]
    target = B.double() @ A.double()
    torch.testing.assert_close(
        torch.linalg.svdvals(target)[:3], singular_values([3, 2, 1], 0), rtol=1e-6, atol=1e-6
    )
    u, s, v = torch.linalg.svd(target)
    for rank in range(4):
        with torch.no_grad():
            model.matrix.weight.copy_(u[:, :rank] * s[:rank] @ v[:rank])
        assert task.evaluate(model)["loss"] == pytest.approx(task.floor(rank), rel=1e-5, abs=1e-10)
        assert task.evaluate(model)["relative"] == pytest.approx(task.floor(rank) / 7.0, rel=1e-5, abs=1e-10)
    assert [task.floor(r) for r in range(4)] == [7.0, 2.5, 0.5, 0.0]


def test_matrix_gradient_is_the_residual_and_sees_hooks() -> None:
    model, task = matrix(d=4, k=7, seed=2)
    model.double()
    batch = task.batch("train", [0, 0, 0])
    task.loss(model, batch).backward()
    B, A = task.truth["matrix"]
    torch.testing.assert_close(model.matrix.weight.grad, -(B.double() @ A.double()), rtol=1e-12, atol=1e-12)
    before = task.evaluate(model)["loss"]
    hook = model.matrix.register_forward_hook(lambda m, x, y: y + x[0] @ (B.double() @ A.double()).T)
    assert before > 0.5
    assert task.evaluate(model)["loss"] < 1e-20
    hook.remove()
    assert task.size() == task.weight(batch) == 1
    assert task.predict(model).shape == (1, 4, 7)


def test_matrix_leaves_the_global_state_and_follows_its_seed() -> None:
    state = torch.get_rng_state()
    (_, a), (_, b), (_, c) = matrix(seed=1), matrix(seed=1), matrix(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.truth["matrix"][0], b.truth["matrix"][0])
    assert not torch.equal(a.truth["matrix"][0], c.truth["matrix"][0])
