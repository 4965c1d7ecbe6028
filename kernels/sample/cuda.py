"""Sampling in CUDA C++: allocation and the calls into csrc/cuda/sample.cu on the current stream."""

import torch

from .. import _native

TILE, STRANDS = 1024, 16  # of the log-sum-exp's stated order


def sample(logits, u, temperature, top_k, top_p, min_p):
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    return ids, _call(logits, u, temperature, top_k, top_p, min_p, None, ids)


def sample_ids(logits, u, temperature, top_k, top_p, min_p):
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    _launch(logits, u, temperature, top_k, top_p, min_p, None, ids, None, None)
    return ids


def sampled_logprob(logits, ids, temperature, top_k, top_p, min_p):
    return _call(logits, None, temperature, top_k, top_p, min_p, ids, None)


def top_logprobs(logits, n):
    rows, vocabulary = logits.shape
    ids, logprobs = logits.new_empty(rows, n, dtype=torch.int64), logits.new_empty(rows, n)
    scratch = _scratch(logits)
    _native.launch(
        "top_logprobs", None, logits.device,
        _native.address(logits, torch.float32, rows * vocabulary, "cuda"),
        _native.address(ids, torch.int64, rows * n, "cuda"),
        _native.address(logprobs, torch.float32, rows * n, "cuda"),
        _native.address(scratch, torch.float32, scratch.numel(), "cuda"),
        rows, vocabulary, n,
    )  # fmt: skip
    return ids, logprobs


def adjust_logits(logits, ids, starts, repetition, added, allowed):
    rows, vocabulary = logits.shape
    out = torch.empty_like(logits)
    _native.launch(
        "adjust_logits", None, logits.device,
        _native.address(logits, torch.float32, rows * vocabulary, "cuda"),
        _native.address(ids, torch.int32, len(ids), "cuda"),
        _native.address(starts, torch.int32, rows + 1, "cuda"),
        _native.address(repetition, torch.float32, len(ids), "cuda"),
        _native.address(added, torch.float32, len(ids), "cuda"),
        _native.address(allowed, torch.int32, rows * -(-vocabulary // 32), "cuda"),
        _native.address(out, torch.float32, rows * vocabulary, "cuda"),
        rows, vocabulary,
    )  # fmt: skip
    return out


def uniform(seeds, positions):
    rows = len(seeds)
    u = seeds.new_empty(rows, dtype=torch.float32)
    _native.launch(
        "uniform", None, seeds.device,
        _native.address(seeds, torch.int64, rows, "cuda"),
        _native.address(positions, torch.int64, rows, "cuda"),
        _native.address(u, torch.float32, rows, "cuda"),
        rows,
    )  # fmt: skip
    return u


def _scratch(logits):
    return logits.new_empty(len(logits) * -(-logits.shape[1] // TILE) * STRANDS * 2)


def _call(logits, u, temperature, top_k, top_p, min_p, given, ids):
    logprobs = logits.new_empty(len(logits))
    _launch(logits, u, temperature, top_k, top_p, min_p, given, ids, logprobs, _scratch(logits))
    return logprobs


def _launch(logits, u, temperature, top_k, top_p, min_p, given, ids, logprobs, scratch):
    rows, vocabulary = logits.shape
    _native.launch(
        "sample", None, logits.device,
        _native.address(logits, torch.float32, rows * vocabulary, "cuda"),
        _native.address(u, torch.float32, rows, "cuda"),
        _native.address(temperature, torch.float32, rows, "cuda"),
        _native.address(top_k, torch.int32, rows, "cuda"),
        _native.address(top_p, torch.float32, rows, "cuda"),
        _native.address(min_p, torch.float32, rows, "cuda"),
        _native.address(given, torch.int64, rows, "cuda"),
        _native.address(ids, torch.int64, rows, "cuda"),
        _native.address(logprobs, torch.float32, rows, "cuda"),
        _native.address(scratch, torch.float32, 0 if scratch is None else scratch.numel(), "cuda"),
        rows, vocabulary,
    )  # fmt: skip
