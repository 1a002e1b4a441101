"""Pre-train the lab model from plain text: `python -m xgblora_lab.lab_model.pretrain --help`.

A byte-level BPE tokenizer and a small Llama are trained on one text file and scored on another. The script
resumes from its last checkpoint with the same curve: the batch of step i depends on (seed, i) alone. The
learning rate is a trapezoid (warm-up, plateau, linear decay over the last fifth), so a run may be resumed
with a smaller --steps as long as the new decay has not begun: that is how to end early and still decay.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xgblora_lab.files import load_tensors, replaced, replaced_folder, write_json, write_tensors

END, PAD = "<|endoftext|>", "<|pad|>"


def train_tokenizer(corpus: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `vocab_size` entries; END is end-of-text and PAD is padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(corpus)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=512
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: Path, cache: Path) -> np.ndarray:
    """Token ids of the whole file, uint16, kept in `cache` (a .npy file read memory-mapped)."""
    if not cache.exists():
        paragraphs = text.read_text(encoding="utf-8").split("\n\n")
        parts = []
        for start in tqdm(range(0, len(paragraphs), 2000), desc=f"encoding {text.name}"):
            block = [p + "\n\n" for p in paragraphs[start : start + 2000]]
            parts += [np.array(e.ids, np.uint16) for e in tokenizer.backend_tokenizer.encode_batch(block)]
        with replaced(cache) as partial:
            np.save(partial, np.concatenate(parts))
    return np.load(cache, mmap_mode="r")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Trapezoid: 200 steps up, a plateau, linear to zero over the last fifth."""
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))


@torch.no_grad()
def held_out(model: LlamaForCausalLM, ids: np.ndarray, sequence: int, batches: int | None = None) -> float:
    """Mean next-token loss in nats over consecutive windows (all of them by default)."""
    model.eval()
    rows = (len(ids) - 1) // sequence
    tokens = torch.from_numpy(ids[: rows * sequence].astype(np.int64)).view(rows, sequence).split(32)
    tokens = tokens[:: max(1, len(tokens) // batches)] if batches else tokens
    total = sum(model(input_ids=t, labels=t).loss.item() * len(t) for t in tokens)
    model.train()
    return total / sum(len(t) for t in tokens)


def save(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write a checkpoint in place of the last one: a kill leaves the old one or the new one."""
    moments = {
        f"{i}.{key}": value
        for i, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    with replaced_folder(folder) as partial:
        model.save_pretrained(partial)
        write_tensors(partial / "optimizer.safetensors", moments)
        write_json(partial / "state.json", state)


def restore(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> dict:
    """Load what `save` wrote into the model and the optimizer; returns the state."""
    model.load_state_dict(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_tensors(folder / "optimizer.safetensors").items():
        index, key = name.split(".")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    return json.loads((folder / "state.json").read_text())


def new_model(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int, hidden: int, layers: int
) -> LlamaForCausalLM:
    """A Llama of that width and depth, with heads of 32 and tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=round(8 * hidden / 3),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices alone."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )


@dataclass(frozen=True)
class Plan:
    """How to train: see the options of the same names."""

    steps: int
    batch: int
    sequence: int
    peak_lr: float
    seed: int


def train(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    state: dict,
    checkpoint: Path,
    train_ids: np.ndarray,
    valid_ids: np.ndarray,
    plan: Plan,
) -> None:
    """Train from `state["step"]` to the plan's end; every 250 steps score, and write `checkpoint`."""
    device, steps, sequence = model.device, plan.steps, plan.sequence
    bar = tqdm(range(state["step"], steps), initial=state["step"], total=steps, mininterval=10)
    began = time.perf_counter() - state["seconds"]
    for step in bar:
        rng = np.random.default_rng([plan.seed, step])
        starts = rng.integers(0, len(train_ids) - sequence, plan.batch)
        rows = np.stack([train_ids[s : s + sequence] for s in starts]).astype(np.int64)
        tokens = torch.from_numpy(rows).to(device)  # (N, S)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, plan.peak_lr)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state["step"], state["seconds"] = step + 1, time.perf_counter() - began
            state["valid"].append([step + 1, held_out(model, valid_ids, sequence, batches=8)])
            save(checkpoint, model, optimizer, state)


def main(
    corpus: Annotated[Path, typer.Option(help="UTF-8 text to train on; paragraphs separated by blank lines")],
    valid: Annotated[Path, typer.Option(help="held-out UTF-8 text")],
    out: Annotated[Path, typer.Option(help="working folder: token caches, checkpoint, finished model")],
    steps: Annotated[int, typer.Option(help="optimizer steps in all")] = 7000,
    batch: Annotated[int, typer.Option(help="sequences per step")] = 16,
    sequence: Annotated[int, typer.Option(help="tokens per sequence")] = 256,
    peak_lr: Annotated[float, typer.Option(help="learning rate of the plateau")] = 2e-3,
    vocab_size: Annotated[int, typer.Option(help="tokenizer entries")] = 4096,
    hidden: Annotated[int, typer.Option(help="width")] = 192,
    layers: Annotated[int, typer.Option(help="depth")] = 4,
    seed: Annotated[int, typer.Option(help="weights and data order")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Train the lab model; prints and saves held-out perplexity and bits per byte."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(corpus, vocab_size).save_pretrained(out / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    train_ids = encode(tokenizer, corpus, out / "train.npy")
    valid_ids = encode(tokenizer, valid, out / "valid.npy")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: LlamaForCausalLM = new_model(tokenizer, vocab_size, hidden, layers).to(device)
    optimizer = new_optimizer(model)
    checkpoint = out / "checkpoint"
    state: dict = {"step": 0, "seconds": 0.0, "valid": []}
    if (checkpoint / "state.json").exists():
        state = restore(checkpoint, model, optimizer)
    plan = Plan(steps, batch, sequence, peak_lr, seed)
    train(model, optimizer, state, checkpoint, train_ids, valid_ids, plan)

    # Rounded before it is measured: the numbers are those of the weights that are kept.
    model.to(torch.bfloat16).save_pretrained(out / "model")
    nats = held_out(model.float(), valid_ids, sequence)
    result = {
        "parameters": model.num_parameters(),
        "steps": steps,
        "tokens": steps * batch * sequence,
        "hours": round(state["seconds"] / 3600, 2),
        "device": device.type,
        "threads": threads,
        "corpus_tokens": len(train_ids),
        "corpus_bytes": os.path.getsize(corpus),
        "held_out_bytes": os.path.getsize(valid),
        "held_out_tokens": len(valid_ids),
        "held_out_loss_nats": round(nats, 4),
        "held_out_perplexity": round(math.exp(nats), 2),
        "held_out_bits_per_byte": round(nats / math.log(2) * len(valid_ids) / os.path.getsize(valid), 4),
        "held_out_curve": [[s, round(v, 4)] for s, v in state["valid"]],
    }
    tokenizer.save_pretrained(out / "model")
    write_json(out / "model" / "pretraining.json", result)
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
