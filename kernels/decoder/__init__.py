"""One token of each request through a whole transformer: what a decode step is, as one op.

    x = embedding[ids]
    each layer:  x += attend(rope(norm(x) qkv^T)) out^T;   x += swiglu(norm(x) gate_up^T) down^T
    logits = norm(x) head^T

The model's ops one after another mean the same (`reference.py` is those); a backend of its own is worth it where
starting ops costs more than what they do: on a GPU, for small models and few requests. There the whole step is one
kernel whose blocks stay on the card and meet at 5 barriers a layer (csrc/cuda/decoder.cu).
"""

from collections.abc import Sequence

import torch

from .._library import Example
from .._select import select
from ..attention import PAGE_SIZE, new_pages
from ..rope.table import table

__all__ = ["MOST_ROWS", "decoder_step"]

Layer = Sequence[torch.Tensor | None]
PARTS = 9  # of a layer
MOST_ROWS = 8  # with more, products of tiles of rows are worth a launch each


def refuses(
    channels: int,
    heads: int,
    kv_heads: int,
    dim: int,
    width: int,
    layers: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Why decoder_step() cannot do a model of these sizes on `device`; "" where it can."""
    return select("decoder", device).refuses(channels, heads, kv_heads, dim, width, layers, dtype)


def decoder_step(
    ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    embedding: torch.Tensor,
    layers: Sequence[Layer],
    norm: torch.Tensor,
    head: torch.Tensor,
    pages: Sequence[tuple[torch.Tensor, torch.Tensor]],
    theta: float,
    eps: float,
    divisors: Sequence[float] = (),
) -> torch.Tensor:
    """Logits (R, V) float32 after ids (R,) int64, one of each request, whose keys and values are added to the pages.

    positions, slots (R,) int32: of each id in its request, and where in the pages its key and value go. block_table
    (R, N) int32: as for attention_paged(). embedding, head (V, C), norm (C,), all float32 or all bfloat16. A layer is
    its attention_norm (C,), qkv ((H + 2K) D, C), qkv_bias or None, q_norm (D,) and k_norm (D,) or None, out (C, H D),
    mlp_norm (C,), gate_up (2F, C), down (C, F). pages: (k_pages, v_pages) of each layer, from new_pages(), in the
    weights' type. theta, divisors: as for rope(); eps: of all norms. Not differentiable.

    R is at most MOST_ROWS. Raises ValueError for what does not fit together, NotImplementedError for sizes that the
    backend refuses().
    """
    rows, kinds = len(ids), {embedding.dtype, norm.dtype, head.dtype}
    fits = (
        rows <= MOST_ROWS
        and ids.dtype == torch.int64
        and all(t.dtype == torch.int32 and t.shape[:1] == (rows,) for t in (positions, slots, block_table))
    )
    if not fits or ids.dim() != 1 or block_table.dim() != 2 or positions.dim() != 1 or slots.dim() != 1:
        given = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in (ids, positions, slots, block_table))
        raise ValueError(
            "decoder_step: expected ids (R,) int64, R at most "
            f"{MOST_ROWS}, positions, slots (R,) and block_table (R, N) int32, got {given}"
        )
    kinds |= {t.dtype for layer in layers for t in layer if t is not None} | {
        t.dtype for pair in pages for t in pair
    }
    if len(kinds) != 1 or kinds - {torch.float32, torch.bfloat16}:
        raise ValueError(
            f"decoder_step: expected weights and pages of one type, float32 or bfloat16, got {kinds}"
        )
    if not layers or len(layers) != len(pages) or any(len(layer) != PARTS for layer in layers):
        raise ValueError(
            f"decoder_step: {len(layers)} layers of {PARTS} parts do not fit {len(pages)} pairs of pages"
        )
    channels, dim = embedding.shape[1], _dim(layers[0], pages[0][0])
    angles = table(theta, dim, block_table.shape[1] * PAGE_SIZE, ids.device, divisors)
    backend = select("decoder", ids.device)
    shapes = _shapes(layers[0], channels, pages[0][0].shape[1], dim)
    for layer in layers:
        for part, shape in zip(layer, shapes, strict=True):
            if part is not None and part.shape != shape:
                raise ValueError(f"decoder_step: expected {shape} in a layer, got {tuple(part.shape)}")
    return backend.step(
        ids,
        positions,
        slots.contiguous(),
        block_table.contiguous(),
        embedding,
        layers,
        norm,
        head,
        pages,
        angles,
        eps,
    )


def _dim(layer: Layer, k_pages: torch.Tensor) -> int:
    """The width of a head: of q/k/v's rows all but the output's columns belong to the pages' heads."""
    qkv, out = layer[1], layer[5]
    assert qkv is not None and out is not None
    return (len(qkv) - out.shape[1]) // (2 * k_pages.shape[1])


def _shapes(layer: Layer, channels: int, kv_heads: int, dim: int) -> list[tuple[int, ...]]:
    out, down = layer[5], layer[8]
    assert out is not None and down is not None
    queries, width = out.shape[1], down.shape[1]
    columns = queries + 2 * kv_heads * dim
    return [
        (channels,), (columns, channels), (columns,), (dim,), (dim,), (channels, queries), (channels,),
        (2 * width, channels), (channels, width),
    ]  # fmt: skip


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch: every number of rows at once, contexts of several spans."""
    made: list[Example] = []
    cases = [(torch.float32, 1, 8, True), (torch.bfloat16, 2, 64, False), (torch.bfloat16, 5, 128, True)]
    for dtype, rows, dim, rich in cases:
        given = random_step(dtype, rows, dim, rich=rich, device=device)
        made.append((decoder_step, given, {}))
    return made


def random_step(
    dtype: torch.dtype, rows: int, dim: int, *, rich: bool = True, layers: int = 2, device: str = "cpu"
) -> tuple:
    """Arguments of decoder_step() with random weights and filled pages; `rich` with biases and norms of q and k."""
    make = torch.Generator().manual_seed(rows)
    heads, kv_heads, channels, width, vocabulary = 4, 2, 40, 56, 61
    positions = torch.tensor([(311 * r + 5) % 700 for r in range(rows)], dtype=torch.int32)
    per = 11
    block_table = torch.randperm(rows * per, generator=make).view(rows, per).int()
    slots = (
        block_table.gather(1, (positions // PAGE_SIZE).long()[:, None])[:, 0] * PAGE_SIZE
        + positions % PAGE_SIZE
    )

    def new(*shape: int, scale: float = 0.0) -> torch.Tensor:
        scale = scale or shape[-1] ** -0.5
        return (torch.randn(shape, generator=make) * scale).to(dtype).to(device)

    columns = (heads + 2 * kv_heads) * dim
    blocks: list[Layer] = [
        (
            new(channels, scale=1), new(columns, channels), new(columns, scale=1) if rich else None,
            new(dim, scale=1) if rich else None, new(dim, scale=1) if rich else None, new(channels, heads * dim),
            new(channels, scale=1), new(2 * width, channels), new(channels, width),
        )
        for _ in range(layers)
    ]  # fmt: skip
    pages = []
    for _ in range(layers):
        pair = new_pages(rows * per, kv_heads, dim, dtype, device)
        for part in pair:
            part.copy_(torch.randn(part.shape, generator=make))
        pages.append(pair)
    numbers = (torch.randint(0, vocabulary, (rows,), generator=make), positions, slots.int(), block_table)
    return (
        *(t.to(device) for t in numbers), new(vocabulary, channels, scale=1), blocks, new(channels, scale=1),
        new(vocabulary, channels), pages, 10_000.0, 1e-6,
    )  # fmt: skip
