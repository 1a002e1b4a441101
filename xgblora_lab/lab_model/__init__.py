"""The lab model: weights, tokenizer and model card of the embedded default, and the script that made them."""
