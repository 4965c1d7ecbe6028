"""Training by several processes: the first runs the road, the others compute their shares of its steps.

    torchrun --nproc-per-node 4 -m pyengine.train

The first process alone reads, writes, evaluates and samples; so no stage knows how many there are. At each step
it deals the documents of the batch out to all; gradients are added up in float32; each process updates the
parameters that it owns, whose optimiser state it alone keeps, and their new values go to all. The others wait for
its orders in `loop.assist`. Messages are pickled and go over gloo; so do the bytes of tensors, or over NCCL from GPU to
GPU, where each process has one.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


class Team:
    """The processes of a training; by default this one alone, for which nothing is sent."""

    rank, size = 0, 1
    device = torch.device("cpu")  # on which this process computes

    @classmethod
    def join(cls, device: torch.device = device) -> "Team":
        """The team that torchrun started this process for, to compute on `device`; alone without torchrun."""
        global current
        team = cls()
        team.device = device
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # the first may crawl or sample for hours between two orders
            backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
            dist.init_process_group(backend, timeout=timedelta(days=30))
            team.rank, team.size = dist.get_rank(), dist.get_world_size()
        current = team
        return team

    def leave(self) -> None:
        """Part from the others, when all have come to their ends: who left early would break their messages."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def tell(self, order: str, *arguments: Any) -> None:
        """Give an order to all others; the first process only."""
        if self.size > 1:
            dist.broadcast_object_list([(order, *arguments)], src=0)

    def hear(self) -> tuple[Any, ...]:
        """Wait for the next order and its arguments."""
        orders: list[Any] = [None]
        dist.broadcast_object_list(orders, src=0)
        return orders[0]

    def deal(self, items: Sequence[Item] | None) -> Item:
        """One of the first process's items for each process, in order of rank."""
        if self.size == 1:
            assert items
            return items[0]
        own: list[Any] = [None]
        dist.scatter_object_list(own, list(items) if items else None, src=0)
        return own[0]

    def collect(self, item: Item) -> list[Item]:
        """What every process brings, in order of rank, on the first; nothing on the others."""
        if self.size == 1:
            return [item]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(item, found, dst=0)
        return found or []

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a float32 tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def add_up_at(self, tensor: torch.Tensor, target: int) -> None:
        """Replace process `target`'s float32 tensor by the sum over all processes; what the others hold is lost."""
        if self.size > 1:
            dist.reduce(tensor, target)

    def most(self, number: int) -> int:
        """The largest of every process's number."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def spread(self, tensor: torch.Tensor, source: int) -> None:
        """Fill a contiguous tensor with that of process `source`."""
        if self.size > 1:
            dist.broadcast(_bytes(tensor), src=source)

    def move(self, tensor: torch.Tensor, source: int, target: int) -> None:
        """Fill the tensor of process `target` with that of `source`; the others do nothing."""
        if source == target:
            return
        if self.rank == source:
            dist.send(_bytes(tensor), target)
        elif self.rank == target:
            dist.recv(_bytes(tensor), source)

    def owners(self, costs: Mapping[str, float], first: float = 0.0) -> dict[str, int]:
        """A process for each name, so that all have about the same cost, the first process `first` beside; the same
        answer everywhere."""
        load = [first] + [0.0] * (self.size - 1)
        found = {}
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            found[name] = load.index(min(load))
            load[found[name]] += costs[name]
        return found


current = Team()  # what a training takes unless told otherwise


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
