"""Encoding in CUDA C++: allocation, scans and the calls into csrc/cuda/bpe.cu on the current stream.

What the kernels leave to torch are the scans: where pieces begin, which are not one token, where ids go. Pieces
longer than BPE_LONGEST bytes that are no token are merged by the C++ encoder on the host. Memory of a call: 5
bytes a byte of text and 20 a piece, about 10 a byte of English, beside the text and the ids; of an encoder on a
device: its tables, and 20 MiB for the ids of pieces that are no token.
"""

from itertools import count
from weakref import WeakKeyDictionary

import torch

from .. import _native

MEMORY_SLOTS = 1 << 18
_calls = count()
_kept: WeakKeyDictionary = WeakKeyDictionary()  # encoder -> {device: what `kept` returns}


def encode_tensor(encoder, text, offsets):
    def call(name, *arguments):
        _native.launch(name, None, text.device, *arguments)

    def address(tensor, dtype):
        return _native.address(tensor, dtype, tensor.numel(), "cuda")

    size, number = text.numel(), next(_calls) % (2**30 - 1) + 1
    tables, memory = kept(encoder, text.device)
    image, data, slots = (address(tensor, torch.uint8) for tensor in (tables, text, memory))
    begins = text.new_zeros(size + 1)
    begins[size] = 1
    call(
        "bpe_starts", image, data, address(offsets, torch.int64), address(begins, torch.uint8),
        size, len(offsets) - 1,
    )  # fmt: skip
    starts = begins.nonzero().squeeze(1)
    del begins
    pieces = len(starts) - 1
    staged = text.new_empty(size, dtype=torch.int32)
    counts = text.new_empty(pieces, dtype=torch.int32)
    begin = address(starts, torch.int64)
    found = slots, address(staged, torch.int32), address(counts, torch.int32)
    call("bpe_look_up", image, data, begin, *found, len(memory) // _native.cuda().BPE_SLOT, number, pieces)
    missed = (counts < 0).nonzero().squeeze(1)
    call("bpe_merge", image, data, begin, address(missed, torch.int64), *found, len(missed))
    long = missed[counts[missed] < 0]
    parts = [
        torch.from_numpy(encoder.encode_pieces([text[a:b].cpu().numpy().tobytes()]).view("int32"))
        for a, b in zip(starts[long].tolist(), starts[long + 1].tolist(), strict=True)
    ]
    counts[long] = torch.tensor([len(part) for part in parts], dtype=torch.int32, device=text.device)
    ends = starts.new_zeros(pieces + 1)
    torch.cumsum(counts, 0, out=ends[1:])
    ids = text.new_empty(int(ends[-1]), dtype=torch.int32)
    call("bpe_gather", begin, *found, address(ends[1:], torch.int64), address(ids, torch.int32), pieces)
    for part, end in zip(parts, ends[long + 1].tolist(), strict=True):
        ids[end - len(part) : end] = part.to(text.device)
    return ids, ends[torch.searchsorted(starts, offsets)], len(parts)


def kept(encoder, device):
    """The encoder's tables on a device, and the memory of pieces there (zeros: nothing is known)."""
    on_devices = _kept.setdefault(encoder, {})
    if device not in on_devices:
        memory = torch.zeros(MEMORY_SLOTS * _native.cuda().BPE_SLOT, dtype=torch.uint8, device=device)
        on_devices[device] = torch.from_numpy(encoder.image).to(device), memory
    return on_devices[device]
