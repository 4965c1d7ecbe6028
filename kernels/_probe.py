"""An op's small launches on a GPU, compared with its reference: `python -m pyengine.kernels._probe OP BACKEND DEVICE`.

Exits with 0 if outputs, gradients and what was written in place agree, with DISAGREES if not, and in another way
(an exception, a signal) where there is nothing to compare; the reason stands last on standard error. Each op's
package offers `examples(device)`: a list of (function, arguments, keyword arguments), small and odd-sized, which
together reach every public function of the op.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch

from ._select import DISAGREES, PROBE_SECONDS, presume, use_backend

TOLERANCE = 2e-2  # of the largest value: catches a wrong kernel, not a rounding


class Disagreement(Exception):
    """A backend's results are not the reference's."""


def run(function: Callable, arguments: tuple, keywords: dict, backend: str) -> list[torch.Tensor]:
    """Outputs, gradients, and the tensors given as they are afterwards, of one call under `backend`."""
    given = _copy((arguments, keywords))
    leaves = [tensor for tensor in _tensors(given) if tensor.requires_grad]
    with use_backend(backend):
        outputs = list(_tensors(function(*given[0], **given[1])))
        grads: tuple = ()
        if leaves:
            generator = torch.Generator(device=leaves[0].device).manual_seed(0)
            losses = [
                (o.float() * torch.randn(o.shape, generator=generator, device=o.device)).sum()
                for o in outputs
                if o.requires_grad
            ]
            grads = torch.autograd.grad(torch.stack(losses).sum(), leaves)
    return [t.detach() for t in (*outputs, *grads, *_tensors(given))]


def compare(op: str, backend: str, device: str) -> None:
    """Raise Disagreement where `backend` and the reference differ on the op's examples."""
    for function, arguments, keywords in import_module(f"{__package__}.{op}").examples(device):
        ours, truth = (run(function, arguments, keywords, name) for name in (backend, "reference"))
        name = f"{op} {backend}: {function.__name__}"
        if len(ours) != len(truth):
            raise Disagreement(f"{name}: {len(ours)} results instead of {len(truth)}")
        for index, (a, b) in enumerate(zip(ours, truth, strict=True)):
            if problem := difference(a, b):
                raise Disagreement(f"{name}: result {index} {problem}")


def difference(a: torch.Tensor, b: torch.Tensor) -> str:
    """How a differs from b: "" where it does not. Integers must be equal, and so must what is not finite."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"is {tuple(a.shape)} {a.dtype} instead of {tuple(b.shape)} {b.dtype}"
    if not a.is_floating_point():
        return "" if torch.equal(a, b) else "differs"
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not (finite | (a == b) | (a.isnan() & b.isnan())).all():
        return "differs where the reference is not finite"
    error, scale = ((t.where(finite, 0).abs().amax().item() if t.numel() else 0.0) for t in (a - b, b))
    return "" if error <= TOLERANCE * max(scale, 1e-3) else f"is off by {error:.3g}"  # NaN is off too


def _copy(value: Any) -> Any:
    """The same with tensors of its own, so that a call in place leaves the example as it was."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, and its floats as tensors."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


if __name__ == "__main__":
    op, backend, device = sys.argv[1:]
    signal.alarm(PROBE_SECONDS)  # so that a kernel that hangs ends even where who started this is gone
    torch.cuda.set_device(device)  # Triton launches on the current one
    presume(op, backend, torch.device(device))
    try:
        compare(op, backend, device)
    except Disagreement as error:
        print(error, file=sys.stderr)
        sys.exit(DISAGREES)
