"""How likely texts are to a model, token by token, from one pass over packed documents.

    likelihoods(model, [(ids, n), ...])     # of each document's last n ids, given those before them

A document's numbers are the same to the bit whatever it is packed with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..kernels import _native, sampled_logprob, top_logprobs
from ..model import Transformer, over_documents

LOGIT_ROWS = 256  # of logits in memory at once


class Likelihoods(NamedTuple):
    """Of n ids of a document, on the host: log-probabilities (n,) float32, whether each was the likeliest (n,) bool,
    and what was likeliest in its place, ids and log-probabilities (n, top)."""

    logprobs: torch.Tensor
    greedy: torch.Tensor
    top: tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def likelihoods(
    model: Transformer, documents: Sequence[tuple[Sequence[int], int]], top: int = 0
) -> list[Likelihoods]:
    """Of each (ids, n), 1 <= n < len(ids), the likelihoods of its last n ids, with the `top` likeliest of each."""
    device = model.device
    ids = torch.tensor([i for document, _ in documents for i in document])
    lengths = torch.tensor([len(document) for document, _ in documents])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths.tolist()])
    packed = bounds.int()
    places = torch.cat(
        [
            torch.arange(end - n - 1, end - 1)
            for end, (_, n) in zip(bounds[1:].tolist(), documents, strict=True)
        ]
    )
    top = min(top, model.config.vocab_size)
    rows = []
    with _native.one_torch_thread():
        hidden = model(ids.to(device), positions, over_documents(packed))
        hidden, targets = hidden[places.to(device)], ids[places + 1].to(device)
        for start in range(0, len(places), LOGIT_ROWS):
            here = slice(start, start + LOGIT_ROWS)
            logits = model.logits(hidden[here])
            best = top_logprobs(logits, top) if top else (targets.new_empty(len(logits), 0),) * 2
            rows.append((sampled_logprob(logits, targets[here]), logits.argmax(1) == targets[here], *best))
    counts = [n for _, n in documents]
    told = [torch.cat(part).cpu().split(counts) for part in zip(*rows, strict=True)]
    return [Likelihoods(own, greedy, (i, p)) for own, greedy, i, p in zip(*told, strict=True)]
