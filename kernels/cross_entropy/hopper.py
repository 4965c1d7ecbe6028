"""The output layer and its loss on Hopper's own engines (csrc/cuda/cross_entropy_hopper.cu), in bfloat16.

Forward: logits stay in registers, of which each tile of 256 leaves a token's maximum and sum. Backward computes a
chunk of tokens' logits again and writes their gradient (CHUNK x V numbers at most); two products of the linear layer
turn that into dx and into a share of dweight, which the copy engine adds up in float32. Asked for by name and probed,
like the linear layer; float32, and what has no numbers, is the reference's, whose logits are whole.
"""

import torch

from .. import _native
from .._memory import in_chunks, narrow, wide
from . import reference

FORWARD_CHUNK = 16384  # tokens whose tiles' maxima and sums exist at one time: 8 bytes for 256 logits
CHUNK = 4096  # tokens whose logit gradients exist at one time: their dx has tiles for most SMs


def forward(x, weight, targets, ignore_index):
    if _is_not_for_it(x, weight):
        return reference.forward(x, weight, targets, ignore_index)
    (tokens, channels), vocabulary = x.shape, len(weight)
    x, weight = in_chunks(x), in_chunks(weight)
    nll, lse = (x.new_empty(tokens, dtype=kind) for kind in (torch.float32, torch.float64))
    tiles = _native.cuda().cross_entropy_hopper_tiles(vocabulary)
    rows = min(tokens, FORWARD_CHUNK)
    scratch = [x.new_empty(shape, dtype=torch.float32) for shape in ((rows, tiles), (rows, tiles), (rows,))]
    for first in range(0, tokens, FORWARD_CHUNK):
        part = slice(first, min(first + FORWARD_CHUNK, tokens))
        _launch(
            "cross_entropy_forward_hopper",
            [x[part], weight, targets[part], *scratch, nll[part], lse[part]],
            part.stop - first, vocabulary, channels, ignore_index,
        )  # fmt: skip
    return nll, lse


def backward(dnll, x, weight, targets, lse, ignore_index, needs):
    if _is_not_for_it(x, weight):
        return reference.backward(dnll, x, weight, targets, lse, ignore_index, needs)
    (tokens, channels), vocabulary = x.shape, len(weight)
    kind = x.dtype
    x, weight, dnll = in_chunks(x), in_chunks(weight), dnll.float()
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dweight = x.new_zeros(weight.shape if needs[1] else 0, dtype=torch.float32)
    dlogits = x.new_empty((min(CHUNK, tokens), wide(vocabulary)))
    for first in range(0, tokens, CHUNK):
        part = slice(first, min(first + CHUNK, tokens))
        sizes = part.stop - first, vocabulary, channels
        share = dlogits[: sizes[0]]
        _launch(
            "cross_entropy_dlogits_hopper",
            [x[part], weight, targets[part], lse[part], dnll[part], share], *sizes, ignore_index,
        )  # fmt: skip
        if needs[0]:
            _launch("linear_dx_hopper", [share, weight, dx[part]], *sizes)
        if needs[1]:
            _launch("linear_dweight_added_hopper", [share, x[part], dweight], *sizes)
    return narrow(dx, channels), narrow(dweight.to(kind), channels)


def _is_not_for_it(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.dtype is not torch.bfloat16 or not x.numel() or not weight.numel()


def _launch(name: str, tensors: list[torch.Tensor], *sizes: int) -> None:
    places = [_native.address(t, t.dtype, t.numel(), "cuda") for t in tensors]
    _native.launch(name, None, tensors[0].device, *places, *sizes)
