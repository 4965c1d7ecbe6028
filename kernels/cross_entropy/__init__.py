"""The output layer fused with its loss: nll = logsumexp(x W^T) - (x W^T)[target], for each token.

The logits (tokens x vocabulary) are the largest tensor of a training step: beyond 256 MiB they are never
whole, but computed in chunks, and again in the backward pass, which needs only one number a token from the
forward pass, the log-sum-exp. Below that the CPU keeps them and saves that product. Tokens that are ignored
cost nothing. A logit has the bits of `linear(x, weight, out_dtype=torch.float32)`, and the log-sum-exp has
one stated order, shared with `sample`: so the trainer's log-probability of a token equals the sampler's.
"""

import torch

from .._library import Example, needs_grad, register
from .._memory import to_device
from .._select import select

__all__ = ["linear_cross_entropy"]

KEEP_BYTES = 1 << 28  # of logits that the backward pass may find kept, where the backend can keep them


def linear_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Negative log-likelihood in nats of each target under softmax(x W^T): float32, shaped like targets.

    x (..., C) and weight (V, C), both float32 or both bfloat16; targets (...) int64 in [0, V), or
    ignore_index, whose loss and gradient are 0. They may be on the host, whatever x's device: which of them count is
    then known without waiting for the device. Differentiable in x and weight, for any gradient per token
    (means, weights and advantages are the caller's).

    Raises ValueError for shapes or types that do not fit together, IndexError for a target out of range.
    """
    _check(x, weight, targets)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()
    weight, flat = weight.contiguous(), targets.reshape(-1).contiguous()
    if torch.compiler.is_compiling() or needs_grad(x, weight):
        nll = _CrossEntropy.apply(rows, weight, flat, ignore_index)
    else:
        nll = _forward(rows, weight, flat, ignore_index, False)[0]
    return nll.view(targets.shape)


def examples(device: str) -> list[Example]:
    """Odd-sized calls for the probe launch: small ones, and on a card one of more tiles than any has SMs."""
    made: list[Example] = []
    if torch.device(device).type == "cuda":
        make = torch.Generator(device=device).manual_seed(2)
        x, w = (torch.randn(n, 330, generator=make, device=device).bfloat16() / 4 for n in (4300, 4200))
        targets = torch.randint(4200, (4300,), generator=make, device=device)
        made.append((linear_cross_entropy, (x.requires_grad_(), w.requires_grad_(), targets), {}))
    for dtype in (torch.float32, torch.bfloat16):
        make = torch.Generator(device=device).manual_seed(1)
        x = torch.randn(7, 67, generator=make, device=device).to(dtype).requires_grad_()
        w = (torch.randn(131, 67, generator=make, device=device) / 8).to(dtype).requires_grad_()
        made.append(
            (linear_cross_entropy, (x, w, torch.tensor([0, 130, 5, -100, 64, 1, 99], device=device)), {})
        )
    return made


def _check(x, weight, targets) -> None:
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"cross_entropy: weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    if targets.shape != x.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(
            f"cross_entropy: expected int64 targets {tuple(x.shape[:-1])}, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    if weight.dtype != x.dtype or x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"cross_entropy: x is {x.dtype}, weight {weight.dtype}; expected one of float32, bfloat16"
        )
    if weight.device != x.device or targets.device not in (x.device, torch.device("cpu")):
        raise ValueError(
            f"cross_entropy: x is on {x.device}, weight on {weight.device}, targets on {targets.device}"
        )


def check_targets(targets: torch.Tensor, vocabulary: int) -> None:
    """IndexError unless all targets, of which there are some, are ids."""
    low, high = (int(bound) for bound in targets.aminmax())
    if not 0 <= low <= high < vocabulary:
        raise IndexError(
            f"cross_entropy: targets reach from {low} to {high}, the vocabulary has {vocabulary} ids"
        )


def _keeps(x, weight) -> bool:
    small = x.shape[0] * weight.shape[0] * 4 <= KEEP_BYTES
    return small and getattr(select("cross_entropy", x.device), "KEEPS_LOGITS", False)


def _counted(targets, ignore_index, backend):
    """Indices of the tokens that are not ignored; None if all are not, or the backend itself looks."""
    if getattr(backend, "SKIPS_IGNORED", False):
        return None
    if targets.device.type == "cpu":  # not by torch: a captured step refuses what it would have to replay
        counted = targets.numpy() != ignore_index
        return None if counted.all() else torch.from_numpy(counted.nonzero()[0])
    counted = targets != ignore_index
    return None if counted.all() else counted.nonzero()[:, 0]


def _spread(values, index, like):
    """Rows at `index` of zeros as long as `like`; the values themselves where there is no index."""
    if index is None:
        return values
    return values.new_zeros(len(like), *values.shape[1:]).index_copy_(0, index, values)


def _forward(x, weight, targets, ignore_index, keep):
    """(nll, lse, logits): 0 for ignored tokens; logits are room for all, filled as the backend likes, or empty."""
    logits = x.new_empty(x.shape[0] * weight.shape[0] if keep else 0, dtype=torch.float32)
    backend = select("cross_entropy", x.device)
    index, every = _counted(targets, ignore_index, backend), targets
    if index is not None:
        targets, index = targets[index], to_device(index, x.device)
        x = x[index]
    # on a GPU the check would wait for the device; its kernels skip what is out of range
    if targets.device.type == "cpu" and targets.numel() and not getattr(backend, "CHECKS_TARGETS", False):
        check_targets(targets, weight.shape[0])
    kept = [logits[: x.shape[0] * weight.shape[0]]] if keep else []
    targets = to_device(targets, x.device)
    nll, lse = backend.forward(x, weight, targets, ignore_index, *kept)
    return _spread(nll, index, every), _spread(lse, index, every), logits


def _forward_fake(x, weight, targets, ignore_index, keep):
    per_token = x.new_empty(x.shape[0], dtype=torch.float32)
    logits = x.new_empty(x.shape[0] * weight.shape[0] if keep else 0, dtype=torch.float32)
    return per_token, x.new_empty(x.shape[0], dtype=torch.float64), logits


def _backward(dnll, x, weight, targets, lse, logits, ignore_index, needs):
    backend = select("cross_entropy", x.device)
    index, every = _counted(targets, ignore_index, backend), targets
    if index is not None:
        targets, index = targets[index], to_device(index, x.device)
        dnll, x, lse = dnll[index], x[index], lse[index]
    targets = to_device(targets, x.device)
    kept = [logits[: x.shape[0] * weight.shape[0]]] if logits.numel() else []
    dx, dweight = backend.backward(dnll, x, weight, targets, lse, ignore_index, needs, *kept)
    return _spread(dx, index, every) if needs[0] else dx, dweight


def _backward_fake(dnll, x, weight, targets, lse, logits, ignore_index, needs):
    return (
        torch.empty_like(x) if needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
    )


_forward_op = register(
    "cross_entropy(Tensor x, Tensor weight, Tensor targets, int ignore_index, bool keep) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
# needs: which of dx, dweight to compute; the other comes back empty.
_backward_op = register(
    "cross_entropy_backward(Tensor dnll, Tensor x, Tensor weight, Tensor targets, Tensor lse, Tensor logits, "
    "int ignore_index, bool[2] needs) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, ignore_index):
        nll, lse, logits = _forward_op(x, weight, targets, ignore_index, _keeps(x, weight))
        ctx.save_for_backward(x, weight, targets, lse, logits)
        ctx.ignore_index = ignore_index
        return nll

    @staticmethod
    def backward(ctx, dnll):
        needs = list(ctx.needs_input_grad[:2])
        grads = _backward_op(dnll.contiguous(), *ctx.saved_tensors, ctx.ignore_index, needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None
