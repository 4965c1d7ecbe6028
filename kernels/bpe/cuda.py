"""Encoding in CUDA C++: allocation, scans and the calls into csrc/cuda/bpe.cu on the current stream.

What the kernels leave to torch are the scans: where pieces begin, which are not one token, where ids go. Pieces
longer than BPE_LONGEST bytes that are no token are merged by the C++ encoder on the host. Memory: 5 bytes a byte
of text and 20 a piece, about 10 a byte of English, beside the text and the ids.
"""

from weakref import WeakKeyDictionary

import torch

from .. import _native

_images: WeakKeyDictionary = WeakKeyDictionary()  # encoder -> {device: its tables there}


def encode_tensor(encoder, text, offsets):
    def call(name, *arguments):
        _native.launch(name, None, text.device, *arguments)

    def address(tensor, dtype):
        return _native.address(tensor, dtype, tensor.numel(), "cuda")

    size = text.numel()
    image, data = address(_image(encoder, text.device), torch.uint8), address(text, torch.uint8)
    begins = text.new_zeros(size + 1)
    begins[size] = 1
    call(
        "bpe_starts", image, data,
        address(offsets, torch.int64), address(begins, torch.uint8), size, len(offsets) - 1,
    )  # fmt: skip
    starts = begins.nonzero().squeeze(1)
    del begins
    pieces = len(starts) - 1
    staged = text.new_empty(size, dtype=torch.int32)
    counts = text.new_empty(pieces, dtype=torch.int32)
    places = address(starts, torch.int64), address(staged, torch.int32), address(counts, torch.int32)
    call("bpe_look_up", image, data, *places, pieces)
    missed = (counts < 1).nonzero().squeeze(1)
    call(
        "bpe_merge", image, data, places[0], address(missed, torch.int64), *places[1:], len(missed),
    )  # fmt: skip
    long = missed[counts[missed] < 0]
    spans = zip(starts[long].tolist(), starts[long + 1].tolist(), strict=True)
    parts = [
        torch.from_numpy(encoder.encode_pieces([text[a:b].cpu().numpy().tobytes()]).view("int32"))
        for a, b in spans
    ]
    counts[long] = torch.tensor([len(part) for part in parts], dtype=torch.int32, device=text.device)
    ends = torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])
    ids = text.new_empty(int(ends[-1]), dtype=torch.int32)
    call("bpe_gather", *places, address(ends[1:], torch.int64), address(ids, torch.int32), pieces)
    for part, end in zip(parts, ends[long + 1].tolist(), strict=True):
        ids[end - len(part) : end] = part.to(text.device)
    return ids, ends[torch.searchsorted(starts, offsets)], len(parts)


def _image(encoder, device):
    images = _images.setdefault(encoder, {})
    if device not in images:
        images[device] = torch.from_numpy(encoder.image).to(device)
    return images[device]
