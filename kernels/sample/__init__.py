"""Sampling from logits: temperature, top-k, top-p and min-p exactly, without a sort, and the log-probability.

    logits = adjust_logits(logits, ids, starts, repetition, added, allowed)     # where a request asks for it
    ids, logprobs = sample(logits, uniform(seeds, positions), temperature, top_k, top_p, min_p)

A pure function of one row's logits, its parameters and one number u = uniform(seed, position): the same seed
gives the same token on every backend, in any batch, in any order. Weights are whole numbers, so every sum that
decides the token is exact; `reference.py` states each step. One read of the logits finds the maximum of every
64; the k-th largest of those bounds the k-th largest logit from below, so only a handful is looked at again:
the bound is the one read, 4 bytes a logit.
"""

import torch

from .._library import Example, register
from .._select import select

__all__ = ["adjust_logits", "sample", "sample_ids", "sampled_logprob", "top_logprobs", "uniform"]

PerRow = torch.Tensor | float | int


def sample(
    logits: torch.Tensor,
    u: torch.Tensor,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids (R,) int64, logprobs (R,) float32) drawn from the filtered softmax of each row.

    logits (R, V) float32; u (R,) float32 in [0, 1); temperature, top_p, min_p (R,) float32 and top_k (R,)
    int32, or one number for all rows. Temperature scales first, then top_k keeps the k largest (0: all), then
    top_p the smallest set of the largest with that share of what top_k left (1: all), then min_p those at
    least that many times as likely as the likeliest (0: all); equal logits stay together.
    Temperature 0 (below 1e-5) takes the largest logit, the lowest id on ties, and reports its log-probability
    at temperature 1, unfiltered; otherwise logprobs are of the distribution sampled from. A row with NaN, +inf
    or only -inf gives id -1 and logprob NaN; other rows do not notice. Not differentiable.

    Raises ValueError for shapes or types that do not fit together.
    """
    parameters = _parameters(logits, temperature, top_k, top_p, min_p)
    _check_u(logits, u)
    call = _sample_op if torch.compiler.is_compiling() else _sample
    return call(logits.contiguous(), u.contiguous(), *parameters)


def sample_ids(
    logits: torch.Tensor,
    u: torch.Tensor,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
) -> torch.Tensor:
    """The ids that sample() draws, without their log-probabilities, which cost more than a greedy id does."""
    parameters = _parameters(logits, temperature, top_k, top_p, min_p)
    _check_u(logits, u)
    call = _ids_op if torch.compiler.is_compiling() else _ids
    return call(logits.contiguous(), u.contiguous(), *parameters)


def sampled_logprob(
    logits: torch.Tensor,
    ids: torch.Tensor,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
) -> torch.Tensor:
    """What sample() reports for `ids` (R,) int64, bit for bit; -inf for an id that the filters drop.

    Other arguments as for sample(). Ids of -1 give NaN. Not differentiable.
    """
    parameters = _parameters(logits, temperature, top_k, top_p, min_p)
    if ids.shape != logits.shape[:1] or ids.dtype != torch.int64:
        raise ValueError(f"sample: ids must be ({len(logits)},) int64, got {tuple(ids.shape)} {ids.dtype}")
    call = _logprob_op if torch.compiler.is_compiling() else _logprob
    return call(logits.contiguous(), ids.contiguous(), *parameters)


def top_logprobs(logits: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids (R, n) int64, logprobs (R, n) float32) of each row's n likeliest, at temperature 1, unfiltered.

    Likeliest first, the lower id first on ties; the bits are those of sampled_logprob(). A bad row (see
    sample()) gives ids -1 and NaN. Raises ValueError unless 1 <= n <= V.
    """
    _check_logits(logits)
    if not 1 <= n <= logits.shape[1]:
        raise ValueError(f"top_logprobs: n must be from 1 to {logits.shape[1]}, got {n}")
    call = _top_op if torch.compiler.is_compiling() else _top
    return call(logits.contiguous(), n)


