"""The accumulated update: every merged booster by round and module, in float32, and what can be done with it.

The ensemble is the truth; live weights follow from it and the base (`live_weights.py`). Axis letters: `d`
out, `k` in, `R` factors in all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from xgblora_lab.files import load_tensors, replaced_folder, save_tensors, write_json
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.linear import find_modules, weight_shape
from xgblora_lab.lowrank.live_weights import Boosters, LiveWeights

FORMAT, ROUND = 1, "rounds/{:05d}.safetensors"


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
        self.version = 0  # counts what changed rounds that were there already
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
            if B.shape[0] != d or A.shape[1] != k or B.shape[1] != A.shape[0]:
                raise ValueError(
                    f"A booster on {name!r} needs B ({d}, r) and A (r, {k}); "
                    f"got {tuple(B.shape)} and {tuple(A.shape)}."
                )
        self._rounds.append({n: (B.detach().cpu(), A.detach().cpu()) for n, (B, A) in boosters.items()})

    def drop(self, index: int) -> None:
        """Take one round's boosters out of the sum; the other rounds keep their numbers."""
        if not self.additive:
            raise ValueError("A LoRA's rounds replace one another; only boosting's rounds can be dropped.")
        if not 0 <= index < len(self):
            raise IndexError(f"There is no round {index}; rounds 0 to {len(self) - 1} are there.")
        self.version += 1  # first: whoever was cut off between the two has counted a change too many
        self._rounds[index] = {}

    def truncate(self, rounds: int) -> None:
        """Forget every round from `rounds` on."""
        if rounds < len(self):
            self.version += 1
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
        with replaced_folder(folder, "ensemble.json") as partial:
            for index in range(len(self)):
                self.save_round(partial, index)
            self.save_index(partial)

    def save_round(self, folder: str | Path, index: int) -> None:
        """Write the boosters of one round under its number."""
        tensors: dict[str, Tensor] = {}
        for name, (B, A) in self._rounds[index].items():
            tensors |= {f"{name}.B": B, f"{name}.A": A}
        save_tensors(Path(folder) / ROUND.format(index), tensors)

    def save_index(self, folder: str | Path) -> None:
        """Write what is common to all rounds and their number."""
        meta = {"format": FORMAT, "rounds": len(self), "additive": self.additive, "shapes": self.shapes}
        write_json(Path(folder) / "ensemble.json", meta)

    @classmethod
    def load(cls, folder: str | Path) -> Ensemble:
        """Read what `save` wrote. FileNotFoundError or ValueError say what is missing or wrong."""
        folder = Path(folder)
        if not (folder / "ensemble.json").is_file():
            raise FileNotFoundError(
                f"No ensemble in {folder}: ensemble.json is missing; give a folder that save() wrote."
            )
        meta = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
        if meta.get("format") != FORMAT:
            raise ValueError(f"{folder} has format {meta.get('format')}; this version reads format {FORMAT}.")
        ensemble = cls({n: (s[0], s[1]) for n, s in meta["shapes"].items()}, meta["additive"])
        for index in range(meta["rounds"]):
            tensors = load_tensors(folder / ROUND.format(index))
            names = {key[:-2] for key in tensors}
            ensemble.append({n: (tensors[f"{n}.B"], tensors[f"{n}.A"]) for n in sorted(names)})
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
