"""Encoding of text in a tensor by the C++ encoder of csrc/text; of a tensor elsewhere, through the host."""

from itertools import pairwise

import torch

from .. import _native


def encode_tensor(encoder, text, offsets):
    data, edges = text.cpu().numpy().tobytes(), offsets.tolist()
    if edges[0] != 0 or edges[-1] != len(data) or any(a > b for a, b in pairwise(edges)):
        return None
    documents = [data[a:b] for a, b in pairwise(edges)]
    ids, ends = encoder.encode_batch(documents, threads=_native.threads())
    return torch.from_numpy(ids.view("int32")).to(text.device), torch.from_numpy(ends).to(text.device), 0
