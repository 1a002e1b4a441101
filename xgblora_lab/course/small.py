"""A Llama so small that a lesson can race dozens of runs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    """Draw a Llama at random: two layers of width 32, 64 tokens, 20,000 weights.

    Its weights are large, so that its answers depend on its inputs though nobody has trained it.

    Parameters
    ----------
    seed : int, default 0
        Of the weights; the random state of the caller stays as it is.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
