"""A decode step as one CUDA kernel: checks, allocation and the call into csrc/cuda/decoder.cu."""

import torch

from .. import _native
from ..attention import PAGE_SIZE
from . import MOST_ROWS

SPAN = 4 * PAGE_SIZE  # tokens that a warp attends to, kSpan of decoder.cu
THREADS = 512  # of a block; there is one on each multiprocessor
SHARED_BYTES = 160 << 10  # that A100 and H100 have for one block
STEP = 8  # what sizes divide by, so that rows start at multiples of 16 bytes


def refuses(channels, heads, kv_heads, dim, width, layers, dtype) -> str:
    """See the package. Rows are counted as the most there may be, so that no batch comes as a surprise."""
    module = _native.cuda()
    for name, value, most in (
        ("layers", layers, module.DECODER_LAYERS),
        ("numbers a head", dim, module.DECODER_DIM),
    ):
        if value > most:
            return f"at most {most} {name}, got {value}"
    columns = (heads + 2 * kv_heads) * dim
    if any(size % STEP for size in (channels, heads * dim, columns, width)):
        return f"sizes that {STEP} divides, got {channels}, {heads * dim}, {columns}, {width}"
    longest = max(channels, heads * dim, width)
    bytes = module.decoder_shared_bytes(MOST_ROWS, longest, dim, THREADS, dtype.itemsize)
    if bytes > SHARED_BYTES:
        return f"{MOST_ROWS} rows that fit into {SHARED_BYTES} bytes of a block, got {bytes}"
    return ""


def step(ids, positions, slots, block_table, embedding, layers, norm, head, pages, angles, eps):
    rows, (vocabulary, channels), dtype = len(ids), head.shape, embedding.dtype
    dim, kv_heads = 2 * angles.shape[2], pages[0][0].shape[1]
    heads, width = layers[0][5].shape[1] // dim, layers[0][8].shape[1]
    if problem := refuses(channels, heads, kv_heads, dim, width, len(layers), dtype):
        raise NotImplementedError(f"decoder: cuda takes {problem}")
    spans = -(-block_table.shape[1] * PAGE_SIZE // SPAN)
    columns = (heads + 2 * kv_heads) * dim
    work = angles.new_empty(rows * (channels + heads * spans * (dim + 2)))
    narrow = embedding.new_empty(rows * (columns + width))
    logits = angles.new_empty(rows, vocabulary)
    barrier = torch.zeros(2, dtype=torch.int32, device=ids.device)
    addresses = torch.tensor(
        [
            [_native.address(t, dtype, 0 if t is None else t.numel(), "cuda") for t in (*layer, *pair)]
            for layer, pair in zip(layers, pages, strict=True)
        ],
        dtype=torch.int64,
    )
    blocks, threads = _size(ids.device)
    _native.launch(
        "decoder_step", (dtype,), ids.device, addresses.data_ptr(),
        *(_native.address(t, dtype, t.numel(), "cuda") for t in (embedding, norm, head)),
        _native.address(ids, torch.int64, rows, "cuda"),
        *(_native.address(t, torch.int32, t.numel(), "cuda") for t in (positions, slots, block_table)),
        *(_native.address(t, torch.float32, t.numel(), "cuda") for t in (angles, work)),
        _native.address(narrow, dtype, narrow.numel(), "cuda"),
        _native.address(logits, torch.float32, logits.numel(), "cuda"),
        _native.address(barrier, torch.int32, 2, "cuda"),
        len(layers), rows, channels, heads, kv_heads, dim, width, vocabulary, block_table.shape[1], spans,
        angles.shape[1], eps, dim**-0.5, blocks, threads,
    )  # fmt: skip
    return logits


def _size(device: torch.device) -> tuple[int, int]:
    """(blocks, threads of a block): one a multiprocessor; on the host few, since each thread is one of the host's."""
    if _native.CUDA_SHIM:
        return 3, 64
    return torch.cuda.get_device_properties(device).multi_processor_count, THREADS
