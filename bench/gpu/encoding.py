"""Cases of BPE: text that is on the device."""

import os
from pathlib import Path
from sysconfig import get_paths

import torch
from pyengine.kernels.bpe import cuda

from bench.gpu import prediction
from bench.gpu.case import Place, Prepared
from pyengine import kernels


def encoding(place: Place, fresh: bool) -> Prepared:
    """Python's own library as text on the device. fresh: with nothing known of its pieces, as in a first pass."""
    files = sorted(Path(get_paths()["stdlib"]).rglob("*.py"))
    documents, left = [], place.size(64 << 20, 3000)
    for file in files:
        documents.append(file.read_bytes()[:left])
        left -= len(documents[-1])
        if not left:
            break
    lexer, counts = kernels.bpe.split_pattern("cl100k"), kernels.bpe.WordCounts()
    counts.add_texts(documents[:: place.size(8, 1)], lexer)
    merges = kernels.bpe.train(counts, kernels.bpe.BYTE_ORDER, place.size(32768, 400))
    encoder = kernels.bpe.Encoder(kernels.bpe.spell(kernels.bpe.BYTE_ORDER, merges), merges, lexer)
    text = torch.frombuffer(bytearray().join(documents), dtype=torch.uint8).to(place.device)
    offsets = torch.tensor([0, *map(len, documents)], device=place.device).cumsum(0)

    def ours():
        if fresh:
            cuda.kept(encoder, text.device)[1].zero_()
        return kernels.bpe.encode_tensor(encoder, text, offsets)

    def peer():
        return encoder.encode_batch(documents, threads=os.cpu_count() or 1)

    def check():
        ids, ends = peer()
        for _ in range(2):
            encoded = ours()
            assert encoded.offsets.tolist() == ends.tolist(), "the offsets are not the C++ encoder's"
            assert (encoded.ids.cpu().numpy() == ids).all(), "the ids are not the C++ encoder's"

    size = text.numel()
    pieces = size * 10 // 43  # bytes a piece of code, and the share of pieces first seen that are no token
    return Prepared(
        ours, {"C++, all threads": peer}, check,
        prediction.encoding(size, pieces, pieces // 40 if fresh else 0),
    )  # fmt: skip
