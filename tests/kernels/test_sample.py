"""Sampling on every backend: the reference's bits, the distribution, filters by hand, bad rows, the hash."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyengine.kernels import (
    _native,
    adjust_logits,
    linear,
    linear_cross_entropy,
    sample,
    sample_ids,
    sampled_logprob,
    top_logprobs,
    uniform,
    use_backend,
)
from pyengine.kernels.sample import reference

from tests.conftest import INTERPRETED

OP = "sample"
NONE = float("-inf")
SETTINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.0, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.8, 50, 0.95), (2.0, 1, 1.0),
            (1.0, 3, 0.0), (0.3, 10_000, 0.999), (5.0, 0, 0.5), (1.0, 0, 1.0, 0.1), (1.5, 20, 0.9, 0.3),
            (2.0, 0, 0.9, 1e-9), (0.9, 0, 1.0, 1.0), (0.0, 5, 0.5, 0.5), (3.0, 4000, 1.0)]  # fmt: skip


def logits(rows, vocabulary, device="cpu", seed=0, spread=3.0):
    make = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=make) * spread).to(device)


def numbers(rows, device="cpu", seed=1):
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)).to(device)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


VOCABULARIES = [1, 2, 63, 64, 1025, 2100 if INTERPRETED else 5000]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_has_the_reference_bits(backend, parameters, vocabulary):
    """Nine kinds of rows. Triton's interpreter takes a second for each 1,024 logits of a row, so there it is two rows,
    others each time: every two of settings, vocabulary and kind of row meet."""
    x = logits(9, vocabulary, backend.device, vocabulary)
    x[1] = 2.5  # all equal
    x[2] = x[2].round()  # many ties
    x[3, vocabulary // 2 :] = NONE if vocabulary > 1 else 1.0
    x[4] *= 30
    u = numbers(9, backend.device)
    u[5], u[6] = 0.0, 1.0 - 2.0**-24
    if backend.variant == "interpreter":
        first = SETTINGS.index(parameters) + 2 * VOCABULARIES.index(vocabulary)
        some = [first % 9, (first + 1) % 9]
        x, u = x[some], u[some]
    ids, logprobs = sample(x, u, *parameters)
    with use_backend("reference"):
        expected = sample(x.cpu(), u.cpu(), *parameters)
    assert torch.equal(ids.cpu(), expected[0]) and torch.equal(logprobs.cpu(), expected[1])
    assert torch.equal(sampled_logprob(x, ids, *parameters), logprobs)
    assert torch.equal(sample_ids(x, u, *parameters), ids)


@settings(
    max_examples=12 if INTERPRETED else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    vocabulary=st.integers(1, 3000),
    spread=st.sampled_from([0.0, 0.01, 1.0, 6.0, 100.0]),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 1.7]),
    top_k=st.integers(0, 3000),
    top_p=st.floats(0.0, 1.0, width=32),
    min_p=st.sampled_from([0.0, 1e-6, 0.01, 0.5]),
    seed=st.integers(0, 1000),
)
def test_has_the_reference_bits_anywhere(backend, vocabulary, spread, temperature, top_k, top_p, min_p, seed):
    x, u = logits(3, vocabulary, backend.device, seed, spread), numbers(3, backend.device, seed)
    ours = sample(x, u, temperature, top_k, top_p, min_p)
    with use_backend("reference"):
        theirs = sample(x.cpu(), u.cpu(), temperature, top_k, top_p, min_p)
    assert torch.equal(ours[0].cpu(), theirs[0]) and torch.equal(ours[1].cpu(), theirs[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "top_k, top_p, min_p",
    [(0, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.7, 0.0), (12, 0.8, 0.0), (0, 1.0, 0.1), (12, 0.9, 0.2)],
)
def test_draws_from_the_filtered_distribution(backend, temperature, top_k, top_p, min_p):
    """Chi-square against a distribution computed in float64 by sorting, and the log-probabilities of it.

    The reference takes a tenth of a second a thousand draws, and all backends have its bits: fewer do for it.
    """
    if backend.variant == "interpreter":
        pytest.skip("a second a draw; the CPU's kernel, whose bits it has, is tested with 20,000")
    row = logits(1, 40, seed=3, spread=1.5)
    draws = 2_000 if backend.name == "reference" else 20_000
    u = uniform(torch.arange(draws), torch.zeros(draws, dtype=torch.int64)).to(backend.device)
    ids, logprobs = sample(row.expand(draws, -1).to(backend.device), u, temperature, top_k, top_p, min_p)
    probability = filtered_by_sorting(row[0].double(), temperature, top_k, top_p, min_p)
    torch.testing.assert_close(logprobs.cpu().double(), probability[ids.cpu()].log(), atol=2e-5, rtol=0)
    expected, seen = probability * draws, ids.cpu().bincount(minlength=40).double()
    assert (seen[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10  # five standard deviations


def filtered_by_sorting(x, temperature, top_k, top_p, min_p):
    p = (x / temperature).softmax(0)
    ordered, places = p.sort(descending=True)
    if top_k:
        ordered[top_k:] = 0
    ordered /= ordered.sum()
    before = ordered.cumsum(0) - ordered  # what is more likely
    ordered[before >= top_p] = 0
    ordered[ordered < min_p * ordered[0]] = 0
    out = torch.empty_like(p)
    out[places] = ordered / ordered.sum()
    return out


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_bad_rows_harm_only_themselves(backend, parameters):
    x, u = logits(6, 700, backend.device), numbers(6, backend.device)
    clean = sample(x, u, *parameters)
    x[1, 650] = float("nan")
    x[2] = NONE
    x[3, 64] = float("inf")
    x[4] = float("nan")
    ids, logprobs = sample(x, u, *parameters)
    assert ids[1:5].tolist() == [-1] * 4 and logprobs[1:5].isnan().all()
    for i in (0, 5):
        assert ids[i] == clean[0][i] and logprobs[i] == clean[1][i]
    assert same(sampled_logprob(x, ids, *parameters), logprobs)
    assert torch.equal(sample_ids(x, u, *parameters), ids)


def test_greedy_takes_the_lowest_of_equals(backend):
    x = logits(3, 300, backend.device)
    x[0, 100] = x[0, 200] = 50.0
    x[1, :] = NONE
    x[1, 299] = -1e30
    x[2, :] = 0.0
    ids, logprobs = sample(x, numbers(3, backend.device), 0.0)
    assert ids.tolist() == [100, 299, 0]
    truth = x.double().log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), truth, atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_each_other_or_on_threads(backend):
    x, u = logits(7, 1500, backend.device), numbers(7, backend.device)
    device = backend.device
    temperature = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 0.9, 1.0], device=device)
    top_k = torch.tensor([0, 3, 0, 20, 0, 1500, 1], dtype=torch.int32, device=device)
    top_p = torch.tensor([1.0, 0.9, 0.5, 1.0, 0.99, 0.3, 1.0], device=device)
    _native.set_threads(1)
    alone = [
        sample(x[i : i + 1], u[i : i + 1], temperature[i : i + 1], top_k[i : i + 1], top_p[i : i + 1])
        for i in range(7)
    ]
    _native.set_threads(2)
    together = sample(x, u, temperature, top_k, top_p)
    _native.set_threads(None)
    for which in (0, 1):
        assert torch.equal(torch.cat([a[which] for a in alone]), together[which])


def test_logprob_is_minus_the_cross_entropy(backend):
    """Rollout and trainer agree to the bit, whatever instruction set: at temperature 1, unfiltered."""
    if backend.name != "cpu":
        pytest.skip("both ops must run on kernels of one machine")
    for vocabulary in (5, 1024, 3001):
        make = torch.Generator().manual_seed(vocabulary)
        x, w = torch.randn(6, 64, generator=make), torch.randn(vocabulary, 64, generator=make)
        ids, logprobs = sample(linear(x, w, out_dtype=torch.float32), numbers(6))
        assert torch.equal(logprobs, -linear_cross_entropy(x, w, ids))


def changes(rows, vocabulary, device, seed=0):
    """Entries for adjust_logits: none in row 0, every id in the last row, some in the others; half the ids."""
    make = torch.Generator().manual_seed(seed)
    counts = [0, *(min(vocabulary, 1 + 5 * r) for r in range(1, rows - 1)), vocabulary][:rows]
    ids = torch.cat([torch.randperm(vocabulary, generator=make)[:n] for n in counts]).int()
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    repetition = 0.5 + torch.rand(len(ids), generator=make)
    added = torch.randn(len(ids), generator=make) * 10
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), generator=make).int()
    words[1 % rows] = -1
    return [t.to(device) for t in (ids, starts, repetition, added, words)]


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 65, 1025, 3000])
def test_adjusting_has_the_reference_bits(backend, vocabulary):
    x = logits(5, vocabulary, backend.device)
    x[2, 0] = NONE
    before = x.clone()
    *entries, allowed = changes(5, vocabulary, backend.device)
    for words in (None, allowed):
        ours = adjust_logits(x, *entries, words)
        with use_backend("reference"):
            theirs = adjust_logits(
                x.cpu(), *(t.cpu() for t in entries), None if words is None else words.cpu()
            )
        assert torch.equal(ours.cpu(), theirs) and torch.equal(x, before)


def test_adjusting_does_what_it_says(backend):
    x = torch.tensor([[1.0, -1.0, 2.0, 0.5], [1.0, -1.0, 2.0, 0.5]], device=backend.device)
    numbers = [[1, 0, 2], [0, 3, 3], [2.0, 2.0, 1.0], [0.25, 0.0, -1.5], [[-1], [0b0101]]]
    types = torch.int32, torch.int32, torch.float32, torch.float32, torch.int32
    entries = [torch.tensor(n, dtype=t, device=backend.device) for n, t in zip(numbers, types, strict=True)]
    assert adjust_logits(x, *entries).tolist() == [[0.5, -1.75, 0.5, 0.5], [1.0, NONE, 2.0, NONE]]


def test_nothing_allowed_harms_only_its_row(backend):
    x, u = logits(3, 100, backend.device), numbers(3, backend.device)
    none = torch.zeros(0, device=backend.device)
    starts, allowed = (
        torch.zeros(4).int().to(x.device),
        torch.tensor([[-1] * 4, [0] * 4, [-1] * 4]).int().to(x.device),
    )
    ids, logprobs = sample(adjust_logits(x, none.int(), starts, none, none, allowed), u)
    clean = sample(x, u)
    assert ids[1] == -1 and logprobs[1].isnan()
    assert ids[::2].tolist() == clean[0][::2].tolist() and logprobs[::2].tolist() == clean[1][::2].tolist()


@pytest.mark.parametrize("vocabulary, n", [(1, 1), (70, 1), (70, 70), (1500, 20), (20_000, 3)])
def test_top_logprobs(backend, vocabulary, n):
    """The reference's bits, ties in order of id, sampled_logprob's bits; bad rows harm only themselves."""
    if backend.variant in ("interpreter", "shim") and vocabulary > 2000:
        pytest.skip("slow here")
    x = logits(6, vocabulary, backend.device)
    x[1] = x[1].round()
    x[2] = 0.5
    if vocabulary > 40:
        x[3, 1], x[4, : vocabulary - 2] = float("nan"), NONE
    ids, logprobs = top_logprobs(x, n)
    with use_backend("reference"):
        expected = top_logprobs(x.cpu(), n)
    assert torch.equal(ids.cpu(), expected[0]) and same(logprobs.cpu(), expected[1])
    for j in {0, n - 1}:
        assert same(sampled_logprob(x, ids[:, j].contiguous()), logprobs[:, j])


def test_long_lists_are_as_exact_as_short_ones():
    """Filters that keep more than a list holds take another road on the CPU."""
    x, u = logits(2, 30_000, spread=0.5), numbers(2)
    for parameters in [
        (1.0, 9_000),
        (1.0, 0, 0.9),
        (1.0, 0, 1.0, 0.02),
        (1.0, 20_000, 0.8, 0.01),
        (1.0, 16_000),
    ]:
        ours = sample(x, u, *parameters)
        with use_backend("reference"):
            theirs = sample(x, u, *parameters)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_an_id_filtered_out_has_no_probability(backend):
    x = torch.tensor([[3.0, 1.0, 2.0]], device=backend.device)
    two = [sampled_logprob(x, torch.tensor([i], device=backend.device), 1.0, 2, 1.0).item() for i in range(3)]
    assert two[1] == NONE and abs(two[0] - two[2] - 1.0) < 1e-6 and two[0] < 0


def test_uniform_is_the_stated_hash(backend):
    """SplitMix64's own first output for seed 0 checks the mixing; the rest is spread evenly and reproducible."""
    seeds = torch.arange(-50, 50).repeat_interleave(100).to(backend.device)
    positions = torch.arange(100).repeat(100).to(backend.device)
    u = uniform(seeds, positions)
    assert torch.equal(u.cpu(), reference.uniform(seeds.cpu(), positions.cpu()))
    assert u.dtype is torch.float32 and 0 <= u.min() and u.max() < 1 and len(u.unique()) > 9900
    assert abs(u.mean().item() - 0.5) < 0.01 and abs(u.var().item() - 1 / 12) < 0.003
    first = uniform(torch.tensor([0], device=backend.device), torch.tensor([0], device=backend.device))
    assert first.item() == (0xE220A8397B1DCDAF >> 40) / 2**24  # mix(0) = 0, so this is SplitMix64(0)
    corner = torch.tensor([2**63 - 1, -(2**63)], device=backend.device)
    assert torch.equal(uniform(corner, corner).cpu(), reference.uniform(corner.cpu(), corner.cpu()))


