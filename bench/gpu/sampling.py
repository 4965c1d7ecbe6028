"""Cases of sampling: alone, and behind the output layer."""

import torch
import torch.nn.functional as F
from pyengine.kernels.sample import reference

from bench.gpu import prediction
from bench.gpu.case import F32, Place, Prepared, close
from pyengine import kernels


def sample(place: Place, rows: int) -> Prepared:
    rows, vocabulary = place.size(rows, 1), place.size(131072, 100)
    logits = place.randn(rows, vocabulary, dtype=F32, scale=3.0)
    make = torch.Generator(device=place.device).manual_seed(0)
    u = torch.rand(rows, generator=make, device=place.device)
    settings = dict(
        temperature=torch.full((rows,), 0.8, device=place.device),
        top_k=torch.full((rows,), 50, dtype=torch.int32, device=place.device),
        top_p=torch.full((rows,), 0.95, device=place.device),
        min_p=torch.zeros(rows, device=place.device),
    )

    def peer():
        """The usual chain: sort, cut, draw."""
        scaled = logits / settings["temperature"][:, None]
        scaled = scaled.masked_fill(scaled < scaled.topk(50, -1).values[:, -1:], -torch.inf)
        ordered, order = scaled.sort(-1, descending=True)
        weights = ordered.softmax(-1)
        weights = weights.masked_fill(weights.cumsum(-1) - weights > 0.95, 0.0)
        return order.gather(1, torch.multinomial(weights, 1))

    def check():
        ids, logprobs = kernels.sample(logits, u, **settings)
        truth, true_logprobs = reference.sample(logits, u, *settings.values())
        assert torch.equal(ids, truth), "the ids are not the reference's"
        close(logprobs, true_logprobs, 1e-4)

    return Prepared(
        lambda: kernels.sample(logits, u, **settings), {"torch sort path": peer}, check,
        prediction.streaming(logits.numel() * 4, launches=3), cold=True,
    )  # fmt: skip


def head_and_sample(place: Place, batch: int) -> Prepared:
    """From hidden states to sampled ids, d = 1,024 and V = 151,936, beside the product alone and torch's way."""
    batch, channels, vocabulary = place.size(batch, 2), place.size(1024, 32), place.size(151_936, 90)
    x, weight = place.randn(batch, channels), place.randn(vocabulary, channels, scale=channels**-0.5)
    seeds = torch.arange(batch, device=place.device)
    sizes = [torch.full((batch,), value, dtype=dtype, device=place.device)
             for value, dtype in ((0.9, F32), (0, torch.int32), (1.0, F32), (0.0, F32))]  # fmt: skip

    def ours():
        return kernels.sample(kernels.linear(x, weight, out_dtype=F32), kernels.uniform(seeds, seeds), *sizes)

    def plain():
        return torch.multinomial((F.linear(x, weight).float() / 0.9).softmax(-1), 1)

    def check():
        ids, logprobs = ours()
        truth = (F.linear(x.float(), weight.float()) / 0.9).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        close(logprobs, truth, 2e-2)

    compiled = place.compile(plain)
    return Prepared(
        ours, {"torch's product alone": lambda: F.linear(x, weight), "torch.compile": compiled}, check,
        prediction.Work(bytes=2 * weight.numel() + 3 * 4 * batch * vocabulary, launches=5, reach=0.75), cold=True,
    )  # fmt: skip
