"""Updates: Muon for the matrices inside the layers, AdamW for the rest, and the learning-rate schedule.

Each rule is one call of its fused op (kernels/muon, kernels/adamw). Embeddings, output layer, norms and biases
always take AdamW. State is float32; for bfloat16 parameters the optimiser keeps float32 masters, which the ops
round into the parameters as they update them, reading bfloat16 gradients as they are: one pass over memory.

In a team of processes (team.py) each parameter is owned by one, which keeps its state and updates it. Methods
marked "together" must then be called by all of them.
"""

from collections.abc import Mapping

import torch

from .. import kernels
from ..errors import UserError
from ..model import Transformer
from .config import RULES, OptimizerConfig
from .team import Team

MOMENTUM = 0.95
MUON_COST = 30.0  # of updating a number by Muon, where AdamW's is 1


def schedule(config: OptimizerConfig, step: int, total: int) -> float:
    """Share of the peak rate at a step (from 0) of `total`: up over warmup, flat, down to the floor."""
    up, down = config.warmup * total, config.warmdown * total
    rising = (step + 1) / up if step + 1 < up else 1.0
    left = (total - step) / down if total - step < down else 1.0
    return min(rising, config.floor + (1 - config.floor) * left)


class Optimizer:
    """Updates the parameters of a model from their gradients; see the module for the rules."""

    def __init__(self, model: Transformer, config: OptimizerConfig, team: Team | None = None):
        if config.rule not in RULES:
            raise UserError(f"optimizer.rule = {config.rule!r}: expected {' or '.join(RULES)}")
        self.config, self.team = config, team or Team()
        self.updates = 0
        self._parameters = dict(model.named_parameters())
        self._wide = all(p.dtype == torch.float32 for p in self._parameters.values())
        muon = [n for n, p in self._parameters.items() if config.rule == "muon" and _inside_layer(n, p)]
        rest = [n for n in self._parameters if n not in muon]
        self._owner = self.team.owners(
            {n: p.numel() * (MUON_COST if n in muon else 1.0) for n, p in self._parameters.items()}
        )
        self._muon = self._mine(muon)
        decayed = [n for n in rest if self._parameters[n].dim() == 2]
        plain = [n for n in rest if n not in decayed]
        self._adamw = [(self._mine(decayed), config.weight_decay), (self._mine(plain), 0.0)]
        self._slots = [(f"momentum.{n}", n) for n in muon]
        self._slots += [(f"{kind}.{n}", n) for n in rest for kind in ("exp_avg", "exp_avg_sq")]
        self._slots += [] if self._wide else [(f"master.{n}", n) for n in self._parameters]
        self._state = {
            slot: torch.zeros_like(self._parameters[n], dtype=torch.float32).detach()
            for slot, n in self._slots
            if self._owner[n] == self.team.rank
        }
        self._masters = {  # where parameters are float32 they are their own
            n: p.detach() if self._wide else self._state[f"master.{n}"]
            for n, p in self._parameters.items()
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
        for parameter in self._parameters.values():
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
        if self.team.size == 1:
            return
        parts = [
            torch.zeros(p.numel(), device=p.device) if p.grad is None else p.grad.reshape(-1).float()
            for p in self._parameters.values()
        ]
        total = torch.cat(parts)
        self.team.add_up(total)
        sizes = [part.numel() for part in parts]
        for parameter, part in zip(self._parameters.values(), total.split(sizes), strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)

    def grad_norm(self) -> float:
        """Euclidean norm of all gradients as one vector."""
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

    def _exchange(self) -> None:
        """Every owner's new parameters to all, in one message each."""
        for owner in range(self.team.size if self.team.size > 1 else 0):
            theirs = [p for n, p in self._parameters.items() if self._owner[n] == owner]
            if not theirs:
                continue
            flat = torch.cat([p.reshape(-1) for p in theirs])
            self.team.spread(flat, owner)
            if owner != self.team.rank:
                for parameter, part in zip(theirs, flat.split([p.numel() for p in theirs]), strict=True):
                    parameter.copy_(part.view(parameter.shape))

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def _copies(self, names: list[str]) -> list[torch.Tensor]:
        return [] if self._wide else [self._parameters[name] for name in names]

    def _mine(self, names: list[str]) -> list[str]:
        return [n for n in names if self._owner[n] == self.team.rank]

    @torch.no_grad()
    def _set_masters(self) -> None:
        for name, master in self._masters.items() if not self._wide else ():
            master.copy_(self._parameters[name])

    def _at_first(self, slot: str, name: str) -> torch.Tensor:
        """This process's tensor of a slot; on the first, which passes on what others own, room for it."""
        if self._owner[name] == self.team.rank:
            return self._state[slot]
        shape = self._parameters[name].shape if self.team.rank == 0 else 0
        return torch.empty(shape, device=self._parameters[name].device)


def _inside_layer(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("layers.") and parameter.dim() == 2
