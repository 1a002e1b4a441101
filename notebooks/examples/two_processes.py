"""A base sharded over two processes by FSDP2. It starts them itself; on GPUs it is `torchrun` that does."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification

from xgblora_lab import Bench, XGBLoRA, load


def sharded() -> None:
    """What each of the processes does."""
    accelerator = Accelerator()  # first of all: the processes meet here
    model, task = load("lab", "pydocs")
    for block in model.base_model.layers:
        fully_shard(block)
    fully_shard(model, ignored_params=set(model.score.parameters()))  # every process trains the head

    method, main = XGBLoRA(lr=1e-2, steps_per_round=5), accelerator.is_main_process
    bench = Bench(model, task, method, steps=15, batch_size=4, accelerator=accelerator)
    for round in bench.rounds():
        if main:
            print(f"round {round.index}: loss {round.probe_before:.3f} → {round.probe_after:.3f}", flush=True)
    weight = next(iter(bench.modules.values())).weight
    scores = bench.evaluate("dev", limit=32)  # all processes together, like everything that passes the model
    bench.export_merged("runs/merged")  # gathered by all, written by the first
    if main:
        print(f"each process holds {len(weight.to_local())} of {len(weight)} rows of a weight", flush=True)
        whole = AutoModelForSequenceClassification.from_pretrained("runs/merged")
        alone = task.evaluate(whole, "dev", limit=32)["loss"]
        print(f"dev loss sharded {scores['loss']:.4f}, of the merged checkpoint {alone:.4f}", flush=True)
        assert abs(alone - scores["loss"]) < 1e-4
    torch.distributed.destroy_process_group()


if "RANK" in os.environ:
    torch.set_num_threads(1)
    sharded()
else:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, __file__], env=os.environ | {"ACCELERATE_USE_CPU": "true"}, check=True)
    assert Path("runs/merged/model.safetensors").exists()
