"""Sampling on every backend: the reference's bits, the distribution, filters by hand, bad rows, the hash."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyengine.kernels import (
    _native,
    linear,
    linear_cross_entropy,
    sample,
    sampled_logprob,
    uniform,
    use_backend,
)
from pyengine.kernels.sample import reference

OP = "sample"
NONE = float("-inf")
SETTINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.0, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.8, 50, 0.95), (2.0, 1, 1.0),
            (1.0, 3, 0.0), (0.3, 10_000, 0.999), (5.0, 0, 0.5)]  # fmt: skip


def logits(rows, vocabulary, device="cpu", seed=0, spread=3.0):
    make = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=make) * spread).to(device)


def numbers(rows, device="cpu", seed=1):
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)).to(device)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 1025, 5000])
@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_has_the_reference_bits(backend, parameters, vocabulary):
    x = logits(9, vocabulary, backend.device, vocabulary)
    x[1] = 2.5  # all equal
    x[2] = x[2].round()  # many ties
    x[3, vocabulary // 2 :] = NONE if vocabulary > 1 else 1.0
    x[4] *= 30
    u = numbers(9, backend.device)
    u[5], u[6] = 0.0, 1.0 - 2.0**-24
    ids, logprobs = sample(x, u, *parameters)
    with use_backend("reference"):
        expected = sample(x.cpu(), u.cpu(), *parameters)
    assert torch.equal(ids.cpu(), expected[0]) and torch.equal(logprobs.cpu(), expected[1])
    assert torch.equal(sampled_logprob(x, ids, *parameters), logprobs)


@settings(
    max_examples=40,
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
    seed=st.integers(0, 1000),
)
def test_has_the_reference_bits_anywhere(backend, vocabulary, spread, temperature, top_k, top_p, seed):
    x, u = logits(3, vocabulary, backend.device, seed, spread), numbers(3, backend.device, seed)
    ours = sample(x, u, temperature, top_k, top_p)
    with use_backend("reference"):
        theirs = sample(x.cpu(), u.cpu(), temperature, top_k, top_p)
    assert torch.equal(ours[0].cpu(), theirs[0]) and torch.equal(ours[1].cpu(), theirs[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (7, 1.0), (0, 0.7), (12, 0.8)])
def test_draws_from_the_filtered_distribution(backend, temperature, top_k, top_p):
    """Chi-square against a distribution computed in float64 by sorting, and the log-probabilities of it."""
    row = logits(1, 40, seed=3, spread=1.5)
    draws = 200 if backend.variant == "interpreter" else 20_000
    u = uniform(torch.arange(draws), torch.zeros(draws, dtype=torch.int64)).to(backend.device)
    ids, logprobs = sample(row.expand(draws, -1).to(backend.device), u, temperature, top_k, top_p)
    probability = filtered_by_sorting(row[0].double(), temperature, top_k, top_p)
    torch.testing.assert_close(logprobs.cpu().double(), probability[ids.cpu()].log(), atol=2e-5, rtol=0)
    expected, seen = probability * draws, ids.cpu().bincount(minlength=40).double()
    assert (seen[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10  # five standard deviations


def filtered_by_sorting(x, temperature, top_k, top_p):
    p = (x / temperature).softmax(0)
    ordered, places = p.sort(descending=True)
    if top_k:
        ordered[top_k:] = 0
    ordered /= ordered.sum()
    before = ordered.cumsum(0) - ordered  # what is more likely
    ordered[before >= top_p] = 0
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
        return *drawn, sampled_logprob(x, drawn[0], 0.9, 20, 0.9)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x, ids), step(x, ids), strict=True))


def test_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("opcheck traces, which Triton's interpreter does not support")
    device = backend.device
    x, u, ids = logits(3, 90, device), numbers(3, device), torch.arange(3, device=device)
    parameters = torch.ones(3, device=device), torch.full((3,), 4, dtype=torch.int32, device=device), u
    torch.library.opcheck(torch.ops.pyengine.sample, (x, u, *parameters))
    torch.library.opcheck(torch.ops.pyengine.sampled_logprob, (x, ids, *parameters))
    torch.library.opcheck(torch.ops.pyengine.uniform, (ids, ids))


def test_empty_and_non_contiguous(backend):
    ids, logprobs = sample(logits(0, 10, backend.device), numbers(0, backend.device))
    assert ids.shape == logprobs.shape == (0,)
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
        with pytest.raises(ValueError, match=word):
            sample(*arguments)
    with pytest.raises(ValueError, match="ids"):
        sampled_logprob(x, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="positions"):
        uniform(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
