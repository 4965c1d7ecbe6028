"""Sampling in CUDA C++: allocation and the calls into csrc/cuda/sample.cu on the current stream."""

import torch

from .. import _native

TILE, STRANDS = 1024, 16  # of the log-sum-exp's stated order


def sample(logits, u, temperature, top_k, top_p):
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    return ids, _call(logits, u, temperature, top_k, top_p, None, ids)


def sampled_logprob(logits, ids, temperature, top_k, top_p):
    return _call(logits, None, temperature, top_k, top_p, ids, None)


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


def _call(logits, u, temperature, top_k, top_p, given, ids):
    rows, vocabulary = logits.shape
    logprobs = logits.new_empty(rows)
    scratch = logits.new_empty(rows * -(-vocabulary // TILE) * STRANDS * 2)
    _native.launch(
        "sample", None, logits.device,
        _native.address(logits, torch.float32, rows * vocabulary, "cuda"),
        _native.address(u, torch.float32, rows, "cuda"),
        _native.address(temperature, torch.float32, rows, "cuda"),
        _native.address(top_k, torch.int32, rows, "cuda"),
        _native.address(top_p, torch.float32, rows, "cuda"),
        _native.address(given, torch.int64, rows, "cuda"),
        _native.address(ids, torch.int64, rows, "cuda"),
        _native.address(logprobs, torch.float32, rows, "cuda"),
        _native.address(scratch, torch.float32, scratch.numel(), "cuda"),
        rows, vocabulary,
    )  # fmt: skip
    return logprobs
