"""Sampling beside the chain that generation libraries run (temperature, top-k mask, sort for top-p, multinomial).

The bound is one read of the logits. Equality: our log-probabilities are those of the peer's distribution.
"""

import pytest
import torch
from pyengine.kernels import sample

CASES = {"top-k 50, top-p 0.95": (0.8, 50, 0.95), "top-p 0.95": (0.8, 0, 0.95), "plain": (1.0, 0, 1.0)}


def distribution(logits, temperature, top_k, top_p):
    scores = logits / temperature
    if top_k:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, places = scores.sort(descending=False)
        remove = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        remove[:, -1] = False
        scores = scores.masked_fill(remove.scatter(1, places, remove), float("-inf"))
    return scores.softmax(-1)


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("vocabulary", [4096, 128_000])
@pytest.mark.parametrize("case", CASES)
def test_sample(paired, case, vocabulary, rows):
    make = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=make) * 3
    u = torch.rand(rows, generator=make)
    temperature, top_k, top_p = CASES[case]
    parameters = [torch.full((rows,), v, dtype=t) for v, t in
                  ((temperature, torch.float32), (top_k, torch.int32), (top_p, torch.float32))]  # fmt: skip

    def equal():
        ids, logprobs = sample(logits, u, *parameters)
        theirs = distribution(logits, temperature, top_k, top_p).gather(1, ids[:, None])[:, 0].log()
        return torch.allclose(logprobs, theirs, atol=2e-3)

    paired(
        f"sample {case}, {rows} x {vocabulary}",
        ours=lambda: sample(logits, u, *parameters),
        peer=lambda: distribution(logits, temperature, top_k, top_p).multinomial(1),
        peer_name="torch chain", equal=equal, bytes=logits.numel() * 4, rounds=15,
    )  # fmt: skip
