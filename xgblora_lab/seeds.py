"""Named random streams: every use of chance has a name of its own, so that no two uses share numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(use: str, *keys: int) -> int:
    """A seed for one use of chance.

    Parameters
    ----------
    use : str
        What the numbers are for, e.g. `"modules"`. Two uses give unrelated numbers for the same keys.
    *keys : int
        What the numbers may depend on, e.g. the run's seed and the round.

    Returns
    -------
    int
        From 0 to 2⁶³ − 1, the same on every machine.
    """
    digest = hashlib.blake2b(repr((use, *map(int, keys))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(use: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` that starts at `seed_of(use, *keys)`."""
    import torch

    return torch.Generator(device).manual_seed(seed_of(use, *keys))
