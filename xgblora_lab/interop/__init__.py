"""The rounds inside other people's loops and formats: transformers' `Trainer`, and PEFT's adapters."""

from xgblora_lab.interop.peft import into_base
from xgblora_lab.interop.trainer import XGBLoRACallback

__all__ = ["XGBLoRACallback", "into_base"]
