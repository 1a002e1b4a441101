"""A base that bitsandbytes has packed into 4 or 8 bits: boosters stand beside the codes, which stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from toy import ToyTask

from xgblora_lab.bench import Bench, Checkpoint, Gain, resume
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import Full, LoRA, XGBLoRA
from xgblora_lab.stored import keep_stored, unpacked
from xgblora_lab.tasks import models
from xgblora_lab.tasks.models import load_model
from xgblora_lab.tasks.planted import planted

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes packs the weights of these bases")

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes packs the weights of these bases")
MAKERS = {
    "llama": tiny.tiny_llama,
    "gpt2": tiny.tiny_gpt2,
}  # of gpt2's transposed maps ordinary ones are made
CASES = [("llama", "4bit"), ("gpt2", "4bit"), ("llama", "8bit")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.save_tiny(make(), root / name) for name, make in MAKERS.items()}


def codes(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything stored: codes, scales, and all that is not packed."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def logits(model: nn.Module) -> Tensor:
    batch = ToyTask().batch("dev", range(8))
    with torch.no_grad():
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def bench_on(model: nn.Module, method: Any = None, hooks: Any = ()) -> Bench:
    method = method or XGBLoRA(lr=0.05, steps_per_round=3)
    return Bench(model, ToyTask(), method, steps=9, batch_size=4, hooks=hooks)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_boosters_stand_beside_a_packed_weight(folders, name, dtype, tmp_path):
    from peft import PeftModel

    model = load_model(folders[name], dtype=dtype)
    before, base = codes(model), logits(model)
    bench = bench_on(model, hooks=[Gain(), Checkpoint(tmp_path / "run")])
    records = [bench.step(), bench.step()]
    after_two = logits(model)
    records.append(bench.step())
    live = logits(model)
    assert same(codes(model), before)
    assert (live - base).abs().max() > 1e-2
    assert all(max(r.measurements["gain"].values()) > 1e-4 for r in records)

    # the update of one module, against the weight that the codes stand for
    module = next(iter(bench.modules))
    x = torch.randn(5, bench.ensemble.shapes[module][1])
    map_ = bench.modules[module].train()  # in evaluation 8 bits round the input, too
    bias = 0 if map_.bias is None else map_.bias
    W = bench.weights.base(module)
    torch.testing.assert_close(map_(x), x @ (W + bench.update(module)).T + bias, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(map_(x), x @ W.T + bias, atol=1e-3)
    whole = dict(MAKERS[name]().named_modules())[module].weight
    whole = whole if whole.shape == W.shape else whole.T
    assert 0 < (W - whole).norm() < 0.2 * whole.norm()
    assert len(bench.spectrum(module)) == 3
    assert bench.spectrum(module)[-1] > 0
    model.eval()

    # saved, and gone on with on a fresh base; rewound bit for bit
    again = resume(tmp_path / "run", load_model(folders[name], dtype=dtype), ToyTask())
    assert torch.equal(logits(again.model), live)
    again.rewind(2)
    assert torch.equal(logits(again.model), after_two)
    assert again.step().losses == records[2].losses
    assert torch.equal(logits(again.model), live)

    # the adapter on the same base, by PEFT
    bench.export_peft(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"is packed \(quantised\): its boosters .* use export_peft"):
        bench.export_merged(tmp_path / "merged")
    elsewhere = PeftModel.from_pretrained(load_model(folders[name], dtype=dtype), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(elsewhere), live, atol=1e-3 if dtype == "8bit" else 1e-5, rtol=0)
    fresh = load_model(folders[name], dtype=dtype)
    Ensemble.load(tmp_path / "run").apply(fresh)
    torch.testing.assert_close(logits(fresh), live, atol=1e-5, rtol=0)

    bench.close()
    assert same(codes(model), before)
    assert torch.equal(logits(model), base)


def test_the_scales_belong_to_the_base(folders, tmp_path):
    model = load_model(folders["llama"], dtype="4bit")
    bench_on(model, hooks=[Checkpoint(tmp_path / "run")]).step()
    other = load_model(folders["llama"], dtype="4bit")
    other.model.layers[0].mlp.up_proj.weight.quant_state.absmax.mul_(2)  # the same codes
    with pytest.raises(ValueError, match="began with other weights"):
        resume(tmp_path / "run", other, ToyTask())


def test_a_weight_that_an_evaluation_packed_anew_is_packed_as_before():
    """What bitsandbytes does on processors with AVX512-BF16, done here by hand."""
    module = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    before, weight = module.weight.detach().clone(), module.weight
    module.support_avx512bf16_for_cpu = True
    weight.data, weight.quant_state = bitsandbytes.functional._convert_weight_packed_for_cpu(
        weight.data, weight.quant_state
    )
    assert weight.flatten().tolist() != before.flatten().tolist()
    keep_stored(nn.Sequential(module))
    assert torch.equal(weight, before)
    assert not module.support_avx512bf16_for_cpu
    x = torch.randn(3, 64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.norm() > 0


def test_a_packed_folder_loads_as_it_is(folders, tmp_path):
    model = load_model(folders["llama"], dtype="4bit")
    model.save_pretrained(tmp_path / "packed")
    again = load_model(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(unpacked(again.get_submodule(name)), unpacked(model.get_submodule(name)))


def test_what_needs_the_weights_themselves_is_refused(folders):
    model = load_model(folders["llama"], dtype="4bit")
    with pytest.raises(ValueError, match="needs floating-point weights"):
        bench_on(model, Full())
    with pytest.raises(ValueError, match="before it is quantised"):
        planted(model, sequences=8, length=4, rank=2)
    assert bench_on(model, LoRA(rank=2, lr=0.05, steps_per_round=3)).step().losses[-1] > 0


def test_without_bitsandbytes_it_is_one_sentence(folders, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="4bit needs bitsandbytes"):
        load_model(folders["llama"], dtype="4bit")
