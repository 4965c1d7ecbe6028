"""Rotary position embedding (Su et al., 2021) of queries and keys, after an optional RMS norm of each head.

One pass: queries, keys and values are read side by side, as their projection makes them; a head's row is
normalised, turned and written while it sits in registers or L1; the cosines and sines come from one table for all
layers. 6 flops a number against 4-8 bytes: bound by bandwidth. The halves
convention ("rotate_half") is that of Llama and Qwen3 checkpoints.
"""

from collections.abc import Sequence

import torch

from .._library import Example, needs_grad, register
from .._select import select
from ..attention import PAGE_SIZE, attention_append, check_paged, check_write, new_pages, write_pages
from ..attention.reference import read_pages

__all__ = ["rope", "rope_append", "rope_pages"]


def rope(
    qkv: torch.Tensor,
    heads: int,
    positions: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    theta: float = 10000.0,
    eps: float = 1e-6,
    divisors: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q, k, v), the first two rotated to their positions; with weights (D,), first RMS-normalised over D.

    qkv (T, heads + 2 K, D), D even: query, key and value heads of each token; positions (T,) int32, not
    negative; float32 or bfloat16 throughout. q (T, heads, D), k and v (T, K, D) are contiguous. positions may be on
    the host, whatever qkv's device: read from there, nothing waits for the device. q_weight and
    k_weight (Qwen3's norms) are given together or not at all. divisors: D / 2 numbers that divide the
    frequencies theta^(-2i / D), as in Llama 3's scaling; none leaves them as they are. A non-contiguous input
    is copied. A row's result does not depend on the other rows.

    Raises ValueError for shapes or types that do not fit together.
    """
    _check(qkv, heads, positions, q_weight, k_weight, divisors)
    if q_weight is not None and k_weight is not None:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    arguments = (
        qkv.contiguous(),
        heads,
        positions.contiguous(),
        q_weight,
        k_weight,
        float(theta),
        float(eps),
        [float(d) for d in divisors],
    )
    if torch.compiler.is_compiling() or needs_grad(qkv, q_weight, k_weight):
        return _Rope.apply(*arguments)
    return _forward(*arguments)


def rope_pages(
    qkv: torch.Tensor,
    heads: int,
    positions: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    theta: float,
    eps: float,
    divisors: Sequence[float],
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """rope(qkv, ...), then write_pages() of its keys and values: one op where a backend has it so. Returns q.

    Shapes, types and errors are those of the two. Not differentiable where it is one op.
    """
    backend = select("rope", qkv.device)
    whole = hasattr(backend, "forward_pages") and not needs_grad(qkv, q_weight, k_weight)
    if torch.compiler.is_compiling() or not whole:
        q, k, v = rope(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors)
        write_pages(k, v, k_pages, v_pages, slots)
        return q
    _check(qkv, heads, positions, q_weight, k_weight, divisors)
    k, v = qkv[:, heads:].chunk(2, dim=1)
    check_write(k, v, k_pages, v_pages, slots)
    if q_weight is not None and k_weight is not None:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    return backend.forward_pages(
        qkv.contiguous(), heads, positions.contiguous(), q_weight, k_weight, theta, eps, divisors, k_pages, v_pages,
        slots.contiguous(),
    )  # fmt: skip


def rope_append(
    qkv: torch.Tensor,
    heads: int,
    positions: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    theta: float,
    eps: float,
    divisors: Sequence[float],
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    q_start: torch.Tensor,
    context_lens: torch.Tensor,
) -> torch.Tensor:
    """attention_append(*rope(qkv, ...), k_pages, ...): one op where a backend has it so.

    Shapes, types and errors are those of the two, and so are the bits. Not differentiable where it is one op.
    """
    backend = select("rope", qkv.device)
    whole = hasattr(backend, "forward_append") and not needs_grad(qkv, q_weight, k_weight)
    pages = k_pages, v_pages, slots, block_table, q_start, context_lens
    if torch.compiler.is_compiling() or not whole:
        return attention_append(
            *rope(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors), *pages
        )
    _check(qkv, heads, positions, q_weight, k_weight, divisors)
    k, v = qkv[:, heads:].chunk(2, dim=1)
    check_write(k, v, k_pages, v_pages, slots)
    check_paged(qkv[:, :heads], k_pages, v_pages, block_table, q_start, context_lens)
    if q_weight is not None and k_weight is not None:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    return backend.forward_append(
        qkv.contiguous(), heads, positions.contiguous(), q_weight, k_weight, theta, eps, divisors, k_pages, v_pages,
        slots.contiguous(), block_table.contiguous(), q_start, context_lens, scale=qkv.shape[2] ** -0.5,
    )  # fmt: skip


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    made: list[Example] = []
    positions = torch.tensor([0, 1, 2, 0, 1500], dtype=torch.int32, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        make = torch.Generator(device=device).manual_seed(1)
        qkv, wq, wk = (
            torch.randn(shape, generator=make, device=device).to(dtype).requires_grad_()
            for shape in ((5, 5, 34), (34,), (34,))
        )
        divided = {"divisors": [1.0] * 8 + [8.0] * 9}
        made += [(rope, (qkv, 3, positions), divided), (rope, (qkv, 3, positions, wq, wk, 1e6), {})]
        plain = [t.detach() for t in (qkv, wq, wk)]
        for kept in (dtype, torch.int8):
            for use in (_into_pages, _then_attended):
                made.append((use, (plain[0], positions, *plain[1:], kept), {}))
    return made


def _into_pages(qkv, positions, q_weight, k_weight, kept):
    """rope_pages() into pages of zeros, at every second slot: q and the keys and values that the pages then hold (of
    codes: what they stand for, since a rounding before may move a code by one)."""
    k_pages, v_pages = (part.zero_() for part in new_pages(1, 1, qkv.shape[2], kept, qkv.device))
    slots = torch.arange(0, 2 * len(qkv), 2, dtype=torch.int32, device=qkv.device)
    q = rope_pages(qkv, 3, positions, q_weight, k_weight, 1e4, 1e-6, (), k_pages, v_pages, slots)
    return q, *read_pages(k_pages, v_pages, PAGE_SIZE, qkv.shape[2])


def _then_attended(qkv, positions, q_weight, k_weight, kept):
    """rope_append() of two requests, the first two tokens and the rest, whose pages held nothing before."""
    pages = new_pages(2, 1, qkv.shape[2], kept, qkv.device)
    of, starts = [0, 1, *range(PAGE_SIZE, PAGE_SIZE + len(qkv) - 2)], [0, 2, len(qkv)]
    slots, table, q_start, lengths = (
        torch.tensor(n, dtype=torch.int32, device=qkv.device)
        for n in (of, [[0], [1]], starts, [2, len(qkv) - 2])
    )
    turned = qkv, 3, positions, q_weight, k_weight, 1e4, 1e-6, ()
    return rope_append(*turned, *pages, slots, table, q_start, lengths)


def _check(qkv, heads, positions, q_weight, k_weight, divisors) -> None:
    rest = qkv.shape[1] - heads if qkv.dim() == 3 else 0
    if heads < 1 or rest < 2 or rest % 2 or qkv.shape[2] % 2:
        raise ValueError(
            f"rope: expected qkv (T, heads + 2 K, D), D even; got {tuple(qkv.shape)} with {heads} heads"
        )
    if positions.shape != qkv.shape[:1] or positions.dtype != torch.int32:
        raise ValueError(
            f"rope: positions must be ({len(qkv)},) int32, got {tuple(positions.shape)} {positions.dtype}"
        )
    if len(divisors) not in (0, qkv.shape[2] // 2):
        raise ValueError(f"rope: expected D / 2 = {qkv.shape[2] // 2} divisors or none, got {len(divisors)}")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("rope: give both q_weight and k_weight, or neither")
    if qkv.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rope: expected float32 or bfloat16, got {qkv.dtype}")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is None:
            continue
        if weight.dtype != qkv.dtype or weight.device != qkv.device:
            raise ValueError(
                f"rope: {name} is {weight.dtype} on {weight.device}, qkv {qkv.dtype} on {qkv.device}"
            )
        if weight.shape != qkv.shape[2:]:
            raise ValueError(f"rope: weight {tuple(weight.shape)} does not fit D = {qkv.shape[2]}")


def _forward(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors=()):
    backend = select("rope", qkv.device)
    return backend.forward(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors)


def _forward_fake(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors=()):
    tokens, columns, dim = qkv.shape
    kv_heads = (columns - heads) // 2
    return tuple(qkv.new_empty(tokens, count, dim) for count in (heads, kv_heads, kv_heads))


def _backward(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors=()):
    backend = select("rope", dq.device)
    return backend.backward(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors)


def _backward_fake(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors=()):
    weights = [dq.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight)]
    return dq.new_empty(dq.shape[0], dq.shape[1] + 2 * dk.shape[1], dq.shape[2]), *weights


_forward_op = register(
    "rope(Tensor qkv, int heads, Tensor positions, Tensor? q_weight, Tensor? k_weight, float theta, float eps, "
    "float[] divisors=[]) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "rope_backward(Tensor dq, Tensor dk, Tensor dv, Tensor positions, Tensor? qkv, Tensor? q_weight, "
    "Tensor? k_weight, float theta, float eps, float[] divisors=[]) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, heads, positions, q_weight, k_weight, theta, eps, divisors):
        ctx.constants = theta, eps, divisors
        ctx.normed = q_weight is not None
        ctx.save_for_backward(positions, *((qkv, q_weight, k_weight) if ctx.normed else ()))
        return _forward_op(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors)

    @staticmethod
    def backward(ctx, dq, dk, dv):
        positions, *saved = ctx.saved_tensors
        grads = (grad.contiguous() for grad in (dq, dk, dv))
        dqkv, dq_weight, dk_weight = _backward_op(*grads, positions, *(saved or (None,) * 3), *ctx.constants)
        if not ctx.normed:
            dq_weight = dk_weight = None
        return dqkv, None, None, dq_weight, dk_weight, None, None, None
