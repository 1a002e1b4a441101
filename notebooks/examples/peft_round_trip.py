"""PEFT both ways: a model that has a PEFT adapter becomes a base, and boosted rounds leave as an adapter."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from xgblora_lab import Bench, Probe, XGBLoRA, into_base, load

torch.set_num_threads(1)
model, task = load("lab", "pydocs", kind="causal-lm", limit=200)

# Somebody else's adapter: here a LoRA of rank 2 that a few plain steps have trained.
theirs = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
for step in range(5):
    task.loss(theirs, task.batch("train", range(8 * step, 8 * step + 8))).backward()
    optimizer.step(), optimizer.zero_grad()
try:
    Bench(theirs, task, XGBLoRA())
except ValueError as error:
    print("A bench says:", error)

base = into_base(theirs)  # merged by PEFT itself
base.save_pretrained("runs/base")  # a base of its own: what is fitted to it needs it
base = AutoModelForCausalLM.from_pretrained("runs/base").eval()
method = XGBLoRA(lr=1e-2, steps_per_round=3)
with Bench(base, task, method, steps=9, batch_size=8, hooks=[Probe(limit=16)]) as bench:
    bench.run(progress=False)
    batch = task.batch("dev", range(4))["input_ids"]
    logits = base(batch).logits.detach()
    report = bench.export_peft("runs/adapter")
print(f"exported an adapter of rank {report['rank']} from {len(bench.history)} rounds")

# The base is as it was; PEFT loads the adapter onto it, and merges it to the same model.
with torch.no_grad():
    without = base(batch).logits
    adapted = PeftModel.from_pretrained(base, "runs/adapter").eval()
    with_adapter = adapted(batch).logits
    merged = adapted.merge_and_unload()(batch).logits
for what, seen in (("without", without), ("with the adapter", with_adapter), ("merged by PEFT", merged)):
    print(f"{what}: largest difference to the tuned logits {float((seen - logits).abs().max()):.1e}")
print(Path("runs/adapter/README.md").read_text(encoding="utf-8"))
assert torch.allclose(with_adapter, logits, atol=1e-4)
assert torch.allclose(merged, logits, atol=1e-4)
assert not torch.allclose(without, logits, atol=1e-2)
