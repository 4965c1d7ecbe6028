"""Attention on every backend: against float64, packed, paged bit for bit, garbage in pages, compile, opcheck."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyengine.kernels import (
    PAGE_SIZE,
    _native,
    attention,
    attention_append,
    attention_paged,
    new_pages,
    write_pages,
)
from pyengine.kernels._select import select
from pyengine.kernels.attention import reference

from tests.conftest import INTERPRETED
from tests.numerics import assert_as_good_as_torch

OP = "attention"
DTYPES = [torch.float32, torch.bfloat16]
# (document lengths, H, K, D)
CASES = [
    ([1], 1, 1, 1),
    ([5, 0, 70], 4, 2, 33),
    ([64], 3, 3, 32),
    ([65, 63, 1], 6, 2, 64),
    ([130, 2], 8, 1, 16),
    ([200], 2, 2, 128),
    ([3, 150], 7, 7, 7),
    ([], 2, 1, 8),
]


def inputs(lengths, heads, kv_heads, dim, dtype, device="cpu", seed=0):
    make = torch.Generator().manual_seed(seed + sum(lengths) + dim)
    tensors = [torch.randn(sum(lengths), h, dim, generator=make) for h in (heads, kv_heads, kv_heads)]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return [t.to(device, dtype).requires_grad_() for t in tensors], bounds.to(device)


def through(function, tensors, bounds):
    """Output and gradients of one call, with a fixed random upstream gradient."""
    out = function(*tensors, bounds, tensors[0].shape[-1] ** -0.5)
    make = torch.Generator().manual_seed(7)
    dout = torch.randn(out.shape, generator=make).to(out.device, out.dtype)
    return [out, *torch.autograd.grad(out, tensors, dout)]


def plain(q, k, v, bounds, scale):
    """Plain torch, every step in the inputs' own type."""
    outs, group = [q[:0] + k.sum() + v.sum()], q.shape[1] // k.shape[1]
    for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        qh, kh, vh = (t[a:b].transpose(0, 1) for t in (q, k, v))
        later = torch.ones(b - a, b - a, dtype=torch.bool, device=q.device).triu(1)
        scores = (qh @ kh.repeat_interleave(group, 0).mT * scale).masked_fill(later, float("-inf"))
        outs.append((scores.softmax(-1) @ vh.repeat_interleave(group, 0)).transpose(0, 1))
    return torch.cat(outs)


def fused(q, k, v, bounds, scale):
    """torch's own fused attention, which like ours keeps one rounded number a row for its backward."""
    heads_first = [t.transpose(0, 1)[None] for t in (q, k, v)]
    outs = [
        F.scaled_dot_product_attention(
            *(t[:, :, a:b] for t in heads_first), is_causal=True, scale=scale, enable_gqa=True
        )
        for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    ]
    return torch.cat(outs, 2)[0].transpose(0, 1)


def check(tensors, bounds, backend, theirs=plain):
    wide = [t.detach().double().requires_grad_() for t in tensors]
    results = [through(f, t, bounds) for f, t in ((attention, tensors), (theirs, tensors), (plain, wide))]
    for what, a, b, truth in zip(["out", "dq", "dk", "dv"], *results, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_good_as_torch(backend, case, dtype):
    check(*inputs(*case, dtype, backend.device), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-10, 8.0])
def test_extremes(backend, dtype, scale):
    """Scores near zero, and scores of some hundreds: weights of almost exactly one and zero."""
    tensors, bounds = inputs([90], 2, 1, 32, dtype, backend.device)
    with torch.no_grad():
        for t in tensors[:2]:
            t *= scale
    check(tensors, bounds, backend, fused)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-7), (torch.bfloat16, 3.1e-6)])
def test_weights_keep_their_bounds(backend, dtype, bound):
    """Of two keys the second row weighs the first e^-x: the log of its sum holds that before it is rounded to bf16.

    A sum of 1 to 2 and its logarithm are each rounded by up to 2^-24.
    """
    if backend.name != "cpu":
        pytest.skip("a bound of the CPU's exponential")
    x = torch.linspace(0, 3, 385).to(dtype)
    k = torch.stack([-x, 0 * x], 1).view(-1, 1, 1)
    bounds = torch.arange(0, len(k) + 1, 2, dtype=torch.int32)
    lse = select(OP, k.device).forward(torch.ones_like(k), k, torch.zeros_like(k), bounds, 1.0)[1]
    weights, exact = lse[1::2, 0].double().expm1(), (-x.double()).exp()
    assert ((weights - exact).abs() <= bound * exact + 4 * 2**-24).all()


