"""Facts read back from a device, or sent to it, once for all the launches that need them."""

import weakref
from collections.abc import Callable
from functools import wraps

import torch

from ._memory import to_device


def remembered(function: Callable) -> Callable:
    """`function(tensor, *rest)` reads the device; its answer is kept while the tensor is the same, unchanged.

    So all layers of a step, which share one tensor of positions or document bounds, wait for the device once.
    """
    answers: dict[tuple, tuple] = {}

    @wraps(function)
    def ask(tensor, *rest):
        if tensor.is_inference():  # has no version: it may have been written to
            return function(tensor, *rest)
        known = answers.get(rest)
        if known is None or known[0]() is not tensor or known[1] != tensor._version:
            known = answers[rest] = weakref.ref(tensor), tensor._version, function(tensor, *rest)
        return known[2]

    return ask


@remembered
def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """to_device, once for all layers of a step."""
    return to_device(tensor, device)
