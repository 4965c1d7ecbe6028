"""A captured step is the step: the same kernels on new inputs, and nothing silently left out."""

import pytest
import torch
from pyengine.kernels import _native, new_pages, rmsnorm, write_pages
from pyengine.kernels._capture import LENT, Arena, capture


@pytest.mark.parametrize("isa", _native.runnable())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_computes_on_new_inputs(isa, dtype):
    before = _native.isa
    _native.use_isa(isa)
    try:
        x, residual = torch.randn(5, 67).to(dtype), torch.randn(5, 67)
        weight = torch.randn(67).to(dtype)
        with capture() as step:
            first, summed = rmsnorm(x, weight, 1e-3, residual)
            y = rmsnorm(first.view(5, 67), weight)
        suffix = _native.SUFFIX[dtype]
        assert step.names == [f"rmsnorm_forward_{suffix}_{suffix}"] * 2
        for _ in range(3):
            x.copy_(torch.randn(5, 67))
            step.replay()
            expected, expected_sum = rmsnorm(x, weight, 1e-3, residual)
            assert torch.equal(summed, expected_sum)
            assert torch.equal(y, rmsnorm(expected, weight))
    finally:
        _native.use_isa(before)


def test_memory_of_a_step_outlives_the_block():
    x, weight = torch.randn(8, 4096), torch.ones(4096)

    def norms():
        y = x
        for _ in range(10):
            y = rmsnorm(y, weight)  # the one before is dropped, and its place is used again
        return y

    arena = Arena(4 * x.nbytes)
    with capture(arena) as step:
        y = norms()
    truth = y.clone()
    assert arena.holds(y) and torch.equal(truth, norms())
    rubbish = [torch.full((8, 4096), float("nan")) for _ in range(8)]
    step.replay()
    assert torch.equal(y, truth) and len(rubbish) == 8
    with capture(arena) as other:
        z = norms()
    other.replay()
    assert torch.equal(y, truth) and torch.equal(z, truth), "what is held is not given away"
    before = sum(size for _, size in arena._free)
    del y, z
    assert sum(size for _, size in arena._free) == before + 2 * x.nbytes


def test_an_arena_lends_places_to_large_tensors():
    arena, small, large = Arena(4 * LENT), LENT // 4 - 1, LENT // 4
    with arena.lending():
        lent = torch.empty(large), torch.empty_like(torch.zeros(large)), torch.zeros(1).new_empty(large)
        own = torch.empty(small), torch.zeros(large) + 1
        last, late = torch.empty(large), torch.empty(large)
    assert all(arena.holds(t) for t in (*lent, last)) and not any(arena.holds(t) for t in (*own, late))
    assert arena.overflowed, "what finds no room is the allocator's"
    place = lent[1].data_ptr()
    del lent
    with arena.lending():
        assert torch.empty(large, dtype=torch.float32).data_ptr() <= place, "a place that was left"
    assert not arena.holds(torch.empty(large))


def test_a_step_keeps_what_it_touches_once():
    weight = torch.ones(8, 67)
    with capture() as step:
        kept = [rmsnorm(weight, row) for row in weight]
    assert len(kept) == 8 and sum(part.data_ptr() == weight.data_ptr() for part in step.kept[1:]) == 1
    assert step.nbytes == 8 * (len(step._words) + len(step.names) + len(step.kept))


def test_what_a_replay_would_miss_is_refused():
    x, weight = torch.randn(5, 67), torch.ones(67)
    with pytest.raises(RuntimeError, match="mul"), capture():
        rmsnorm(x * 2, weight)
    assert not hasattr(_native.cpu, "_step"), "the recorder is gone"
    assert rmsnorm(x * 2, weight).shape == x.shape


def test_row_moves_are_replayed():
    table, ids = torch.randn(9, 6), torch.tensor([8, 0, 8])
    with capture() as step:
        rows = table[ids]
        left, right = rows.view(3, 3, 2).split([1, 2], dim=1)
        moved = left.contiguous(), right.contiguous(), table[:, 1].contiguous()
    table.normal_()
    ids.copy_(torch.tensor([1, 2, 3]))
    step.replay()
    expected = table[ids]
    assert torch.equal(rows, expected)
    assert torch.equal(moved[0], expected[:, :2].view(3, 1, 2))
    assert torch.equal(moved[1], expected[:, 2:].view(3, 2, 2))
    assert torch.equal(moved[2], table[:, 1])


def test_a_kernel_that_refuses_its_new_inputs_stops_the_replay():
    k_pages, v_pages = new_pages(2, 1, 16, torch.float32)
    k, slots = torch.randn(3, 1, 16), torch.tensor([0, 64, 127], dtype=torch.int32)
    with capture() as step:
        write_pages(k, k, k_pages, v_pages, slots)
    step.replay()
    slots[1] = 128
    with pytest.raises(ValueError, match="call 0, write_pages_f32"):
        step.replay()
