"""Updates: Muon for the matrices inside the layers, AdamW for the rest, and the learning-rate schedule.

Each rule is one call of its fused op (kernels/muon, kernels/adamw). Embeddings, output layer, norms and biases
always take AdamW. State is float32; for bfloat16 parameters the optimiser keeps float32 masters, which the ops
round into the parameters as they update them, reading bfloat16 gradients as they are: one pass over memory.

In a team of processes (team.py) each parameter is owned by one, which keeps its state and updates it; sharded
(sharding.py), its gradient too. Methods marked "together" must then be called by all of them.
"""

import math
from collections.abc import Mapping

import torch

from .. import kernels
from ..errors import UserError
from ..model import Transformer
from .config import RULES, OptimizerConfig
from .sharding import Sharding
from .team import Team

MOMENTUM = 0.95
MUON_COST = 30.0  # of updating a number by Muon, where AdamW's is 1
OWNED = 16  # bytes that an owner keeps for a number of a sharded model: gradient, moments, master


def schedule(config: OptimizerConfig, step: int, total: int) -> float:
    """Share of the peak rate at a step (from 0) of `total`: up over warmup, flat, down to the floor."""
    up, down = config.warmup * total, config.warmdown * total
    rising = (step + 1) / up if step + 1 < up else 1.0
    left = (total - step) / down if total - step < down else 1.0
    return min(rising, config.floor + (1 - config.floor) * left)