def test_compiles_whole(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    x, ids = logits(4, 90, backend.device), torch.arange(4, device=backend.device)

    def step(x, ids):
        drawn = sample(x, uniform(ids, ids), 0.9, 20, 0.9)
        return *drawn, sample_ids(x, uniform(ids, ids)), sampled_logprob(x, drawn[0], 0.9, 20, 0.9)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x, ids), step(x, ids), strict=True))


def test_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("opcheck traces, which Triton's interpreter does not support")
    device = backend.device
    x, u, ids = logits(3, 90, device), numbers(3, device), torch.arange(3, device=device)
    parameters = torch.ones(3, device=device), torch.full((3,), 4, dtype=torch.int32, device=device), u, u
    torch.library.opcheck(torch.ops.pyengine.sample, (x, u, *parameters))
    torch.library.opcheck(torch.ops.pyengine.sample_ids, (x, u, *parameters))
    torch.library.opcheck(torch.ops.pyengine.sampled_logprob, (x, ids, *parameters))
    torch.library.opcheck(torch.ops.pyengine.top_logprobs, (x, 2))
    starts, one = torch.arange(4, dtype=torch.int32, device=device), torch.ones(3, device=device)
    torch.library.opcheck(torch.ops.pyengine.adjust_logits, (x, ids.int(), starts, one, one, None))
    torch.library.opcheck(torch.ops.pyengine.uniform, (ids, ids))


