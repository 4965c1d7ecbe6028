"""Weights and gradients shared out among a team, for a model whose training does not fit into one process.

    sharding = Sharding(model, team, owner)             on helpers the model is on torch's "meta": sizes without numbers
    sharding.loss(ids, targets, ...).backward()         together; then sharding.gradients holds what this process owns

Every parameter has an owner (team.owners), which alone keeps its gradient, its optimiser's state and its newest value.
The weights are whole in the first process, which samples and evaluates and would need them whole for that in any case;
the others see a layer's while it computes: the first sends them when the layer's forward pass begins and again when its
backward pass does, and its gradients leave for their owners when that ends. The embedding, the last norm and the output
layer stay from the beginning of a forward pass to the end of the backward pass.

All processes must take the same steps in the same order: as many forward and backward passes, of however few tokens. In
Adam's and Muon's eyes nothing changes: an owner has whole matrices, where flat shards (ZeRO-3, FSDP2) would have to be
put together for Muon.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch.autograd.graph import saved_tensors_hooks

from ..model import Transformer
from ..model.transformer import LayerWeights, Weights
from .team import Team

ROOT = -1  # the unit of what is in no layer
ALIGN = 64  # numbers: where a parameter may begin in a unit's message


class Sharding:
    """See the module. owner: the process of each parameter's name."""

    def __init__(self, model: Transformer, team: Team, owner: Mapping[str, int]):
        self.model, self.team, self.owner = model, team, owner
        self.gradients: dict[
            str, torch.Tensor
        ] = {}  # float32 sums over all processes and passes, of what is owned
        self._parameters = dict(model.named_parameters())
        self._units: dict[int, list[str]] = {ROOT: [n for n in self._parameters if "." not in n]}
        for i in range(model.config.layers):
            names = (f"layers.{i}.{field}" for field in LayerWeights._fields)
            self._units[i] = [name for name in names if name in self._parameters]
        self._trigger = torch.zeros((), device=team.device, requires_grad=True)  # makes autograd come by
        # the weights of the layer going forward, by address; kept, so that nothing else comes to lie there
        self._entered: dict[int, tuple[torch.Tensor, int, int]] = {}
        self._whole: dict[int, list[torch.Tensor]] = {}  # units going backward

    def loss(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor,
        cu_seqlens: torch.Tensor,
        positions: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Transformer.loss, on weights that come and go. Together."""
        with saved_tensors_hooks(self._put_away, self._fetch):
            nll = self.model.loss(ids, targets, cu_seqlens, positions, weights, self._weights())
        self._entered = {}
        return nll

    def _weights(self) -> Weights:
        root = dict(zip(self._units[ROOT], self.enter(ROOT), strict=True))
        layers = _Layers(self, self.model.config.layers)
        return Weights(root["embedding"], layers, root["norm"], root.get("head", root["embedding"]))

    def layer(self, index: int) -> LayerWeights:
        """A layer's weights, for its forward pass."""
        given = dict(zip(self._units[index], self.enter(index), strict=True))
        return LayerWeights(*(given.get(f"layers.{index}.{field}") for field in LayerWeights._fields))  # type: ignore

    def enter(self, unit: int) -> tuple[torch.Tensor, ...]:
        """A unit's weights, through which its gradients will come back."""
        tensors = _Gathered.apply(self._trigger, self, unit)
        if unit != ROOT:
            self._entered = {t.data_ptr(): (t, unit, i) for i, t in enumerate(tensors)}
        return tensors

    def gather(self, unit: int) -> list[torch.Tensor]:
        """A unit's weights, from the first process to all, in one message."""
        parameters = [self._parameters[name] for name in self._units[unit]]
        places, size = [], 0
        for parameter in parameters:
            places.append(size)
            size += -(-parameter.numel() // ALIGN) * ALIGN
        message = torch.empty(size, dtype=parameters[0].dtype, device=self.team.device)
        parts = [message[at : at + p.numel()].view(p.shape) for at, p in zip(places, parameters, strict=True)]
        if self.team.rank == 0:
            for part, parameter in zip(parts, parameters, strict=True):
                part.copy_(parameter)
        self.team.spread(message, 0)
        return [p.detach() for p in parameters] if self.team.rank == 0 else parts

    def give(self, unit: int, grads: Sequence[torch.Tensor | None]) -> None:
        """Add up a unit's gradients over all processes, each at its owner, and drop its weights."""
        self._whole.pop(unit, None)
        found = dict(zip(self._units[unit], grads, strict=True))
        for owner in sorted({self.owner[name] for name in found}):
            theirs = [name for name in found if self.owner[name] == owner]
            parts = [self._wide(name, found[name]) for name in theirs]
            total = torch.cat(parts)
            self.team.add_up_at(total, owner)
            if owner == self.team.rank:
                sizes = [part.numel() for part in parts]
                for name, part in zip(theirs, total.split(sizes), strict=True):
                    known = self.gradients.get(name)
                    shaped = part.view(self._parameters[name].shape)
                    self.gradients[name] = shaped if known is None else known.add_(shaped)

    def _wide(self, name: str, grad: torch.Tensor | None) -> torch.Tensor:
        if grad is None:
            return torch.zeros(self._parameters[name].numel(), device=self.team.device)
        return grad.reshape(-1).float()

    def _put_away(self, tensor: torch.Tensor) -> Any:
        """What autograd keeps for the backward pass: of a layer's weights, which they are."""
        found = self._entered.get(tensor.data_ptr())
        return tensor if found is None else found[1:]

    def _fetch(self, kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        unit, which = kept
        if unit not in self._whole:
            self._whole[unit] = self.gather(unit)
        return self._whole[unit][which]


class _Layers(Sequence[LayerWeights]):
    """The layers' weights, each gathered when it is asked for."""

    def __init__(self, sharding: Sharding, count: int):
        self._sharding, self._count = sharding, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._sharding.layer(index)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, trigger, sharding, unit):
        ctx.sharding, ctx.unit = sharding, unit
        ctx.set_materialize_grads(False)
        return tuple(sharding.gather(unit))

    @staticmethod
    def backward(ctx, *grads):
        ctx.sharding.give(ctx.unit, grads)
        return None, None, None
