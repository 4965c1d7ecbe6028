"""Registration with torch: one torch.library.Library for all ops.

An op is registered as `pyengine::<op>` and `pyengine::<op>_backward`, each with a fake (shapes only) twin, so
that torch.compile and torch.export see through it. Eager calls without gradients bypass the registry
(4 us a call instead of 9).
"""

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("pyengine", "DEF")


def register(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Define `pyengine::<schema>`, run by `implementation` on every device; returns the callable op."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyengine::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.pyengine, name)