def test_empty_and_non_contiguous(backend):
    ids, logprobs = sample(logits(0, 10, backend.device), numbers(0, backend.device))
    assert ids.shape == logprobs.shape == (0,)
    assert sample_ids(logits(0, 10, backend.device), numbers(0, backend.device)).shape == (0,)
    x, u = logits(20, 8, backend.device), numbers(8, backend.device)
    for a, b in zip(sample(x.t(), u), sample(x.t().contiguous(), u), strict=True):
        assert torch.equal(a, b)


def test_refuses_what_does_not_fit():
    x, u = logits(3, 9), numbers(3)
    for arguments, word in [
        ((x[0], u), "logits"),
        ((x.double(), u), "float32 logits"),
        ((x[:, :0], u), "logits"),
        ((x, u[:2]), "u must be"),
        ((x, u, torch.ones(2)), "temperature"),
        ((x, u, 1.0, torch.ones(3)), "top_k"),
    ]:
        for function in (sample, sample_ids):
            with pytest.raises(ValueError, match=word):
                function(*arguments)
    with pytest.raises(ValueError, match="n must be"):
        top_logprobs(x, 10)
    none = torch.zeros(0)
    with pytest.raises(ValueError, match="starts"):
        adjust_logits(x, none.int(), torch.zeros(3).int(), none, none)
    with pytest.raises(ValueError, match="allowed"):
        adjust_logits(x, none.int(), torch.zeros(4).int(), none, none, torch.zeros(3, 2).int())
    with pytest.raises(ValueError, match="ids"):
        sampled_logprob(x, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="positions"):
        uniform(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
