"""A base packed into 4 bits: boosters stand beside the codes, and PEFT loads them onto the same base."""
# needs: bitsandbytes

from pathlib import Path

import torch
from peft import PeftModel

from xgblora_lab import Bench, Checkpoint, XGBLoRA, load, load_model, resume

torch.set_num_threads(1)

model, task = load("lab", "pydocs", dtype="4bit")
stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # codes and their scales
whole = sum(p.nbytes for p in load_model("lab").parameters())
packed = sum(t.nbytes for t in stored.values())
print(f"{whole / 1e6:.2f} MB in float32, {packed / 1e6:.2f} MB with the linear maps in 4 bits")

method = XGBLoRA(lr=1e-2, steps_per_round=5)
bench = Bench(model, task, method, steps=15, batch_size=8, hooks=[Checkpoint("runs/four-bit")])
for round in bench.rounds():
    print(f"round {round.index}: loss {round.probe_before:.3f} → {round.probe_after:.3f}")
name = next(iter(bench.modules))
print(f"singular values of what was added to {name}:", bench.spectrum(name).tolist())
loss = bench.evaluate("dev", limit=32)["loss"]

adapter = Path("runs/adapter")
bench.export_peft(adapter)
bench.close()
assert all(torch.equal(tensor, stored[n]) for n, tensor in model.state_dict().items())

again = resume("runs/four-bit", load_model("lab", task, dtype="4bit"), task)  # on a fresh base
assert again.evaluate("dev", limit=32)["loss"] == loss
again.rewind(1)
print(f"dev loss after three rounds {loss:.4f}, after one {again.evaluate('dev', limit=32)['loss']:.4f}")

elsewhere = PeftModel.from_pretrained(load_model("lab", task, dtype="4bit"), adapter).eval()
theirs = task.evaluate(elsewhere, "dev", limit=32)["loss"]
print(f"the adapter under PEFT, on the same base: {theirs:.4f}")
assert abs(theirs - loss) < 1e-4