class Optimizer:
    """Updates the parameters of a model from their gradients; see the module for the rules."""

    def __init__(
        self, model: Transformer, config: OptimizerConfig, team: Team | None = None, shard: bool = False
    ):
        """shard: weights and gradients are shared out too, where there are several processes."""
        if config.rule not in RULES:
            raise UserError(f"optimizer.rule = {config.rule!r}: expected {' or '.join(RULES)}")
        self.config, self.team = config, team or Team()
        self.updates = 0
        self._parameters = dict(model.named_parameters())
        self._wide = all(p.dtype == torch.float32 for p in self._parameters.values())
        muon = [n for n, p in self._parameters.items() if config.rule == "muon" and _inside_layer(n, p)]
        rest = [n for n in self._parameters if n not in muon]
        sizes = {n: p.numel() for n, p in self._parameters.items()}
        self.sharding: Sharding | None = None
        if shard and self.team.size > 1:
            whole = sum(p.nbytes for p in self._parameters.values())
            self._owner = self.team.owners({n: float(OWNED * size) for n, size in sizes.items()}, whole)
            self.sharding = Sharding(model, self.team, self._owner)
        else:
            costs = {n: size * (MUON_COST if n in muon else 1.0) for n, size in sizes.items()}
            self._owner = self.team.owners(costs)
        self._device = self.team.device if model.device.type == "meta" else model.device
        self._norm = 0.0  # of a sharded model's gradients
        self._muon = self._mine(muon)
        decayed = [n for n in rest if self._parameters[n].dim() == 2]
        plain = [n for n in rest if n not in decayed]
        self._adamw = [(self._mine(decayed), config.weight_decay), (self._mine(plain), 0.0)]
        self._slots = [(f"momentum.{n}", n) for n in muon]
        self._slots += [(f"{kind}.{n}", n) for n in rest for kind in ("exp_avg", "exp_avg_sq")]
        self._slots += [] if self._wide else [(f"master.{n}", n) for n in self._parameters]
        self._state = {
            slot: torch.zeros(self._parameters[n].shape, dtype=torch.float32, device=self._device)
            for slot, n in self._slots
            if self._owner[n] == self.team.rank
        }
        self._held = {n: p.detach() for n, p in self._parameters.items()}  # weights in the model's type
        if model.device.type == "meta":
            mine = self._mine(list(self._held))
            self._held = {n: torch.empty_like(self._held[n], device=self._device) for n in mine}
        self._masters = {  # where parameters are float32 they are their own
            n: held if self._wide else self._state[f"master.{n}"]
            for n, held in self._held.items()
            if self._owner[n] == self.team.rank
        }
        self._set_masters()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state to store, besides `updates` and the parameters: all of it on the first process. Together."""
        if self.team.size == 1:
            return self._state
        found = {}
        for slot, name in self._slots:
            tensor = self._at_first(slot, name)
            self.team.move(tensor, self._owner[name], 0)
            found[slot] = tensor.cpu() if self.team.rank == 0 else tensor
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor] | None) -> None:
        """Take the parameters as they are on the first process, and its `tensors()`; None: begin anew. Together."""
        for name, parameter in self._parameters.items():
            if self.sharding:
                self.team.move(self._held.get(name, parameter), 0, self._owner[name])
            else:
                self.team.spread(parameter, 0)
        self._set_masters()
        if tensors is None:
            return
        for slot, name in self._slots:
            tensor = self._at_first(slot, name)
            if self.team.rank == 0:
                tensor.copy_(tensors[slot])
            self.team.move(tensor, 0, self._owner[name])

    def add_up(self) -> None:
        """Replace the gradients by their sums over all processes. Together."""
        if self.sharding:
            own = kernels.grad_norm(list(self._gradients().values()))
            self._norm = math.hypot(*self.team.collect(own))
            return
        if self.team.size == 1:
            return
        parts = [
            torch.zeros(p.numel(), device=self._device) if p.grad is None else p.grad.reshape(-1).float()
            for p in self._parameters.values()
        ]
        total = torch.cat(parts)
        self.team.add_up(total)
        sizes = [part.numel() for part in parts]
        for parameter, part in zip(self._parameters.values(), total.split(sizes), strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)

    def grad_norm(self) -> float:
        """Euclidean norm of all gradients as one vector; of a sharded model after `add_up`, on the first process."""
        if self.sharding:
            return self._norm
        return kernels.grad_norm(list(self._gradients().values()))

    @torch.no_grad()
    def step(self, scale: float, grad_scale: float = 1.0) -> None:
        """One update at `scale` times the peak rates, of the gradients times `grad_scale`; clears them. Together."""
        self.updates += 1
        c, grads = self.config, self._gradients()
        for group, decay in self._adamw:
            names = [n for n in group if n in grads]
            kernels.adamw_(
                [self._masters[n] for n in names],
                [grads[n] for n in names],
                [self._state[f"exp_avg.{n}"] for n in names],
                [self._state[f"exp_avg_sq.{n}"] for n in names],
                lr=c.lr * scale,
                beta1=c.beta1,
                beta2=c.beta2,
                eps=c.eps,
                weight_decay=decay,
                step=self.updates,
                grad_scale=grad_scale,
                copies=self._copies(names),
            )
        names = [n for n in self._muon if n in grads]
        kernels.muon_(
            [self._masters[n] for n in names],
            [grads[n] for n in names],
            [self._state[f"momentum.{n}"] for n in names],
            lr=c.muon_lr * scale,
            momentum=MOMENTUM,
            weight_decay=c.weight_decay,
            grad_scale=grad_scale,
            copies=self._copies(names),
        )
        self._exchange()
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None
        if self.sharding:
            self.sharding.gradients.clear()
            self._norm = 0.0

    def _exchange(self) -> None:
        """Every owner's new parameters to all, or of a sharded model to the first process, in one message each."""
        for owner in range(self.team.size if self.team.size > 1 else 0):
            theirs = [n for n in self._parameters if self._owner[n] == owner]
            if not theirs or not all(n in self._held for n in theirs):  # sharded, and between two others
                continue
            flat = torch.cat([self._held[n].reshape(-1) for n in theirs])
            if self.sharding:
                self.team.move(flat, owner, 0)
            else:
                self.team.spread(flat, owner)
            if owner != self.team.rank:
                sizes = [self._held[n].numel() for n in theirs]
                for name, part in zip(theirs, flat.split(sizes), strict=True):
                    self._parameters[name].copy_(part.view(self._parameters[name].shape))

    def _gradients(self) -> dict[str, torch.Tensor]:
        if self.sharding:
            dtype = torch.float32 if self._wide else torch.bfloat16
            return {name: grad.to(dtype) for name, grad in self.sharding.gradients.items()}
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def _copies(self, names: list[str]) -> list[torch.Tensor]:
        return [] if self._wide else [self._held[name] for name in names]

    def _mine(self, names: list[str]) -> list[str]:
        return [n for n in names if self._owner[n] == self.team.rank]

    @torch.no_grad()
    def _set_masters(self) -> None:
        for name, master in self._masters.items() if not self._wide else ():
            master.copy_(self._held[name])

    def _at_first(self, slot: str, name: str) -> torch.Tensor:
        """This process's tensor of a slot; on the first, which passes on what others own, room for it."""
        if self._owner[name] == self.team.rank:
            return self._state[slot]
        shape = self._parameters[name].shape if self.team.rank == 0 else 0
        return torch.empty(shape, device=self._device)


def _inside_layer(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("layers.") and parameter.dim() == 2
