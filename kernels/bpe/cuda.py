"""Encoding in CUDA C++: allocation and the calls into csrc/cuda/bpe.cu on the current stream.

The host waits once, for the number of ids, which decides how much room they get: all before it is queued with a
workspace sized by the bytes of the text alone. Pieces longer than BPE_LONGEST bytes that are no token, and stretches of
more than BPE_WALK bytes in which no place is certain to begin one, are handed to the C++ encoder on the host; where
there are some, it waits a second time, for the bytes of them all. Memory of a call: 10.2 bytes a byte of text, beside
the text and the ids; of an encoder on a device: its tables, and 20 MiB for the ids of pieces that are no token.
"""

from itertools import accumulate, count
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .. import _native

MEMORY_SLOTS = 1 << 18
_calls = count()
_kept: WeakKeyDictionary = WeakKeyDictionary()  # encoder -> {device: what `kept` returns}


def encode_tensor(encoder, text, offsets):
    kernels, size, documents = _native.cuda(), text.numel(), len(offsets) - 1
    tables, memory = kept(encoder, text.device)
    work = text.new_empty(kernels.bpe_work(size))
    work[: kernels.bpe_zeros(size)].zero_()
    data, image, slots, workspace = (_address(tensor, torch.uint8) for tensor in (text, tables, memory, work))
    begins = _address(offsets, torch.int64)
    number = next(_calls) % (2**30 - 1) + 1
    _native.launch(
        "bpe_count", None, text.device, image, data, begins, slots, workspace,
        len(memory) // kernels.BPE_SLOT, number, size, documents, _multiprocessors(text.device),
    )  # fmt: skip
    total, bad, packed_bytes, longs, *_ = work[: kernels.BPE_STATUS].view(torch.int32).tolist()
    if bad:
        return None
    given, places = text.new_empty(0, dtype=torch.int32), text.new_empty(longs, dtype=torch.int32)
    given_ids = 0
    if longs:
        packed_bytes %= 1 << 32
        packed = text.new_empty(kernels.BPE_HANDED * longs + packed_bytes)
        _native.launch(
            "bpe_hand_over", None, text.device, data, begins, workspace, _address(packed, torch.uint8),
            size, documents, longs, packed_bytes,
        )  # fmt: skip
        made = made_by_host(encoder, packed.cpu().numpy(), longs)
        given, given_ids = torch.from_numpy(made).to(text.device), len(made) - 2 * longs - 1
    ids = text.new_empty(total + given_ids, dtype=torch.int32)
    ends = torch.empty_like(offsets)
    _native.launch(
        "bpe_gather", None, text.device, begins, slots, workspace, _address(given, torch.int32),
        _address(places, torch.int32), _address(ids, torch.int32), _address(ends, torch.int64),
        size, documents, longs, given_ids,
    )  # fmt: skip
    return ids, ends, longs


def made_by_host(encoder, packed: np.ndarray, pieces: int) -> np.ndarray:
    """What bpe_gather is given, int32, for what bpe_hand_over has packed. More than BPE_WALK bytes are a stretch of the
    text that begins and ends where pieces do, and that the host cuts."""
    kernels, parts = _native.cuda(), []
    split = kernels.BPE_HANDED * pieces
    starts, places, behind = packed[:split].view(np.uint32).reshape(-1, 3).T
    sizes = np.diff(places, append=np.uint32(len(packed) - split)) - kernels.BPE_CONTEXT
    order = np.argsort(starts)
    for i in order:
        size = int(sizes[i])
        data = packed[split + places[i] :][: size + behind[i]].tobytes()
        if size > kernels.BPE_WALK:
            cut = encoder.pattern.split(data)
            ends = accumulate(map(len, cut))
            cut = cut[: next(n for n, end in enumerate(ends, 1) if end >= size)]
        else:
            cut = [data[:size]]
        parts.append(encoder.encode_pieces(cut))
    begins = np.cumsum([0, *map(len, parts)])
    return np.concatenate([starts[order], begins, *parts], dtype=np.int32, casting="unsafe")


def kept(encoder, device):
    """The encoder's tables on a device, and the memory of pieces there (zeros: nothing is known)."""
    on_devices = _kept.setdefault(encoder, {})
    if device not in on_devices:
        memory = torch.zeros(MEMORY_SLOTS * _native.cuda().BPE_SLOT, dtype=torch.uint8, device=device)
        on_devices[device] = torch.from_numpy(encoder.image).to(device), memory
    return on_devices[device]


def _address(tensor, dtype):
    return _native.address(tensor, dtype, tensor.numel(), "cuda")


def _multiprocessors(device) -> int:
    if _native.CUDA_SHIM:
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
