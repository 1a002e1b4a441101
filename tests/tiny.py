"""Tiny models and a tokenizer made on the fly: two layers, width 32, random weights, no files, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
VOCABULARY = len(SPECIALS) + 256  # one token per byte, no merges
WIDTH, LAYERS, HEADS, POSITIONS = 32, 2, 4, 256
PAD, BOS, EOS, MASK = 0, 1, 2, 4


def tiny_tokenizer(pad: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer of 261 tokens that adds none by itself; `pad=False`: without a pad token."""
    names = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    if pad:
        special["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **special)


def tiny_bert(num_labels: int | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """BertForMaskedLM, or BertForSequenceClassification with `num_labels`; in evaluation mode, no dropout."""
    config = BertConfig(
        **_common(num_labels),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    return _build(BertForSequenceClassification if num_labels else BertForMaskedLM, config, seed)


def tiny_gpt2(num_labels: int | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """GPT2LMHeadModel (with transposed `Conv1D` weights), or its sequence classifier with `num_labels`."""
    config = GPT2Config(
        **_common(num_labels),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **options,
    )
    return _build(GPT2ForSequenceClassification if num_labels else GPT2LMHeadModel, config, seed)


def tiny_llama(num_labels: int | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """LlamaForCausalLM (grouped-query attention, tied embeddings), or its sequence classifier."""
    config = LlamaConfig(
        **{"tie_word_embeddings": True, **options},
        **_common(num_labels),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=POSITIONS,
    )
    return _build(LlamaForSequenceClassification if num_labels else LlamaForCausalLM, config, seed)


def tiny_t5(seed: int = 0, **options: Any) -> nn.Module:
    """T5ForConditionalGeneration: two encoder and two decoder layers."""
    config = T5Config(
        **_common(None),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        **options,
    )
    return _build(T5ForConditionalGeneration, config, seed)


def save_tiny(model: nn.Module, folder: Path, tokenizer: Any = None) -> Path:
    """Write `model` and the tokenizer as a `from_pretrained` folder; returns the folder."""
    model.save_pretrained(folder)  # type: ignore[operator]
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def _common(num_labels: int | None) -> dict[str, Any]:
    labels = {"num_labels": num_labels} if num_labels else {}
    return {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, **labels}


def _build(make: Callable[[Any], nn.Module], config: PretrainedConfig, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config).eval()
