"""Registration with torch: one torch.library.Library for all ops.

An op is registered as `pyengine::<op>` and `pyengine::<op>_backward`, each with a fake (shapes only) twin, so
that torch.compile and torch.export see through it. Eager calls without gradients bypass the registry
(4 us a call instead of 9).
"""

from collections.abc import Callable

import torch

# What an op's `examples` give: a function, its arguments and its keyword arguments.
Example = tuple[Callable, tuple, dict]
LIBRARY = torch.library.Library("pyengine", "DEF")


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether a call on these tensors must be recorded for a backward pass."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def register(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Define `pyengine::<schema>`, run by `implementation` on every device; returns the callable op."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyengine::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.pyengine, name)
