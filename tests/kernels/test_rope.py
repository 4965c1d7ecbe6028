"""Rotary embedding with optional q/k norm on every backend: float64, transformers, positions, compile, opcheck."""

import pytest
import torch
from pyengine.kernels import _native, attention_append, new_pages, rope, rope_append, rope_pages, write_pages
from pyengine.kernels.rope import reference
from pyengine.kernels.rope.table import CHUNK, SHORTEST, table

from tests.numerics import assert_as_good_as_torch

OP = "rope"
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    (1, 1, 1, 2),
    (5, 3, 1, 34),
    (130, 4, 2, 64),
    (2, 6, 6, 128),
    (65, 2, 2, 32),
    (0, 2, 1, 8),
]  # T, H, K, D


def inputs(shape, dtype, device, norm, scale=1.0):
    tokens, heads, kv_heads, dim = shape
    make = torch.Generator().manual_seed(sum(shape))
    tensors = [torch.randn(tokens, h, dim, generator=make) * scale for h in (heads, kv_heads)]
    if norm:
        tensors += [torch.randn(dim, generator=make) for _ in range(2)]
    positions = torch.randint(0, 3000, (tokens,), generator=make, dtype=torch.int32)
    return [t.to(device, dtype).requires_grad_() for t in tensors], positions.to(device)


def joined(q, k):
    """What a projection makes: q, k, and values that are told from both."""
    return torch.cat([q, k, 1 - k], dim=1)


def turn(q, k, positions, *rest, **more):
    """(q, k) through the op."""
    return rope(joined(q, k), q.shape[1], positions, *rest, **more)[:2]


def ours(q, k, positions, weights=(None, None)):
    return turn(q, k, positions, *weights, 10000.0, 1e-6)


def plain(q, k, positions, weights=(None, None)):
    return reference.forward(joined(q, k), q.shape[1], positions, *weights, 10000.0, 1e-6)[:2]


def through(function, tensors, positions):
    """Outputs and gradients of one call, with a fixed random upstream gradient."""
    q, k, *weights = tensors
    outputs = function(q, k, positions, *([weights] if weights else []))
    make = torch.Generator().manual_seed(7)
    loss = sum((o.double() * torch.randn(o.shape, generator=make).to(o.device)).sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(loss, tensors)]


def test_divisors_divide_the_frequencies(backend):
    q, k = (torch.randn(3, 2, 8) for _ in range(2))
    divisors = [1.0, 1.0, 4.0, 8.0]
    turned = turn(q, k, torch.tensor([8, 80, 800], dtype=torch.int32), divisors=divisors)[0]
    slower = turn(q, k, torch.tensor([1, 10, 100], dtype=torch.int32))[0]
    plain = turn(q, k, torch.tensor([8, 80, 800], dtype=torch.int32))[0]
    assert torch.allclose(turned[..., [3, 7]], slower[..., [3, 7]], atol=1e-6)
    assert torch.equal(turned[..., [0, 1, 4, 5]], plain[..., [0, 1, 4, 5]])
    with pytest.raises(ValueError, match="D / 2 = 4 divisors"):
        turn(q, k, torch.zeros(3, dtype=torch.int32), divisors=[1.0])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(backend, shape, dtype, norm):
    tensors, positions = inputs(shape, dtype, backend.device, norm)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    results = [through(f, t, positions) for f, t in ((ours, tensors), (plain, tensors), (plain, wide))]
    names = ["q", "k", "dq", "dk", "dq_weight", "dk_weight"]
    for what, a, b, truth in zip(names, *results, strict=False):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 1e10])
def test_extremes(backend, dtype, scale):
    (q, k, *weights), positions = inputs((3, 2, 1, 48), dtype, backend.device, True, scale)
    with torch.no_grad():
        truth = plain(q.double(), k.double(), positions, [w.double() for w in weights])
        results = ours(q, k, positions, weights), plain(q, k, positions, weights), truth
        for what, a, b, c in zip("qk", *results, strict=True):
            assert_as_good_as_torch(a, b, c, op=OP, what=what, backend=backend)