def paged(tensors, lengths, chunks, seed=0, kept=None):
    """attention() by way of pages: each document written and queried in chunks, all requests advancing together.

    `chunks` yields the number of tokens a request takes in a turn. Every second turn writes and attends as one
    op, from keys and values that lie side by side. Pages are dealt in random order from memory
    that holds NaN, and the unused page of every request's table is out of range. kept: the type of the pages'
    numbers, by default the tensors'.
    """
    q, k, v = (t.detach() for t in tensors)
    make = torch.Generator().manual_seed(seed)
    need = [-(-n // PAGE_SIZE) for n in lengths]
    k_pages, v_pages = new_pages(sum(need) + 1, k.shape[1], k.shape[2], kept or k.dtype, k.device)
    for pages in (k_pages, v_pages):
        pages.fill_(255 if kept else float("nan"))  # four bytes of 255 are a NaN too
    free = torch.randperm(sum(need) + 1, generator=make).tolist()
    tables = [[free.pop() for _ in range(n)] for n in need]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    done, turns, out = [0] * len(lengths), 0, torch.full_like(q, float("nan"))
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        turn = [(r, min(next(chunks), n - done[r])) for r, n in enumerate(lengths) if done[r] < n]
        turn = [turn[i] for i in torch.randperm(len(turn), generator=make).tolist()]
        rows = torch.cat([torch.arange(starts[r] + done[r], starts[r] + done[r] + n) for r, n in turn])
        slots = [
            tables[r][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE
            for r, n in turn
            for p in range(done[r], done[r] + n)
        ]
        for r, n in turn:
            done[r] += n
        device = q.device
        rows = rows.to(device)
        slots = torch.tensor(slots, dtype=torch.int32, device=device)
        width = max(need) + 1
        table = torch.tensor([(tables[r] + [1 << 30] * width)[:width] for r, _ in turn], dtype=torch.int32)
        queries = torch.tensor([0] + [n for _, n in turn], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        contexts = torch.tensor([done[r] for r, _ in turn], dtype=torch.int32)
        arguments = [t.to(device) for t in (table, queries, contexts)]
        turns += 1
        if turns % 2:
            both = torch.cat([k[rows], v[rows]], dim=1).split(k.shape[1], dim=1)
            out[rows] = attention_append(q[rows], *both, k_pages, v_pages, slots, *arguments)
        else:
            write_pages(k[rows], v[rows], k_pages, v_pages, slots)
            out[rows] = attention_paged(q[rows], k_pages, v_pages, *arguments)
    return out


def one_by_one():
    while True:
        yield 1


def test_paged_is_as_good(backend):
    """The reference need not have equal bits, only equal meaning; the next test is for the others."""
    for dtype in DTYPES:
        tensors, bounds = inputs([70, 3], 4, 2, 32, dtype, backend.device)
        truth = plain(*(t.detach().double() for t in tensors), bounds, 32**-0.5)
        ours = paged(tensors, [70, 3], one_by_one())
        theirs = plain(*(t.detach() for t in tensors), bounds, 32**-0.5)
        assert_as_good_as_torch(ours, theirs, truth, op=OP, what="paged", backend=backend)


@settings(
    max_examples=4 if INTERPRETED else 12,  # ten seconds and more each
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    shape=st.sampled_from([(1, 1, 32), (4, 2, 33), (6, 1, 16), (3, 3, 128), (7, 7, 5)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_paged_has_the_same_bits(backend, lengths, shape, dtype, seed):
    if backend.name == "reference":
        pytest.skip("plain torch promises no bits")
    tensors, bounds = inputs(lengths, *shape, dtype, backend.device, seed)
    whole = undivided(tensors, bounds, lengths, backend)
    random = torch.Generator().manual_seed(seed)

    def chunks():
        while True:
            yield int(torch.randint(1, 100, (1,), generator=random))

    try:
        for threads in backend.threads:
            _native.set_threads(threads)
            assert torch.equal(paged(tensors, lengths, chunks(), seed), whole)
    finally:
        _native.set_threads(None)


def undivided(tensors, bounds, lengths, backend):
    """What every way through the pages must give: the packed op's rows, in Triton those of tokens taken singly.

    A tensor core adds up a tile of 128 queries otherwise than one of 16, so Triton promises the pages alone.
    """
    if backend.name == "triton":
        return paged(tensors, lengths, one_by_one(), seed=99)
    with torch.no_grad():
        return attention(*tensors, bounds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_has_the_same_bits(backend, dtype):
    if backend.name == "reference":
        pytest.skip("plain torch promises no bits")
    tensors, bounds = inputs([67, 130], 4, 2, 64, dtype, backend.device)
    whole = undivided(tensors, bounds, [67, 130], backend)
    assert torch.equal(paged(tensors, [67, 130], one_by_one()), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_spans_are_folded_in_one_order(backend, dtype, monkeypatch):
    """Whoever computes the spans of a row: one program, or several and a second kernel."""
    if backend.name != "triton":
        pytest.skip("only Triton's kernel cuts a context into spans")
    triton = import_module("pyengine.kernels.attention.triton")
    monkeypatch.setattr(triton, "span_pages", lambda width: 2)
    lengths, (heads, kv_heads, dim) = [450, 1, 129], (6, 2, 33)
    (_, k, v), _ = inputs(lengths, heads, kv_heads, dim, dtype, backend.device)
    pages = new_pages(12, kv_heads, dim, dtype, backend.device)
    for part in pages:
        part.fill_(float("nan"))
    table = torch.tensor(
        [[9, 4, 0, 7, 2, 1, 3, 8], [5, *[99] * 7], [10, 6, 11, *[99] * 5]], dtype=torch.int32
    )
    slots = [
        row[i // 64] * 64 + i % 64 for row, n in zip(table.tolist(), lengths, strict=True) for i in range(n)
    ]
    write_pages(k.detach(), v.detach(), *pages, torch.tensor(slots, dtype=torch.int32, device=backend.device))
    q = torch.randn(5, heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype).to(backend.device)
    numbers = table, torch.tensor([0, 1, 2, 5], dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
    numbers = [t.to(backend.device) for t in numbers]
    results = []
    for programs in (1, 25, 10_000):  # one program a row and kv head, three, one for each span
        monkeypatch.setattr(triton, "PROGRAMS", programs)
        results.append(attention_paged(q, *pages, *numbers))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    alone = attention_paged(q[:1], *pages, numbers[0][:1], numbers[1][:2], numbers[2][:1])
    assert torch.equal(alone, results[0][:1])
    own = [q.split([1, 1, 3]), *(t.detach().split(lengths) for t in (k, v))]
    truth, plain = (
        torch.cat([
            reference._rows(*(t.to(wide) for t in request), dim**-0.5)[0]
            for request in zip(*own, strict=True)
        ])
        for wide in (torch.float64, dtype)
    )  # fmt: skip
    assert_as_good_as_torch(results[0], plain, truth, op=OP, what="paged", backend=backend)


def as_codes(tensors, backend):
    """One document written into pages of codes: (pages, arguments of attention_paged for all of its rows)."""
    q, k, v = (t.detach() for t in tensors)
    tokens, kv_heads, dim = k.shape
    count = -(-tokens // PAGE_SIZE)
    pages = [part.fill_(255) for part in new_pages(count, kv_heads, dim, torch.int8, backend.device)]
    write_pages(k, v, *pages, torch.arange(tokens, dtype=torch.int32))
    numbers = torch.arange(count, dtype=torch.int32)[None], torch.tensor([0, tokens], dtype=torch.int32)
    return pages, (*numbers, torch.tensor([tokens], dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 33, 64, 130])
def test_codes_are_the_references(backend, dim, dtype):
    """Equal numbers and scales, also of zeros, of the smallest and largest numbers, and of what is no number."""
    tensors, _ = inputs([70], 4, 2, dim, dtype)
    # Triton's interpreter widens the bfloat16 numbers under 2^-126 to zero
    tiny = 1e-30 if backend.variant == "interpreter" and dtype is torch.bfloat16 else 1e-40
    with torch.no_grad():
        for t in tensors[1:]:
            t[1], t[2], t[3] = 0, t[2] * tiny, t[3].sign() * 3e38
        tensors[1][4, 0, 0], tensors[2][5, 1, dim // 2] = float("nan"), float("-inf")
    ours, _ = as_codes(tensors, backend)
    truth = [t.fill_(255) for t in new_pages(2, 2, dim, torch.int8)]
    reference.write_pages(*(t.detach() for t in tensors[1:]), *truth, torch.arange(70, dtype=torch.int32))
    for a, b in zip(*(reference.read_pages(*pages, 70, dim) for pages in (ours, truth)), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        assert a.isnan().all(-1).nonzero().tolist() == [[4, 0], [5, 1]]  # the key and the value of either
    for (_, a), (_, b) in zip(reference._views(*ours), reference._views(*truth), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [(200, 6, 2, 64), (70, 4, 2, 33), (130, 7, 7, 5), (100, 16, 1, 128)], ids=str
)
def test_codes_within_the_stated_bound(backend, case, dtype):
    """docs/numerics.md: what reading codes may add to the error, over float64 on the numbers they stand for."""
    tokens, heads, kv_heads, dim = case
    tensors, bounds = inputs([tokens], heads, kv_heads, dim, dtype)
    pages, numbers = as_codes(tensors, backend)
    ours = attention_paged(tensors[0].detach(), *pages, *numbers).double()
    k, v = (t.double() for t in reference.read_pages(*pages, tokens, dim))
    q, scale, group = tensors[0].detach().double(), dim**-0.5, heads // kv_heads
    truth = reference._rows(q, k, v, scale)[0]
    score = q.abs().amax(-1) / 32512 * scale * k.abs().sum(-1).amax(0).repeat_interleave(group)
    most = v.abs().amax((0, 2)).repeat_interleave(group)
    bound = ((torch.expm1(2 * score) + 64 / 32512 + 1e-5) * most)[..., None]
    rounding = truth.abs() / 256 if dtype is torch.bfloat16 else 0
    if backend.variant == "interpreter" and dtype is torch.bfloat16:
        rounding = rounding + most[:, None] / 256  # it cuts weights off where the hardware rounds them
    assert ((ours - truth).abs() <= bound + rounding).all()
    exact = plain(*(t.detach().double() for t in tensors), bounds, scale)
    assert (ours - exact).norm() < 0.015 * exact.norm()
    if dtype is torch.float32:  # seldom does it all add up
        assert (ours - truth).norm() < 2e-4 * truth.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 2, 33), (16, 1, 16), (3, 3, 128)], ids=str)
def test_codes_have_the_same_bits_in_any_chunks(backend, shape, dtype):
    if backend.name == "reference":
        pytest.skip("plain torch promises no bits")
    lengths = [130, 1, 67]
    if backend.variant in ("interpreter", "shim"):
        lengths = [66, 1, 5]  # seconds a token
    tensors, _ = inputs(lengths, *shape, dtype)
    random = torch.Generator().manual_seed(5)

    def chunks():
        while True:
            yield int(torch.randint(1, 100, (1,), generator=random))

    whole = paged(tensors, lengths, iter([1000] * 9), kept=torch.int8)
    assert whole.isfinite().all()
    try:
        for threads in backend.threads:
            _native.set_threads(threads)
            assert torch.equal(paged(tensors, lengths, chunks(), threads, torch.int8), whole)
            assert torch.equal(paged(tensors, lengths, one_by_one(), threads, torch.int8), whole)
    finally:
        _native.set_threads(None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_no_number_among_codes_spoils_only_who_sees_it(backend, part, bad):
    if backend.name == "reference":
        pytest.skip("plain torch multiplies later values with zero")
    tensors, _ = inputs([100], 4, 2, 32, torch.float32)
    pages, numbers = as_codes(tensors, backend)
    clean = attention_paged(tensors[0].detach(), *pages, *numbers)
    with torch.no_grad():
        tensors[part][70, 1, 3] = bad
    pages, numbers = as_codes(tensors, backend)
    dirty = attention_paged(tensors[0].detach(), *pages, *numbers)
    spoiled = torch.zeros(100, 4, dtype=torch.bool)
    if part == 0:
        spoiled[70, 1] = True
    else:
        spoiled[70:, 2:] = True
    assert dirty[spoiled].isnan().all() and torch.equal(clean[~spoiled], dirty[~spoiled])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_leaks_backwards_or_across(backend, dtype, bad):
    if backend.name == "reference":
        pytest.skip("plain torch multiplies later values with zero")
    (q, k, v), bounds = inputs([40, 80, 70], 4, 2, 32, dtype, backend.device)
    with torch.no_grad():
        clean = attention(q, k, v, bounds)
        for t in (k, v):
            t[40 + 30] = bad
        dirty = attention(q, k, v, bounds)
    untouched = torch.ones(190, dtype=torch.bool)
    # a tensor core multiplies the later values of a query's tile with zero: there other documents alone are safe
    untouched[40 + (0 if backend.name in ("triton", "cuda", "hopper") else 30) : 40 + 80] = False
    assert torch.equal(clean[untouched], dirty[untouched])
    assert dirty[40 + 30 : 40 + 80].isnan().any(-1).all()


def test_a_query_that_overflows_spoils_only_itself(backend):
    (q, k, v), bounds = inputs([130], 2, 1, 32, torch.float32, backend.device)
    with torch.no_grad():
        clean = attention(q, k, v, bounds)
        q[70] = float("nan")
        dirty = attention(q, k, v, bounds)
    assert torch.equal(clean[:70], dirty[:70]) and torch.equal(clean[71:], dirty[71:])
    assert dirty[70].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_documents_and_threads_do_not_change_bits(backend, dtype):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernels have threads of their own")
    lengths = [70, 1, 64, 300, 129]  # together the longest is shared by threads, the short ones have one each
    tensors, bounds = inputs(lengths, 4, 2, 32, dtype)
    dout = torch.randn(sum(lengths), 4, 32, generator=torch.Generator().manual_seed(7)).to(dtype)

    def everything(threads, a=0, b=None, bounds=bounds):
        _native.set_threads(threads)
        part = [t.detach()[a:b].requires_grad_() for t in tensors]
        out = attention(*part, bounds)
        return [out, *torch.autograd.grad(out, part, dout[a:b])]

    try:
        one, two = everything(1), everything(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
            # Shared, being all there is.
            alone = everything(2, a, b, torch.tensor([0, b - a], dtype=torch.int32))
            assert all(torch.equal(x, y[a:b]) for x, y in zip(alone, one, strict=True))
    finally:
        _native.set_threads(None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_share_the_heads_of_one_request(backend, dtype):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernels have threads of their own")
    tensors, bounds = inputs([67], 10, 5, 64, dtype)
    try:
        for threads in (1, 2, 3, 4, 7):
            _native.set_threads(threads)
            whole = undivided(tensors, bounds, [67], backend)
            assert torch.equal(paged(tensors, [67], one_by_one()), whole)
    finally:
        _native.set_threads(None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_races(backend, dtype):
    """One call of each kernel, small enough to run with every GPU thread as a thread of the system."""
    tensors, bounds = inputs([70, 3], 2, 1, 16, dtype, backend.device)
    through(attention, tensors, bounds)
    for kept in (None, torch.int8):
        assert paged(tensors, [70, 3], iter([66, 2, 9, 9]), kept=kept).isfinite().all()


def test_non_contiguous_is_copied(backend):
    (q, k, v), bounds = inputs([20], 4, 2, 16, torch.float32, backend.device)
    with torch.no_grad():
        views = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v)]
        assert torch.equal(attention(*views, bounds), attention(q, k, v, bounds))


def test_compiles_whole(backend):
    if backend.variant in ("interpreter", "shim"):
        pytest.skip("tracing needs the real backend, not its emulation")
    tensors, bounds = inputs([9, 70], 4, 2, 16, torch.float32, backend.device)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for a, b in zip(through(compiled, tensors, bounds), through(attention, tensors, bounds), strict=True):
        assert torch.equal(a, b)


def test_opcheck(backend):
    if backend.variant in ("interpreter", "shim"):
        pytest.skip("tracing needs the real backend, not its emulation")
    tensors, bounds = inputs([9, 66], 4, 2, 16, torch.float32, backend.device)
    q, k, v = (t.detach() for t in tensors)
    out, lse = torch.ops.pyengine.attention(q, k, v, bounds, 0.25)
    pages = [p.zero_() for p in new_pages(2, 2, 16, torch.float32, backend.device)]
    numbers = [torch.tensor(n, dtype=torch.int32, device=backend.device) for n in ([[0, 1]], [0, 75], [75])]
    slots = torch.arange(75, dtype=torch.int32, device=backend.device)
    torch.library.opcheck(torch.ops.pyengine.attention, (q, k, v, bounds, 0.25))
    torch.library.opcheck(torch.ops.pyengine.attention_backward, (out, q, k, v, out, lse, bounds, 0.25))
    torch.library.opcheck(torch.ops.pyengine.write_pages, (k, v, *pages, slots))
    torch.library.opcheck(torch.ops.pyengine.attention_paged, (q, *pages, *numbers, 0.25))
    torch.library.opcheck(torch.ops.pyengine.attention_append, (q, k, v, *pages, slots, *numbers, 0.25))


def test_refuses_what_does_not_fit(backend):
    (q, k, v), bounds = inputs([8], 4, 2, 16, torch.float32, backend.device)
    wrong = torch.tensor([0, 9], dtype=torch.int32, device=backend.device)
    for arguments, word in [
        ((q, k[:, :, :8], v, bounds), "q \\(T, H, D\\)"),
        ((q[:, :3], k, v, bounds), "dividing"),
        ((q.double(), k.double(), v.double(), bounds), "float32 or bfloat16"),
        ((q, k, v, bounds.long()), "int32"),
        ((q, k, v, wrong), "rise from 0 to 8"),
    ]:
        with pytest.raises(ValueError, match=word):
            attention(*arguments)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize("dim", [20, 64])
def test_tokens_written_together_are_as_alone(dtype, dim):
    tokens = 90
    (_, k, v), _ = inputs([tokens], 2, 2, dim, torch.float32 if dtype is torch.int8 else dtype)
    k, v = k.detach(), v.detach()
    # over a page's end, and one backwards
    runs = [range(45, 100), range(130, 147), range(20, 17, -1), range(0, 15)]
    slots = torch.tensor([slot for run in runs for slot in run], dtype=torch.int32)
    assert len(slots) == tokens
    together, alone = ([p.zero_() for p in new_pages(3, 2, dim, dtype)] for _ in range(2))
    write_pages(k, v, *together, slots)
    for t in range(tokens):
        write_pages(k[t : t + 1], v[t : t + 1], *alone, slots[t : t + 1])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_refuses_pages_that_do_not_exist():
    (q, k, v), _ = inputs([8], 4, 2, 16, torch.float32)
    pages = new_pages(1, 2, 16, torch.float32)
    numbers = lambda *lists: [torch.tensor(n, dtype=torch.int32) for n in lists]  # noqa: E731
    with pytest.raises(ValueError, match="slot 64 of token 7"):
        write_pages(k.detach(), v.detach(), *pages, torch.arange(57, 65, dtype=torch.int32))
    for table, starts, contexts in [([[1]], [0, 8], [8]), ([[0]], [0, 8], [7]), ([[0]], [0, 7], [8])]:
        with pytest.raises(ValueError, match="request 0"):
            attention_paged(q.detach(), *pages, *numbers(table, starts, contexts))


@pytest.mark.parametrize(
    "contexts, slot, word", [([8, 8], 64, "slot 64 of token 1"), ([8, 65], 9, "request 1")]
)
def test_an_append_that_is_refused_writes_nothing(contexts, slot, word):
    (q, k, v), _ = inputs([2], 4, 2, 16, torch.float32)
    pages = [p.zero_() for p in new_pages(1, 2, 16, torch.float32)]
    numbers = [torch.tensor(n, dtype=torch.int32) for n in ([[0], [0]], [0, 1, 2], contexts)]
    with pytest.raises(ValueError, match=word):
        attention_append(
            *(t.detach() for t in (q, k, v)), *pages, torch.tensor([7, slot], dtype=torch.int32), *numbers
        )
    assert not any(p.any() for p in pages)
