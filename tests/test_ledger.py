"""The ledger: what is computed from shapes is what a real run of the same model holds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig

from tests.tiny import tiny_llama
from xgblora_lab import Bench, LoRA, XGBLoRA, planted
from xgblora_lab.course import ledger
from xgblora_lab.lowrank.booster import LowRank, attached, init_A
from xgblora_lab.lowrank.linear import find_modules, weight_shape


def test_the_numbers_of_a_run_in_half_precision_are_those_of_its_shapes() -> None:
    model = tiny_llama().to(torch.bfloat16)
    task = planted(model, sequences=64, length=8)
    rounds = 3
    for method, rank in ((XGBLoRA(steps_per_round=1), 1), (LoRA(rank=8, steps_per_round=1), 8)):
        with Bench(model, task, method, steps=rounds, batch_size=2, probe_size=0) as bench:
            bench.run(progress=False)
            record, merges = bench.history[-1], method.additive
            held = sum(t.nbytes for t in bench.weights._master.values())
            factors = sum(
                t.nbytes for i in range(rounds) for pair in bench.ensemble[i].values() for t in pair
            )
            tensors = 2 * len(bench.modules)
        numbers = ledger.pair_numbers(model, rank)
        assert record.peak_parameters == numbers
        assert record.gradient_bytes == 4 * numbers
        assert record.optimizer_bytes == 8 * numbers + 4 * tensors  # two moments, and a step counter for each
        assert held == (4 * ledger.map_numbers(model) if merges else 0)  # the master copy in float32
        if merges:
            assert factors == rounds * 4 * numbers


def test_what_a_step_keeps_is_near_that_of_the_real_model() -> None:
    """On paper attention keeps its weights, token by token, which the real one need not."""
    model: Any = tiny_llama().to(torch.bfloat16)
    paper = ledger.on_paper(model.config)
    assert all(p.is_meta for p in paper.parameters())
    tokens, found = 32, {}
    ids = torch.zeros(1, tokens, dtype=torch.long)
    for rank in (1, 8):
        model.requires_grad_(False)
        model.model.embed_tokens.weight.requires_grad_(True)  # so that the first layer keeps what others keep
        pairs = {
            name: LowRank.fresh(m, init_A("kaiming", rank, weight_shape(m)[1], torch.Generator()))
            for name, m in find_modules(model).items()
        }
        with attached(model, pairs):
            real = ledger.kept_for_backward(lambda: model(input_ids=ids, labels=ids, use_cache=False), model)
        found[rank] = ledger.activation_bytes(paper, rank, tokens)
        assert 0.6 < real / found[rank] < 1.2
    assert found[1] < found[8]
    assert ledger.activation_bytes(paper, None, tokens) != found[1]
    assert 2 < ledger.activation_bytes(paper, 1, 2 * tokens) / found[1] < 4


def test_a_7b_model_has_seven_billion_numbers_and_takes_none() -> None:
    model = ledger.on_paper(LlamaConfig())
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616
    assert ledger.pair_numbers(model, 8) == 8 * ledger.pair_numbers(model, 1) == 19_988_480
