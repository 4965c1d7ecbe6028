"""One small launch of an op on the GPU, compared with its reference: `python -m pyengine.kernels._probe OP BACKEND`.

Exits with 0 if forward and backward agree, with a message on standard error if not. Each op's package offers
`examples(device)`: a list of (arguments, keyword arguments) for its public function, small and odd-sized.
"""

import sys
from importlib import import_module

import torch

from ._select import use_backend

TOLERANCE = 2e-2  # of the largest value: catches a wrong kernel, not a rounding


def run(function, arguments, keywords, backend: str):
    """Outputs and gradients of one call under `backend`, as a flat list of tensors."""
    leaves = [a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor) and a.requires_grad]
    with use_backend(backend):
        outputs = function(*arguments, **keywords)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads: tuple = ()
        if leaves:
            generator = torch.Generator(device=leaves[0].device).manual_seed(0)
            loss = sum(
                (o.float() * torch.randn(o.shape, generator=generator, device=o.device)).sum()
                for o in outputs
                if o.requires_grad
            )
            grads = torch.autograd.grad(loss, leaves)
    return [t.detach() for t in (*outputs, *grads)]


def compare(op: str, backend: str, device: str) -> None:
    """Raise AssertionError where `backend` and the reference disagree on the op's examples."""
    package = import_module(f"{__package__}.{op}")
    function = getattr(package, package.__all__[0])
    for arguments, keywords in package.examples(device):
        ours, truth = (run(function, arguments, keywords, name) for name in (backend, "reference"))
        for index, (a, b) in enumerate(zip(ours, truth, strict=True)):
            error = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
            scale = b.double().abs().max().item() if b.numel() else 0.0
            assert error <= TOLERANCE * max(scale, 1e-3), (
                f"{op} {backend}: output {index} is off by {error:.3g}"
            )


if __name__ == "__main__":
    compare(sys.argv[1], sys.argv[2], "cuda")
