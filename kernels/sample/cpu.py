"""Sampling on the CPU: allocation and the calls into csrc/cpu/sample.cpp."""

import torch

from .. import _native


def sample(logits, u, temperature, top_k, top_p, min_p):
    logprobs = torch.empty(len(logits))
    return _draw(logits, u, temperature, top_k, top_p, min_p, logprobs), logprobs


def sample_ids(logits, u, temperature, top_k, top_p, min_p):
    return _draw(logits, u, temperature, top_k, top_p, min_p, None)


def _draw(logits, u, temperature, top_k, top_p, min_p, logprobs):
    rows, vocabulary = logits.shape
    ids = torch.empty(rows, dtype=torch.int64)
    _native.cpu.sample(
        _native.address(logits, torch.float32, rows * vocabulary),
        _native.address(u, torch.float32, rows),
        *_parameters(rows, temperature, top_k, top_p, min_p),
        _native.address(ids, torch.int64, rows),
        _native.address(logprobs, torch.float32, rows),
        rows, vocabulary, _native.threads(),
    )  # fmt: skip
    return ids


def sampled_logprob(logits, ids, temperature, top_k, top_p, min_p):
    rows, vocabulary = logits.shape
    logprobs = torch.empty(rows)
    _native.cpu.sampled_logprob(
        _native.address(logits, torch.float32, rows * vocabulary),
        _native.address(ids, torch.int64, rows),
        *_parameters(rows, temperature, top_k, top_p, min_p),
        _native.address(logprobs, torch.float32, rows),
        rows, vocabulary, _native.threads(),
    )  # fmt: skip
    return logprobs


def top_logprobs(logits, n):
    rows, vocabulary = logits.shape
    ids, logprobs = torch.empty(rows, n, dtype=torch.int64), torch.empty(rows, n)
    _native.cpu.top_logprobs(
        _native.address(logits, torch.float32, rows * vocabulary),
        _native.address(ids, torch.int64, rows * n),
        _native.address(logprobs, torch.float32, rows * n),
        rows, vocabulary, n, _native.threads(),
    )  # fmt: skip
    return ids, logprobs


def adjust_logits(logits, ids, starts, repetition, added, allowed):
    rows, vocabulary = logits.shape
    out = torch.empty_like(logits)
    _native.cpu.adjust_logits(
        _native.address(logits, torch.float32, rows * vocabulary),
        _native.address(ids, torch.int32, len(ids)),
        _native.address(starts, torch.int32, rows + 1),
        _native.address(repetition, torch.float32, len(ids)),
        _native.address(added, torch.float32, len(ids)),
        _native.address(allowed, torch.int32, rows * -(-vocabulary // 32)),
        _native.address(out, torch.float32, rows * vocabulary),
        rows, vocabulary, _native.threads(),
    )  # fmt: skip
    return out


def uniform(seeds, positions):
    u = torch.empty(len(seeds))
    _native.cpu.uniform(
        _native.address(seeds, torch.int64, len(seeds)),
        _native.address(positions, torch.int64, len(seeds)),
        _native.address(u, torch.float32, len(seeds)),
        len(seeds),
    )
    return u


def _parameters(rows, temperature, top_k, top_p, min_p):
    return (
        _native.address(temperature, torch.float32, rows),
        _native.address(top_k, torch.int32, rows),
        _native.address(top_p, torch.float32, rows),
        _native.address(min_p, torch.float32, rows),
    )
