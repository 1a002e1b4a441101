"""The accumulated update: every merged booster by round and module, in float32, and what can be done with it.

The ensemble is the truth; live weights follow from it and the base (`live_weights.py`). Axis letters: `d`
out, `k` in, `R` factors in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xgblora_lab.files import replaced_folder
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.linear import find_modules, weight_shape
from xgblora_lab.lowrank.live_weights import Boosters, LiveWeights
from xgblora_lab.store import read_ensemble, write_ensemble


class Ensemble:
    """Boosters of all rounds.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Module to (d, k).
    additive : bool
        True where rounds add up (boosting); False where each round's factors replace the one before (LoRA and
        its kin, whose factors are trained on and on).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], additive: bool = True) -> None:
        self.shapes = {name: (int(d), int(k)) for name, (d, k) in shapes.items()}
        self.additive = additive
        self.version = object()  # a new one for every ensemble and every change to earlier rounds
        self._rounds: list[dict[str, tuple[Tensor, Tensor]]] = []

    def __len__(self) -> int:
        """The number of rounds, T."""
        return len(self._rounds)

    def __getitem__(self, index: int) -> Boosters:
        """The boosters of one round: module name -> (B (d, r), A (r, k)); empty where it was dropped."""
        return dict(self._rounds[index])

    def __repr__(self) -> str:
        kind = "boosters" if self.additive else "adapters"
        return f"Ensemble({len(self)} rounds of {kind} on {len(self.shapes)} modules)"

    def append(self, boosters: Boosters) -> None:
        """Add the boosters of a new round (scale and shrinkage folded into B)."""
        for name, (B, A) in boosters.items():
            d, k = self._shape(name)
            if B.ndim != 2 or A.ndim != 2 or B.shape[0] != d or A.shape[1] != k or B.shape[1] != A.shape[0]:
                raise ValueError(
                    f"A booster on {name!r} needs B ({d}, r) and A (r, {k}); "
                    f"got {tuple(B.shape)} and {tuple(A.shape)}."
                )
            if not (B.is_floating_point() and A.is_floating_point()):
                raise ValueError(f"A booster on {name!r} needs real numbers; got {B.dtype} and {A.dtype}.")
        self._rounds.append({n: (B.detach().cpu(), A.detach().cpu()) for n, (B, A) in boosters.items()})

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the sum; the other rounds keep their numbers."""
        if not self.additive:
            raise ValueError("A LoRA's rounds replace one another; only boosting's rounds can be dropped.")
        if not 0 <= index < len(self):
            raise IndexError(f"There is no round {index}; rounds 0 to {len(self) - 1} are there.")
        self.version = object()  # first: whoever was cut off between the two has told of a change too many
        self._rounds[index] = {}

    def truncate(self, rounds: int) -> None:
        """Forget every round from `rounds` on."""
        if rounds < len(self):
            self.version = object()
            del self._rounds[self._upto(rounds) :]

    def active(self, upto: int | None = None) -> list[Boosters]:
        """The rounds whose sum is the update after `upto` rounds: all of them, or a LoRA's last."""
        stop = self._upto(upto)
        return list(self._rounds[:stop] if self.additive else self._rounds[max(stop - 1, 0) : stop])

    def factors(self, module: str, upto: int | None = None) -> tuple[Tensor, Tensor]:
        """(B (d, R), A (R, k)) with the accumulated update B @ A after `upto` rounds (default: all)."""
        d, k = self._shape(module)
        pairs = [boosters[module] for boosters in self.active(upto) if module in boosters]
        if not pairs:
            return torch.zeros(d, 0), torch.zeros(0, k)
        return torch.cat([B for B, _ in pairs], 1), torch.cat([A for _, A in pairs], 0)

    def update(self, module: str, upto: int | None = None) -> Tensor:
        """The accumulated update ΔW (d, k) after `upto` rounds."""
        B, A = self.factors(module, upto)
        return B @ A

    def spectrum(self, module: str, upto: int | None = None) -> Tensor:
        """Singular values of the accumulated update, descending, at most min(d, k, R) of them."""
        return spectra.singular_values(*self.factors(module, upto))

    def spectra(self, module: str) -> Tensor:
        """Singular values after every round: (T + 1, R), row 0 the base's zeros, padded with zeros.

        Additive ensembles need one QR for all rounds (`spectra.staged_singular_values`).
        """
        if self.additive:
            counts = [0]
            for boosters in self._rounds:
                counts.append(counts[-1] + (boosters[module][0].shape[1] if module in boosters else 0))
            return spectra.staged_singular_values(*self.factors(module), counts)
        rows = [self.spectrum(module, t) for t in range(len(self) + 1)]
        width = max(len(row) for row in rows)
        return torch.stack([nn.functional.pad(row, (0, width - len(row))) for row in rows])

    def times_chosen(self, module: str, upto: int | None = None) -> int:
        """In how many of the first `upto` rounds the module got a booster."""
        return sum(module in boosters for boosters in self._rounds[: self._upto(upto)])

    def apply(self, model: nn.Module, upto: int | None = None) -> LiveWeights:
        """Replay onto a fresh base: adds the update after `upto` rounds to the model's weights, in place.

        Returns the `LiveWeights`, whose `restore()` takes it back bit for bit.
        """
        modules = find_modules(model, sorted(self.shapes))
        for name, shape in self.shapes.items():
            if name not in modules or weight_shape(modules[name]) != shape:
                found = weight_shape(modules[name]) if name in modules else "no such linear map"
                raise ValueError(
                    f"This ensemble was made on another model: {name!r} is {shape} here, {found} there."
                )
        weights = LiveWeights(modules)
        weights.replay(self.active(upto))
        return weights

    # Files

    def save(self, folder: str | Path) -> None:
        """Write `ensemble.json` and one safetensors file per round; an older ensemble there is replaced."""
        with replaced_folder(folder) as partial:
            write_ensemble(partial, self.common(), [self.tensors(index) for index in range(len(self))])

    def dropped(self, index: int) -> bool:
        """Whether a round has no boosters in the sum."""
        return not self._rounds[index]

    def tensors(self, index: int) -> dict[str, Tensor]:
        """The boosters of one round by `module.B` and `module.A`."""
        pairs = self._rounds[index].items()
        return {f"{name}.{part}": t for name, pair in pairs for part, t in zip("BA", pair, strict=True)}

    def common(self) -> dict[str, Any]:
        """What is common to all rounds, for JSON."""
        return {"additive": self.additive, "shapes": self.shapes}

    @classmethod
    def load(cls, folder: str | Path) -> Ensemble:
        """Read what `save` or a bench's `Checkpoint` wrote.

        FileNotFoundError or ValueError say what is missing, wrong or changed since it was written.
        """
        try:
            meta, rounds = read_ensemble(Path(folder))
            ensemble = cls({n: (s[0], s[1]) for n, s in meta["shapes"].items()}, meta["additive"])
            for tensors in rounds:
                names = sorted({key[:-2] for key in tensors})
                ensemble.append({n: (tensors[f"{n}.B"], tensors[f"{n}.A"]) for n in names})
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(f"{folder} holds no ensemble that can be read: {error}") from error
        return ensemble

    def _shape(self, module: str) -> tuple[int, int]:
        if module not in self.shapes:
            some = ", ".join(list(self.shapes)[:6])
            raise KeyError(f"No module {module!r} in this ensemble; it has {some}, …")
        return self.shapes[module]

    def _upto(self, upto: int | None) -> int:
        if upto is not None and not 0 <= upto <= len(self):
            raise IndexError(f"upto={upto} is out of range: {len(self)} rounds are there, 0 means the base.")
        return len(self) if upto is None else upto
