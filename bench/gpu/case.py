"""What a case of the GPU suite is made of: where it runs, what it measures, and how equal its results must be.

In a dry run the same code runs on tensors small enough for Triton's interpreter, in float32 where a product is
involved (its bf16 products are wrong).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.gpu.prediction import Work

BF16, F32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Place:
    """Where a case runs: on the GPU at full size, or dry, on small CPU tensors; and on which of our backends."""

    device: str
    dry: bool
    backend: str = "triton"

    def size(self, full: int, small: int) -> int:
        return small if self.dry else full

    def dtype(self, full: torch.dtype) -> torch.dtype:
        """Of what enters a product: Triton's interpreter gets float32."""
        return F32 if self.dry and self.backend == "triton" else full

    def randn(self, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
        make = torch.Generator(device=self.device).manual_seed(sum(shape))
        return (torch.randn(shape, generator=make, device=self.device) * scale).to(self.dtype(dtype))

    def compile(self, function: Callable) -> Callable:
        return function if self.dry else torch.compile(function)


@dataclass
class Prepared:
    """One case, ready to be checked and timed."""

    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    check: Callable[[], None]  # raises AssertionError where ours is wrong
    work: Work
    flops: float = 0.0  # counted as useful; 0: the bytes of `work` are
    cold: bool = False  # the caches are flushed before each call


@dataclass(frozen=True)
class Case:
    """A row of the report. goals: ratio over `versus` for floor, good and moonshot; versus "" means the ceiling."""

    area: str
    name: str
    make: Callable[[Place], Prepared]
    versus: str = ""
    goals: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 3.0  # what it is expected to cost, compiling included
    tags: frozenset[str] = frozenset()
    backend: str = "triton"

    @property
    def title(self) -> str:
        return f"{self.area}: {self.name}"


def close(ours, truth, tolerance: float = 2e-2) -> None:
    """Raise unless every tensor of ours is within `tolerance` of the truth's largest value."""
    ours, truth = ([t] if isinstance(t, torch.Tensor) else list(t) for t in (ours, truth))
    assert len(ours) == len(truth), f"{len(ours)} results instead of {len(truth)}"
    for index, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.shape == b.shape, f"result {index} is {tuple(a.shape)}, not {tuple(b.shape)}"
        error, scale = (a.float() - b.float()).abs().max().item(), b.float().abs().max().item()
        assert error <= tolerance * max(scale, 1e-6), f"result {index} is off by {error:.3g} of {scale:.3g}"


def grads(function: Callable, inputs: list[torch.Tensor], upstream: torch.Tensor) -> Callable[[], object]:
    """The backward pass alone, of one forward pass made now."""
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)


def late(make: Callable, *arguments) -> Callable[[], object]:
    """make(*arguments)() with `make` called at the first call, so that a peer that fails costs only itself."""
    made: list[Callable] = []

    def call():
        if not made:
            made.append(make(*arguments))
        return made[0]()

    return call
