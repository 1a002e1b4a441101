"""Boosters on linear maps of every layout."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xgblora_lab.lowrank.booster import LowRank, attached, init_A, watched
from xgblora_lab.lowrank.linear import (
    block_name,
    blocks,
    dense_weight,
    find_modules,
    head_parameters,
    weight_shape,
)
from xgblora_lab.tasks.planted import add_update_


class PackedLinear(nn.Linear):
    """Stands for what quantised libraries derive from nn.Linear: weights in int8, scaled on use."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__(k, d, bias=False)
        codes = torch.randint(-127, 128, (d * k // 2, 2), dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float().view(self.out_features, self.in_features) / 127).T


def conv1d(k: int, d: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(d, k)


@pytest.mark.parametrize("make", [nn.Linear, conv1d, PackedLinear])
def test_a_booster_adds_the_dense_product(make):
    torch.manual_seed(0)
    module = make(6, 4)
    assert weight_shape(module) == (4, 6)
    x = torch.randn(2, 3, 6)
    before = module(x)
    booster = LowRank(torch.randn(2, 6), torch.randn(4, 2), scale=0.5)
    booster.attach(module)
    torch.testing.assert_close(module(x), before + 0.5 * x @ (booster.B @ booster.A).T)
    assert not torch.allclose(module(x), before)
    booster.detach()
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
def test_merging_equals_the_attached_booster(make):
    torch.manual_seed(0)
    module, x = make(6, 4), torch.randn(5, 6)
    booster = LowRank(torch.randn(1, 6), torch.randn(4, 1), scale=2.0)
    booster.attach(module)
    live = module(x)
    booster.detach()
    add_update_(module, *booster.factors())
    torch.testing.assert_close(module(x), live)
    B, A = booster.factors(shrinkage=0.5)
    torch.testing.assert_close(B @ A, booster.B @ booster.A)  # scale 2 × shrinkage .5


def test_a_gate_scales_the_rank_one_parts():
    gate = torch.tensor([2.0, 0.0])
    booster = LowRank(torch.randn(2, 3), torch.randn(3, 2), gate=gate)
    x = torch.randn(4, 3)
    torch.testing.assert_close(booster(x), 2 * x @ torch.outer(booster.B[:, 0], booster.A[0]).T)
    B, A = booster.factors()
    torch.testing.assert_close(booster(x), x @ (B @ A).T)


@pytest.mark.parametrize("kind", ["kaiming", "gaussian", "orthogonal"])
def test_initialisations_share_their_norm_and_change_nothing(kind):
    generator = torch.Generator().manual_seed(0)
    norms = torch.stack([init_A(kind, 4, 300, generator).square().sum() for _ in range(50)])
    assert norms.mean().sqrt() == pytest.approx((4 / 3) ** 0.5, rel=0.02)
    module = nn.Linear(300, 5)
    x = torch.randn(2, 300)
    before = module(x)
    LowRank.fresh(module, init_A(kind, 1, 300, generator)).attach(module)
    assert torch.equal(module(x), before)


def test_an_orthogonal_start_is_orthogonal_and_an_unknown_one_refused():
    A = init_A("orthogonal", 3, 20, torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(A @ A.T * 3, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="accepted: kaiming"):
        init_A("zeros", 1, 4, torch.Generator())
    with pytest.raises(ValueError, match="rank <= inputs"):
        init_A("orthogonal", 5, 4, torch.Generator())


def test_attached_boosters_are_gone_after_an_exception():
    model = tiny.tiny_llama()
    name = "model.layers.0.self_attn.q_proj"
    module = model.get_submodule(name)
    booster = LowRank.fresh(module, torch.ones(1, 32))
    counts = []

    def fail():
        counts.append(len(module._forward_hooks))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attached(model, {name: booster}):
        fail()
    assert counts == [1]
    assert len(module._forward_hooks) == 0


def test_watched_modules_give_the_gradient_of_the_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for p in model.parameters():
        p.requires_grad_(False)
    x, y = torch.randn(7, 5).double(), torch.randn(7, 3).double()
    seen: dict[str, Tensor] = {}
    modules = {"0": model[0], "2": model[2]}
    with watched(modules, lambda name, X, D: seen.__setitem__(name, D.T @ X)):
        (model(x) - y).square().sum().backward()
    assert all(not m._forward_hooks for m in modules.values())
    for p in model.parameters():
        p.requires_grad_(True)
    (model(x) - y).square().sum().backward()
    for name, module in modules.items():
        torch.testing.assert_close(seen[name], module.weight.grad)


def test_modules_are_chosen_by_kind_name_and_pattern():
    model = tiny.tiny_llama()
    everything = find_modules(model, "all-linear")
    assert len(everything) == 14
    assert "lm_head" not in everything
    attention = find_modules(model, "attention")
    assert len(attention) == 8
    assert all("self_attn" in n for n in attention)
    assert list(find_modules(model, "q_proj")) == [n for n in everything if n.endswith("q_proj")]
    assert len(find_modules(model, ["*.0.mlp.*", "model.layers.1.self_attn.k_proj"])) == 4
    with pytest.raises(ValueError, match=r"matches 'nothing'.*all-linear"):
        find_modules(model, "nothing")


@pytest.mark.parametrize(
    ("make", "attention", "all_linear"),
    [(tiny.tiny_bert, 8, 12), (tiny.tiny_gpt2, 4, 8), (tiny.tiny_t5, None, None)],
)
def test_attention_is_found_in_every_architecture(make, attention, all_linear):
    model = make()
    chosen, everything = find_modules(model, "attention"), find_modules(model, "all-linear")
    assert "lm_head" not in everything
    assert "cls.predictions.decoder" not in everything
    assert 0 < len(chosen) < len(everything)
    if attention:
        assert (len(chosen), len(everything)) == (attention, all_linear)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny.tiny_bert, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (tiny.tiny_gpt2, ["transformer.h.0", "transformer.h.1"]),
        (tiny.tiny_llama, ["model.layers.0", "model.layers.1"]),
        (tiny.tiny_t5, ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
    ],
)
def test_modules_fall_into_blocks_in_the_models_order(make, expected):
    modules = find_modules(make())
    found = blocks(modules)
    assert [name for block in found for name in block] == list(modules)
    assert [{block_name(name) for name in block} for block in found] == [{name} for name in expected]
    for name, block in zip(expected, found, strict=True):
        assert block == [n for n in modules if n.startswith(f"{name}.")]


def test_blocks_follow_the_first_number_and_need_none():
    names = ["h.10.fc", "h.1.fc", "h.10.mlp.2", "3", "pooler.dense", "pooler.out", "score", "fc2"]
    assert blocks(names) == [
        ["h.10.fc", "h.10.mlp.2"],
        ["h.1.fc"],
        ["3"],
        ["pooler.dense", "pooler.out"],
        ["score"],
        ["fc2"],
    ]
    assert blocks([]) == []


def test_tied_weights_are_refused():
    model = tiny.tiny_llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(ValueError, match=r"tied to 'model\.embed_tokens\.weight'"):
        find_modules(model, "lm_head")


def test_the_head_is_what_is_trained_beside():
    assert head_parameters(tiny.tiny_llama()) == {}
    assert set(head_parameters(tiny.tiny_llama(num_labels=3))) == {"score.weight"}
    assert set(head_parameters(tiny.tiny_bert(num_labels=3))) == {"classifier.weight", "classifier.bias"}


def test_dense_weight_is_a_view():
    module = conv1d(6, 4)
    dense_weight(module).data[1, 2] = 9.0
    assert module.weight[2, 1] == 9.0


@pytest.mark.parametrize("make", [nn.Linear, lambda k, d: Conv1D(d, k)])
@pytest.mark.parametrize("frozen", ["", "A", "B", "x"])
def test_the_short_way_through_a_booster_equals_the_plain_one(make, frozen):
    """Against autograd on the written-out formula; the twin changes the scale."""
    torch.manual_seed(0)
    module = make(6, 4).double().requires_grad_(False)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=frozen != "x")
    A = torch.randn(3, 6, dtype=torch.float64)
    B = torch.randn(4, 3, dtype=torch.float64)
    booster = LowRank(A, B, scale=0.7)
    for name in {"A", "B"} & {frozen}:
        getattr(booster, name).requires_grad_(False)
    inputs = [t for t in (x, booster.A, booster.B) if t.requires_grad]

    def gradients(scale: float | None):
        if scale is None:
            booster.attach(module)
            output = module(x)
            booster.detach()
        else:
            output = module(x) + scale * (x @ booster.A.T) @ booster.B.T
        return [output, *torch.autograd.grad(output.sin().sum(), inputs)]

    short, plain, other = gradients(None), gradients(0.7), gradients(0.6)
    for a, b, c in zip(short, plain, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
        assert (a - c).abs().max() > 1e-3