def test_is_what_transformers_does(backend):
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    (q, k), _ = inputs((50, 4, 2, 64), torch.float32, backend.device, False)
    positions = torch.arange(50, dtype=torch.int32, device=backend.device)
    frequencies = 10000.0 ** (-torch.arange(0, 64, 2, device=backend.device) / 64)
    angles = (positions[:, None] * frequencies).repeat(1, 2)[None]
    theirs = modeling.apply_rotary_pos_emb(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], angles.cos(), angles.sin()
    )
    for a, b in zip(turn(q, k, positions), theirs, strict=True):
        torch.testing.assert_close(a, b[0].transpose(0, 1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_each_other(backend, dtype):
    (q, k, *weights), positions = inputs((70, 3, 1, 32), dtype, backend.device, True)
    with torch.no_grad():
        whole = ours(q, k, positions, weights)
        for rows in (slice(0, 1), slice(3, 5), slice(63, 70)):
            part = ours(q[rows], k[rows], positions[rows], weights)
            assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


def test_threads_do_not_change_bits(backend):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernels have threads of their own")
    tensors, positions = inputs((300, 4, 2, 64), torch.float32, "cpu", True)
    try:
        _native.set_threads(1)
        one = through(ours, tensors, positions)
        _native.set_threads(2)
        two = through(ours, tensors, positions)
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_longer_table_repeats_the_shorter(backend):
    """Positions past the table make it longer; earlier positions keep their bits."""
    theta = 700.0 + sum(map(ord, repr(backend)))  # a table of its own
    short = table(theta, 32, 1)
    assert short.shape == (2, SHORTEST, 16) and SHORTEST % CHUNK == 0
    x = torch.randn(2, 1, 32, device=backend.device)
    positions = torch.tensor([5, SHORTEST], dtype=torch.int32, device=backend.device)
    before = turn(x[:1], x[:1], positions[:1], theta=theta)[0]
    after = turn(x, x, positions, theta=theta)[0]
    assert torch.equal(after[:1], before) and torch.equal(table(theta, 32, 1)[:, :SHORTEST], short)
    truth = plain(x.double(), x.double(), positions)[0]
    assert after.shape == truth.shape and not after.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("dim, norm", [(34, True), (16, False)])
def test_into_pages_is_into_memory_and_then_into_pages(backend, dim, norm, codes, dtype):
    """The same bits in every place, none but theirs, also of what is no number."""
    heads, kv_heads = 3, 2
    make = torch.Generator().manual_seed(dim)
    qkv = torch.randn(5, heads + 2 * kv_heads, dim, generator=make).to(backend.device, dtype)
    qkv[1, heads, 3], qkv[2, -1, 5] = float("nan"), float("inf")
    weights = [torch.randn(dim, generator=make).to(backend.device, dtype) if norm else None for _ in range(2)]
    numbers = [
        torch.tensor(n, dtype=torch.int32, device=backend.device)
        for n in ([0, 1, 2, 9, 1500], [3, 70, 64, 5, 127])
    ]
    arguments = qkv, heads, numbers[0], *weights, 1e4, 1e-6, ()
    ours, truth = (
        [
            part.fill_(7)
            for part in new_pages(2, kv_heads, dim, torch.int8 if codes else dtype, backend.device)
        ]
        for _ in range(2)
    )
    q, k, v = rope(*arguments)
    write_pages(k, v, *truth, numbers[1])
    assert torch.equal(rope_pages(*arguments, *ours, numbers[1]), q)
    assert all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) or torch.allclose(a, b, 0, 0, equal_nan=True)
        for a, b in zip(ours, truth, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 20, 3]], ids=["decoding", "chunks"])
def test_then_attended_is_one_after_the_other(backend, counts, codes, dtype):
    """The same bits in what is attended and in every place, on one thread or several, past the first table too."""
    dim, heads, kv_heads, tokens = 48, 4, 2, sum(counts)
    make = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=make).to(backend.device, dtype)
    weights = torch.randn(2, dim, generator=make).to(backend.device, dtype)
    lengths = [70, 20, 3]
    slots = [128 * r + length - count + i for r, (length, count) in enumerate(zip(lengths, counts, strict=True))
             for i in range(count)]  # fmt: skip
    numbers = [
        torch.tensor(n, dtype=torch.int32, device=backend.device)
        for n in (
            [5000, *range(1, tokens)],
            slots,
            [[0, 1], [2, 3], [4, 5]],
            [0, *torch.tensor(counts).cumsum(0).tolist()],
            lengths,
        )
    ]
    arguments = qkv, heads, numbers[0], *weights, 3e4, 1e-6, ()
    stored = torch.int8 if codes else dtype
    try:
        for threads in (1, 3):
            _native.set_threads(threads)
            ours, truth = (
                [part.fill_(1) for part in new_pages(6, kv_heads, dim, stored, backend.device)] for _ in "ab"
            )
            found = rope_append(*arguments, *ours, *numbers[1:])
            assert torch.equal(found, attention_append(*rope(*arguments), *truth, *numbers[1:]))
            assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    finally:
        _native.set_threads(None)


