"""What Trainer's arguments must not say beside boosting rounds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Method

# What a step does is the method's; an argument that says otherwise would have no effect. By Trainer's name:
# the method's, and a value that is accepted beside the default.
STEP: dict[str, tuple[str, Any]] = {
    "learning_rate": ("lr", None),
    "lr_scheduler_type": ("schedule", None),
    "warmup_steps": ("warmup", 0),
    "weight_decay": ("weight_decay", 0.0),
    "adam_beta1": ("betas", None),
    "adam_beta2": ("betas", None),
    "max_grad_norm": ("max_grad_norm", 0.0),
}
REFUSED = {
    "deepspeed": "DeepSpeed keeps the weights and optimizers that rounds change: train without it.",
    "fsdp": "FSDP shards the weights that rounds are merged into: use a Bench with accelerate for that.",
    "fp16": "fp16's gradient scaler belongs to Trainer's own optimizer: use bf16=True, or neither.",
    "torch_compile": "A compiled model does not see that boosters come and go: leave torch_compile out.",
    "label_smoothing_factor": "Rounds record the model's own loss: leave label_smoothing_factor out.",
    "use_liger_kernel": "Liger's kernels take the place of layers that boosters sit on: leave it out.",
}


def check_arguments(args: Any, method: Method, optimizer: Any) -> None:
    """Refuse what rounds cannot be part of, and what would have no effect.

    Parameters
    ----------
    args : TrainingArguments
        Of transformers, or what derives from it.
    method : Method
        That runs the rounds.
    optimizer : Optimizer or None
        That was given to Trainer.

    Raises
    ------
    ValueError
        It says which argument, and what to do.
    """
    for name, sentence in REFUSED.items():
        if getattr(args, name, None):
            raise ValueError(sentence)
    if args.n_gpu > 1:
        raise ValueError(
            "DataParallel copies the model in every pass: start a process for each GPU with torchrun."
        )
    if optimizer is not None:
        raise ValueError("The method makes an optimizer in every round: leave Trainer's optimizers= out.")
    defaults = {f.name: f.default for f in dataclasses.fields(args)}
    for name, (option, accepted) in STEP.items():
        value, own = getattr(args, name, None), getattr(method, option)
        if value not in (None, defaults.get(name), accepted, own) and value not in (
            own if isinstance(own, tuple) else ()
        ):
            raise ValueError(
                f"TrainingArguments({name}={value}) would have no effect, as a round's step is the method's: "
                f"leave it out, and say it in the method ({option}=…)."
            )
