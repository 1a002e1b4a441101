"""LoRA's descendants by what they change: the groups of the lessons' tables and figures."""

from __future__ import annotations

GROUPS = {
    "the references": ("lora", "full"),
    "where they start": ("lora-ga", "gora", "pissa"),
    "how they step": ("rora", "lora+", "lora-pro", "lora-rite"),
    "how they share rank": ("beamlora", "alora", "sora", "adalora"),
    "what they shake or split": ("lora-ggpo", "lora-mgpo", "dora"),
    "how they go round": ("xgblora", "relora", "cola", "adapad"),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
