"""The live weights: a snapshot of the base, and every round's weights as a replay of merges onto it.

The order of roundings is part of the contract. Boosters are added one round after another to a master copy in
float32 (the weight itself where the base is float32), and a half-precision weight is the master rounded once.
A replay makes the same additions in the same order, so rewinding is bit-exact on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.lowrank.linear import can_merge, dense_weight, factor_dtype, oriented, parts, stored_weight
from xgblora_lab.stored import unpacked, whole

Boosters = Mapping[str, tuple[Tensor, Tensor]]  # module name -> (B (d, r), A (r, k)) of one round


class LiveWeights:
    """Merges boosters into modules and takes them back.

    The base is copied to the CPU when a module is first merged into, so a method that never merges pays
    nothing. A weight that cannot be added to (packed, quantised) keeps its boosters in a frozen hook instead.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self._base: dict[str, Tensor] = {}  # (as stored), CPU
        self._master: dict[str, Tensor] = {}  # (d, k), float32, half-precision bases only
        self.beside: dict[str, LowRank] = {}  # boosters of weights that cannot be merged into

    def snapshot(self) -> None:
        """Copy the base of every module now (a method that trains the weights themselves needs it)."""
        for name in self.modules:
            self._keep(name)

    def base(self, name: str) -> Tensor:
        """A copy of a module's base weight, (d, k), on the CPU. KeyError for a module that is not here.

        It is unpacked where it is packed, and gathered, by all processes together, where it is sharded.
        """
        module = self.modules[name]
        if not can_merge(module):
            return unpacked(module).cpu()
        stored = self._base[name] if name in self._base else stored_weight(module).detach()
        return oriented(module, whole(stored, module.weight)).to("cpu", copy=True)

    def merge(self, boosters: Boosters) -> None:
        """Add one round's boosters, scale and shrinkage folded in; KeyError for a module that is not here."""
        for name, (B, A) in boosters.items():
            module = self.modules[name]
            if not can_merge(module):
                self._add_beside(name, B, A)
                continue
            self._keep(name)
            B, A = parts(module, B, A)
            weight = dense_weight(module).detach()  # unlike `.data`, it counts as written to
            master = self._master.get(name, weight)
            master.addmm_(B.to(master), A.to(master))
            if master is not weight:
                weight.copy_(master)

    def replay(self, rounds: Iterable[Boosters]) -> None:
        """Make the live weights the base plus these rounds, added in their order as `merge` does."""
        self.restore()
        for boosters in rounds:
            self.merge(boosters)

    def restore(self) -> None:
        """Make the live weights the base again, bit for bit."""
        for name, base in self._base.items():
            module = self.modules[name]
            stored_weight(module).detach().copy_(base)
            if name in self._master:
                self._master[name].copy_(dense_weight(module).data)
        for booster in self.beside.values():
            booster.detach()
        self.beside.clear()

    def _keep(self, name: str) -> None:
        module = self.modules[name]
        if not can_merge(module):
            return
        stored = stored_weight(module).detach()
        if name not in self._base:
            self._base[name] = stored.to("cpu", copy=True)
        if name not in self._master and factor_dtype(module) != stored.dtype:
            self._master[name] = dense_weight(module).detach().to(torch.float32, copy=True)

    def _add_beside(self, name: str, B: Tensor, A: Tensor) -> None:
        module = self.modules[name]
        device = stored_weight(module).device
        B, A = B.to(device), A.to(device)
        if name in self.beside:
            old = self.beside[name]
            old.detach()
            B, A = torch.cat([old.B.detach(), B], 1), torch.cat([old.A.detach(), A], 0)
        self.beside[name] = LowRank(A, B).requires_grad_(False)
        self.beside[name].attach(module)
