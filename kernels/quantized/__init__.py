"""Linear layer on quantised weights: y = x W^T (+ bias), W in 4 or 8 bits and kept so, x rounded to 8 on the way.

A weight is codes with a scale, and sometimes a minimum, for each 32 or 16 numbers of a row:

    W = scale (code - zero) + minimum          x ~ x_scale whole, |whole| <= 127, for each 32 numbers of a row

Products of whole numbers are summed exactly in integers, a block of 32 at a time; blocks are added in float32 in
an order that the backend states. So a row's result depends on that row alone, whatever the batch, tile or thread.
Decoding one row reads 4.5 to 8.5 bits a weight instead of 16 or 32, and reading is all the time there is; many rows
run at four times the rate of float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._library import Example, needs_grad
from .._select import select

__all__ = ["QuantizedWeight", "linear_quantized", "pack_quantized", "stack_quantized"]

BLOCK = 32


@dataclass(frozen=True)
class Part:
    """Rows of a weight that are stored alike."""

    data: torch.Tensor  # in the backend's layout
    rows: int
    bits: int
    group: int  # numbers of a row that share a scale
    zero: int
    scale_dtype: torch.dtype
    has_minimum: bool


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised matrix in a backend's layout, from `pack_quantized`; `linear` accepts it in a weight's place.

    weight[ids] gives rows (len(ids), K) as float32: so it serves as an embedding too, if it is of one part.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, int]  # (N, K)
    backend: str

    @property
    def device(self) -> torch.device:
        return self.parts[0].data.device

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        if len(self.parts) != 1:
            raise ValueError(f"quantized: rows of a weight of {len(self.parts)} parts cannot be picked")
        return _backend_of(self).rows(self.parts[0], self.shape[1], ids.contiguous())


def pack_quantized(
    codes: torch.Tensor, zero: int, scale: torch.Tensor, minimum: torch.Tensor | None = None
) -> QuantizedWeight:
    """Lay out W = scale (codes - zero) + minimum for `linear`.

    codes (N, K) uint8, K a multiple of 32; scale and minimum (N, K / G), both float16 or both float32, G 32 or 16.
    Codes below 16 are stored in 4 bits where G is 32.

    Raises ValueError for shapes or types that do not fit together.
    """
    n, k = codes.shape
    group = k // scale.shape[1] if scale.dim() == 2 and scale.shape[1] else 0
    if codes.dtype != torch.uint8 or k % BLOCK or group not in (16, 32) or scale.shape != (n, k // group):
        raise ValueError(
            f"pack_quantized: expected codes (N, K) uint8 with K a multiple of {BLOCK} and a scale for each 16 or "
            f"32, got {tuple(codes.shape)} {codes.dtype}, {tuple(scale.shape)}"
        )
    if scale.dtype not in (torch.float16, torch.float32):
        raise ValueError(f"pack_quantized: expected scales in float16 or float32, got {scale.dtype}")
    if minimum is not None and (minimum.shape, minimum.dtype) != (scale.shape, scale.dtype):
        raise ValueError(
            f"pack_quantized: minimum {tuple(minimum.shape)} {minimum.dtype} differs from scale "
            f"{tuple(scale.shape)} {scale.dtype}"
        )
    bits = 4 if group == 32 and n and int(codes.max()) < 16 else 8
    backend = select("quantized", codes.device)
    name = backend.__name__.rsplit(".", 1)[-1]
    data = backend.pack(codes, bits, zero, scale, minimum)
    part = Part(data, n, bits, group, zero, scale.dtype, minimum is not None)
    return QuantizedWeight((part,), (n, k), name)


def stack_quantized(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The rows of several weights, stored in whatever ways, as one weight."""
    first = weights[0]
    if any(w.shape[1] != first.shape[1] or w.backend != first.backend for w in weights):
        raise ValueError(f"stack_quantized: weights differ in K or backend: {[w.shape for w in weights]}")
    parts = tuple(part for weight in weights for part in weight.parts)
    return QuantizedWeight(parts, (sum(part.rows for part in parts), first.shape[1]), first.backend)


def linear_quantized(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,): (..., N), in x's type or in float32.

    x float32 or bfloat16, its rows rounded to 8 bits by blocks of 32; bias like x. Takes no gradients. A block of
    x that holds an infinity or a NaN makes its row NaN.

    Raises ValueError for shapes or types that do not fit together.
    """
    check(x, weight, bias, out_dtype)
    if needs_grad(x, bias):
        raise ValueError("linear_quantized: a quantised weight takes no gradients; use no_grad")
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()
    bias = None if bias is None else bias.contiguous()
    backend = _backend_of(weight)
    y = rows.new_empty(len(rows), weight.shape[0], dtype=out_dtype or x.dtype)
    at = 0
    for part in weight.parts:
        backend.forward(rows, part, None if bias is None else bias[at : at + part.rows], y, at)
        at += part.rows
    return y.view(*x.shape[:-1], weight.shape[0])


def check(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out_dtype: torch.dtype | None
) -> None:
    """Raise ValueError for what linear_quantized does not take."""
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_quantized: weight {weight.shape} does not fit x {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"linear_quantized: expected float32 or bfloat16, got {x.dtype}")
    if bias is not None and (tuple(bias.shape), bias.dtype) != ((weight.shape[0],), x.dtype):
        raise ValueError(
            f"linear_quantized: bias {tuple(bias.shape)} {bias.dtype} does not fit {weight.shape}"
        )
    if out_dtype not in (None, torch.float32, x.dtype):
        raise ValueError(f"linear_quantized: out_dtype {out_dtype} is neither x's {x.dtype} nor float32")


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    make = torch.Generator(device=device).manual_seed(1)
    made: list[Example] = []
    for most, group, zero, dtype, has_minimum in (
        (256, 32, 128, torch.float16, False),
        (16, 32, 8, torch.float16, False),
        (16, 32, 0, torch.float32, True),
        (64, 16, 32, torch.float32, False),
    ):
        codes = torch.randint(most, (35, 352), generator=make, device=device, dtype=torch.uint8)
        scale, minimum = (
            torch.randn(35, 352 // group, generator=make, device=device).to(dtype) for _ in "sm"
        )
        bias = torch.randn(70, generator=make, device=device)
        for rows in (1, 70):
            x = torch.randn(rows, 352, generator=make, device=device)
            made.append((_all_of_it, (x, codes, zero, scale, minimum if has_minimum else None, bias), {}))
    return made


def _all_of_it(x, codes, zero, scale, minimum, bias):
    """Packed, stacked, multiplied, and read as an embedding."""
    weight = pack_quantized(codes, zero, scale, minimum)
    both = stack_quantized([weight, weight])
    return linear_quantized(x, both, bias), weight[torch.arange(7, device=x.device) * 5]


def _backend_of(weight: QuantizedWeight):
    backend = select("quantized", weight.device)
    if backend.__name__.rsplit(".", 1)[-1] != weight.backend:
        raise ValueError(f"quantized: the weight was packed for backend {weight.backend}; pack it again")
    return backend
