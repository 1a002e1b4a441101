"""PEFT both ways: what is exported is a whole adapter to it, and a model with an adapter can be a base."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from toy import ToyTask, equal, snapshot

from xgblora_lab import Bench, Probe, XGBLoRA, into_base

KINDS = {  # how it is made, the task's kind, PEFT's class that loads base and adapter, its further options
    "llama": (tiny.tiny_llama, "causal-lm", "AutoPeftModelForCausalLM", {}),
    "bert": (
        lambda: tiny.tiny_bert(3),
        "classification",
        "AutoPeftModelForSequenceClassification",
        {"num_labels": 3},
    ),
    "t5": (tiny.tiny_t5, "seq2seq-lm", "AutoPeftModelForSeq2SeqLM", {}),
    "masked": (tiny.tiny_bert, "masked-lm", "AutoPeftModel", {}),
}


def exported(name, folder, **options):
    """A bench on a model that lies in a folder, after two rounds, and its adapter."""
    make, kind, *_ = KINDS[name]
    tiny.save_tiny(make(), folder / "base")
    model = type(make()).from_pretrained(folder / "base").eval()
    method = XGBLoRA(lr=0.05, steps_per_round=2, selection="random", modules_per_round=0.5, head_lr=0.05)
    bench = Bench(model, ToyTask(kind), method, steps=4, batch_size=8, hooks=[Probe(limit=8)])
    bench.run(progress=False)
    bench.export_peft(folder / "adapter", **options)
    return bench


@pytest.mark.parametrize("name", list(KINDS))
def test_pefts_auto_class_loads_base_and_adapter_and_merges_them(name, tmp_path):
    import peft

    bench = exported(name, tmp_path)
    _, _, auto, options = KINDS[name]
    logits = torch.tensor(bench.predict())
    with torch.random.fork_rng():
        adapted = getattr(peft, auto).from_pretrained(str(tmp_path / "adapter"), **options).eval()
    torch.testing.assert_close(torch.tensor(bench.task.predict(adapted)), logits, atol=1e-5, rtol=1e-5)

    # PEFT's own checks: no weight is missing or left over, and the adapter is on everywhere
    weights = peft.load_peft_weights(str(tmp_path / "adapter"), device="cpu")
    result = peft.set_peft_model_state_dict(adapted, weights)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    status = peft.get_model_status(adapted)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.num_adapter_layers == len({m for r in bench.history for m in r.modules}) + bool(bench.head)

    merged = adapted.merge_and_unload()
    assert type(merged) is type(bench.model)
    torch.testing.assert_close(torch.tensor(bench.task.predict(merged)), logits, atol=1e-5, rtol=1e-5)
    base = type(bench.model).from_pretrained(tmp_path / "base").eval()
    assert (torch.tensor(bench.task.predict(base)) - logits).abs().max() > 1e-3  # the adapter matters


def test_a_card_says_what_the_adapter_is(tmp_path):
    bench = exported("bert", tmp_path, rank=1)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-classification")
    assert card.data.base_model is None  # the base is a folder of this machine, which the hub does not know
    last = bench.history[-1]
    for said in (
        "| base | base |",
        "| data | toy |",
        "| rounds | 2, 4 optimizer steps of 8 examples |",
        f"| probe loss | {bench.history[0].probe_before:.4g} | {last.probe_after:.4g} |",
        f"| dev_loss |  | {last.measurements['dev_loss']:.4g} |",
        "AutoPeftModelForSequenceClassification.from_pretrained",
        "num_labels=3)",
    ):
        assert said in card.text
    assert str(tmp_path) not in card.content
    bench.ensemble.truncate(1)
    with pytest.raises(ValueError, match="empty"):
        Bench(tiny.tiny_llama(), ToyTask(), XGBLoRA()).export_peft(tmp_path / "nothing")
    bench.export_peft(tmp_path / "hub", base="someone/model")
    assert ModelCard.load(tmp_path / "hub" / "README.md").data.base_model == "someone/model"


def with_adapter(seed=0):
    """A Llama with a LoRA of PEFT's that does something."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"])).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_model_with_an_adapter_is_refused_and_taken_in_on_request(tmp_path):
    task, model = ToyTask(), with_adapter()
    logits = torch.tensor(task.predict(model))
    with pytest.raises(ValueError, match=r"holds a PEFT adapter: take it into the base with .* into_base"):
        Bench(model, task, XGBLoRA())
    injected = tiny.tiny_llama()
    model.save_pretrained(tmp_path / "first")
    injected.load_adapter(str(tmp_path / "first"))  # transformers' own way
    with pytest.raises(ValueError, match="holds a PEFT adapter"):
        Bench(injected, task, XGBLoRA())
    with pytest.raises(TypeError, match=r"takes a PeftModel, got LlamaForCausalLM"):
        into_base(injected)

    base = into_base(model)
    torch.testing.assert_close(torch.tensor(task.predict(base)), logits, atol=1e-5, rtol=1e-5)
    assert (torch.tensor(task.predict(tiny.tiny_llama())) - logits).abs().max() > 1e-2
    before = snapshot(base)
    bench = Bench(base, task, XGBLoRA(lr=0.05, steps_per_round=2), steps=2)
    bench.run(progress=False)
    tuned = torch.tensor(bench.predict())
    assert (tuned - logits).abs().max() > 1e-3
    bench.export_peft(tmp_path / "second")
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ""  # not the base that the first adapter was made for
    assert "PeftModel.from_pretrained(base," in (tmp_path / "second" / "README.md").read_text()
    bench.close()
    assert equal(snapshot(base), before)

    from peft import PeftModel

    second = PeftModel.from_pretrained(base, tmp_path / "second").eval()
    torch.testing.assert_close(torch.tensor(task.predict(second)), tuned, atol=1e-5, rtol=1e-5)


def test_a_prompt_cannot_go_into_the_base():
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(
        tiny.tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="PROMPT_TUNING adds nothing to weights"):
        into_base(prompted)
