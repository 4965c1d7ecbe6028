"""Registration with torch: one torch.library.Library for all ops.

An op is registered as `pyengine::<op>` and `pyengine::<op>_backward`, each with a fake (shapes only) twin, so
that torch.compile and torch.export see through it. Eager calls bypass the registry (4 us a call instead of 9;
more where products have put torch's code out of the caches).
"""

from collections.abc import Callable

import torch

# What an op's `examples` give: a function, its arguments and its keyword arguments.
Example = tuple[Callable, tuple, dict]
LIBRARY = torch.library.Library("pyengine", "DEF")


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether a call on these tensors must be recorded for a backward pass."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., N) as contiguous (rows, N). A matrix stays itself: a view of it would cost a node of autograd."""
    return (x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])).contiguous()


def like_rows(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y (rows, N), computed from as_rows(x), in the leading shape of x."""
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


def register(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Define `pyengine::<schema>`, run by `implementation` on every device; returns what calls it: through the
    registry while torch compiles, else the implementation itself."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyengine::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.pyengine, name)

    def call(*arguments):
        return (op if torch.compiler.is_compiling() else implementation)(*arguments)

    return call
