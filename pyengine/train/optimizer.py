"""Updates: Muon for the matrices inside the layers, AdamW for the rest, and the learning-rate schedule.

Each rule is one call of its fused op (kernels/muon, kernels/adamw). Embeddings, output layer, norms and biases
always take AdamW. State is float32; for bfloat16 parameters the optimiser keeps float32 masters and rounds them
into the parameters after each step.
"""

from collections.abc import Iterator

import torch

from .. import kernels
from ..errors import UserError
from ..model import Transformer
from .config import OptimizerConfig

MOMENTUM = 0.95


def schedule(config: OptimizerConfig, step: int, total: int) -> float:
    """Share of the peak rate at a step (from 0) of `total`: up over warmup, flat, down to the floor."""
    up, down = config.warmup * total, config.warmdown * total
    rising = (step + 1) / up if step + 1 < up else 1.0
    left = (total - step) / down if total - step < down else 1.0
    return min(rising, config.floor + (1 - config.floor) * left)


class Optimizer:
    """Updates the parameters of a model from their gradients; see the module for the rules."""

    def __init__(self, model: Transformer, config: OptimizerConfig):
        if config.rule not in ("adamw", "muon"):
            raise UserError(f"optimizer.rule = {config.rule!r}: expected adamw or muon")
        self.config = config
        self.updates = 0
        self._parameters = dict(model.named_parameters())
        wide = all(p.dtype == torch.float32 for p in self._parameters.values())
        # where parameters are float32 they are their own masters
        self._masters = {
            name: p.detach() if wide else p.detach().float() for name, p in self._parameters.items()
        }
        self._muon = [n for n, p in self._masters.items() if config.rule == "muon" and _inside_layer(n, p)]
        rest = [n for n in self._masters if n not in self._muon]
        matrices = [n for n in rest if self._masters[n].dim() == 2]
        self._adamw = [(matrices, config.weight_decay), ([n for n in rest if n not in matrices], 0.0)]
        self._state = {f"momentum.{n}": torch.zeros_like(self._masters[n]) for n in self._muon}
        for name in rest:
            self._state[f"exp_avg.{name}"] = torch.zeros_like(self._masters[name])
            self._state[f"exp_avg_sq.{name}"] = torch.zeros_like(self._masters[name])
        if not wide:
            self._state |= {f"master.{name}": master for name, master in self._masters.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state to store and to fill on resume (in place), besides `updates` and the parameters."""
        return self._state

    def grad_norm(self) -> float:
        """Euclidean norm of all gradients as one vector."""
        return kernels.grad_norm([g for _, g in self._gradients()])

    @torch.no_grad()
    def step(self, scale: float, grad_scale: float = 1.0) -> None:
        """One update at `scale` times the peak rates, of the gradients times `grad_scale`; clears them."""
        self.updates += 1
        c, grads = self.config, dict(self._gradients())
        for names, decay in self._adamw:
            names = [n for n in names if n in grads]
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
        )
        for name, parameter in self._parameters.items():
            if parameter.data_ptr() != self._masters[name].data_ptr():
                parameter.copy_(self._masters[name])
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                yield name, parameter.grad.float()


def _inside_layer(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("layers.") and parameter.dim() == 2