def test_attended_refuses_what_the_two_refuse(backend):
    if backend.name != "cpu":
        pytest.skip("the others look at no numbers, so as not to wait for them")
    qkv, one = (
        torch.ones(1, 4, 16, device=backend.device),
        torch.ones(1, dtype=torch.int32, device=backend.device),
    )
    pages = new_pages(1, 1, 16, torch.float32, backend.device)
    bounds, zero = torch.tensor([0, 1], dtype=torch.int32, device=backend.device), 0 * one
    good = qkv, 2, zero, None, None, 1e4, 1e-6, (), *pages, zero, zero[None], bounds, one
    rope_append(*good)
    for at, wrong in ((2, zero - 1), (1, 3), (10, zero + 64), (11, zero[None] + 1), (13, one + 64)):
        with pytest.raises(ValueError, match="rope|attention|write_pages"):
            rope_append(*good[:at], wrong, *good[at + 1 :])


def test_non_contiguous_is_copied(backend):
    (q, k), positions = inputs((6, 4, 2, 16), torch.float32, backend.device, False)
    with torch.no_grad():
        qkv = joined(q, k)
        view = qkv.transpose(0, 1).contiguous().transpose(0, 1)
        for a, b in zip(rope(view, 4, positions), rope(qkv, 4, positions), strict=True):
            assert torch.equal(a, b) and a.is_contiguous()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_their_gradients_pass_unchanged(backend, dtype, norm):
    (q, k, *weights), positions = inputs((70, 3, 2, 32), dtype, backend.device, norm)
    qkv = joined(q, k).detach().requires_grad_()
    v = rope(qkv, 3, positions, *weights)[2]
    upstream = torch.randn(v.shape, generator=torch.Generator().manual_seed(7)).to(v)
    (dqkv,) = torch.autograd.grad(v, qkv, upstream)
    assert torch.equal(v, qkv[:, 5:]) and torch.equal(dqkv[:, 5:], upstream) and not dqkv[:, :5].any()


@pytest.mark.parametrize("norm", [False, True])
def test_compiles_whole(backend, norm):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    tensors, positions = inputs((6, 4, 2, 16), torch.float32, backend.device, norm)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for a, b in zip(through(compiled, tensors, positions), through(ours, tensors, positions), strict=True):
        assert torch.equal(a, b)


def test_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("opcheck traces, which Triton's interpreter does not support")
    tensors, positions = inputs((6, 4, 2, 16), torch.float32, backend.device, True)
    q, k, *weights = (t.detach() for t in tensors)
    qkv = joined(q, k)
    torch.library.opcheck(torch.ops.pyengine.rope, (qkv, 4, positions, *weights, 1e4, 1e-6))
    grads = (q, k, 1 - k)
    torch.library.opcheck(torch.ops.pyengine.rope_backward, (*grads, positions, qkv, *weights, 1e4, 1e-6))


def test_refuses_what_does_not_fit(backend):
    qkv = torch.ones(2, 8, 6, device=backend.device)
    positions, w = (
        torch.zeros(2, dtype=torch.int32, device=backend.device),
        torch.ones(6, device=backend.device),
    )
    for arguments, word in [
        ((qkv[..., :5], 4, positions), "D even"),
        ((qkv, 3, positions), "heads"),
        ((qkv, 8, positions), "heads"),
        ((qkv, 4, positions.long()), "int32"),
        ((qkv, 4, positions, w), "both"),
        ((qkv, 4, positions, w[:4], w), "does not fit"),
        ((qkv, 4, positions, w, w.bfloat16()), "k_weight is"),
        ((qkv, 4, positions - 1), "not be negative"),
    ]:
        if backend.name != "cpu" and word == "not be negative":
            continue  # elsewhere it would mean waiting for the device
        with pytest.raises(ValueError, match=word):
            rope(*arguments)