def adjust_logits(
    logits: torch.Tensor,
    ids: torch.Tensor,
    starts: torch.Tensor,
    repetition: torch.Tensor,
    added: torch.Tensor,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (R, V) float32 with single ones changed, for penalties and biases, and all but `allowed` at -inf.

    Row r changes at ids[starts[r]:starts[r + 1]], each id at most once: x becomes x (1 / repetition) where
    x > 0 and x repetition elsewhere, plus `added`. ids (E,) int32 in [0, V), starts (R + 1,) int32 from 0 to
    E, repetition > 0 and added finite (E,) float32. allowed (R, ceil(V / 32)) int32: bit i % 32 of word i // 32
    says whether id i may be sampled. What lies in ids and starts is not checked. Not differentiable.

    Raises ValueError for shapes or types that do not fit together.
    """
    _check_logits(logits)
    rows, vocabulary = logits.shape
    entries = ids.numel()
    wanted: list[tuple[str, torch.Tensor, torch.dtype, tuple[int, ...]]] = [
        ("ids", ids, torch.int32, (entries,)),
        ("starts", starts, torch.int32, (rows + 1,)),
        ("repetition", repetition, torch.float32, (entries,)),
        ("added", added, torch.float32, (entries,)),
    ]
    if allowed is not None:
        wanted.append(("allowed", allowed, torch.int32, (rows, -(-vocabulary // 32))))
    for name, value, dtype, shape in wanted:
        if value.dtype != dtype or value.shape != shape:
            raise ValueError(
                f"adjust_logits: {name} must be {shape} {dtype}, got {tuple(value.shape)} {value.dtype}"
            )
    call = _adjust_op if torch.compiler.is_compiling() else _adjust
    parts = [None if t is None else t.contiguous() for t in (logits, ids, starts, repetition, added, allowed)]
    return call(*parts)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """u (R,) float32 in [0, 1): a hash of each request's seed and position, both (R,) int64."""
    for name, t in (("seeds", seeds), ("positions", positions)):
        if t.dim() != 1 or t.shape != seeds.shape or t.dtype != torch.int64:
            raise ValueError(
                f"uniform: {name} must be ({seeds.numel()},) int64, got {tuple(t.shape)} {t.dtype}"
            )
    call = _uniform_op if torch.compiler.is_compiling() else _uniform
    return call(seeds.contiguous(), positions.contiguous())


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    make = torch.Generator(device=device).manual_seed(1)
    logits = torch.randn(4, 777, generator=make, device=device) * 3
    u = torch.tensor([0.0, 0.3, 0.6, 0.999], device=device)
    filters: list[tuple] = [(), (0.7, 50, 0.9), (0.0,), (1.0, 0, 1.0, 0.1)]
    ids = torch.tensor([0, 300, 776, -1], device=device)
    entries, starts = (
        torch.tensor(n, dtype=torch.int32, device=device) for n in ([5, 776, 0, 31], [0, 2, 2, 3, 4])
    )
    repetition, added = torch.tensor([[1.3, 0.5, 2.0, 1.0], [0.0, -4.0, 2.0, 0.25]], device=device)
    allowed = torch.randint(-(2**31), 2**31, (4, 25), generator=make, device=device, dtype=torch.int32)
    return [
        *((sample, (logits, u, *some), {}) for some in filters),
        *((sample_ids, (logits, u, *some), {}) for some in filters),
        *((sampled_logprob, (logits, ids, *some), {}) for some in filters),
        (top_logprobs, (logits, 5), {}),
        (adjust_logits, (logits, entries, starts, repetition, added), {}),
        (adjust_logits, (logits, entries, starts, repetition, added, allowed), {}),
        (uniform, (ids, torch.arange(4, device=device)), {}),
    ]


def _check_logits(logits):
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.shape[1]:
        raise ValueError(f"sample: expected float32 logits (R, V), got {tuple(logits.shape)} {logits.dtype}")


def _check_u(logits, u):
    if u.shape != logits.shape[:1] or u.dtype != torch.float32:
        raise ValueError(f"sample: u must be ({len(logits)},) float32, got {tuple(u.shape)} {u.dtype}")


def _parameters(logits, temperature, top_k, top_p, min_p):
    _check_logits(logits)
    rows, checked = len(logits), []
    for name, value, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
    ):
        if not isinstance(value, torch.Tensor):
            value = torch.full((rows,), value, dtype=dtype, device=logits.device)
        if value.shape != (rows,) or value.dtype != dtype:
            raise ValueError(
                f"sample: {name} must be ({rows},) {dtype}, got {tuple(value.shape)} {value.dtype}"
            )
        checked.append(value.contiguous())
    return checked


def _sample(logits, u, temperature, top_k, top_p, min_p):
    return select("sample", logits.device).sample(logits, u, temperature, top_k, top_p, min_p)


def _sample_fake(logits, u, temperature, top_k, top_p, min_p):
    return logits.new_empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits))


def _ids(logits, u, temperature, top_k, top_p, min_p):
    return select("sample", logits.device).sample_ids(logits, u, temperature, top_k, top_p, min_p)


def _ids_fake(logits, u, temperature, top_k, top_p, min_p):
    return logits.new_empty(len(logits), dtype=torch.int64)


def _logprob(logits, ids, temperature, top_k, top_p, min_p):
    return select("sample", logits.device).sampled_logprob(logits, ids, temperature, top_k, top_p, min_p)


def _logprob_fake(logits, ids, temperature, top_k, top_p, min_p):
    return logits.new_empty(len(logits))


def _top(logits, n):
    return select("sample", logits.device).top_logprobs(logits, n)


def _top_fake(logits, n):
    return logits.new_empty(len(logits), n, dtype=torch.int64), logits.new_empty(len(logits), n)


def _adjust(logits, ids, starts, repetition, added, allowed):
    return select("sample", logits.device).adjust_logits(logits, ids, starts, repetition, added, allowed)


def _adjust_fake(logits, ids, starts, repetition, added, allowed):
    return torch.empty_like(logits)


def _uniform(seeds, positions):
    return select("sample", seeds.device).uniform(seeds, positions)


def _uniform_fake(seeds, positions):
    return seeds.new_empty(len(seeds), dtype=torch.float32)


_sample_op = register(
    "sample(Tensor logits, Tensor u, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p)"
    " -> (Tensor, Tensor)",
    _sample,
    _sample_fake,
)
_ids_op = register(
    "sample_ids(Tensor logits, Tensor u, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p) -> Tensor",
    _ids,
    _ids_fake,
)
_logprob_op = register(
    "sampled_logprob(Tensor logits, Tensor ids, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p)"
    " -> Tensor",
    _logprob,
    _logprob_fake,
)
_top_op = register("top_logprobs(Tensor logits, int n) -> (Tensor, Tensor)", _top, _top_fake)
_adjust_op = register(
    "adjust_logits(Tensor logits, Tensor ids, Tensor starts, Tensor repetition, Tensor added, Tensor? allowed)"
    " -> Tensor",
    _adjust,
    _adjust_fake,
)
_uniform_op = register("uniform(Tensor seeds, Tensor positions) -> Tensor", _uniform, _uniform_fake)
