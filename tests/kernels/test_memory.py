"""Memory in large pages is memory: shape, type, place, contents, and gone with its last view."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pyengine.kernels._memory import ALIGN, LARGE, large_empty, weight_empty


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1 << 20, 3), (2049, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_is_memory(shape, dtype):
    t = large_empty(shape, dtype)
    assert t.shape == shape and t.dtype == dtype and t.is_contiguous()
    t.fill_(1)
    assert bool((t == 1).all())
    if t.nbytes >= LARGE:
        assert t.data_ptr() % LARGE == 0


def test_goes_with_its_last_view():
    t = large_empty((LARGE,), torch.uint8)
    view, storage = t[5:9].fill_(3), weakref.ref(t)
    del t
    gc.collect()
    assert storage() is None and view.tolist() == [3] * 4


def test_weights_share_large_pages():
    sizes = [100, 3 * LARGE + 5, 64, LARGE // 2, 1]
    tensors = [weight_empty((size,), torch.uint8).fill_(i) for i, size in enumerate(sizes)]
    places = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors)
    assert all(start % ALIGN == 0 for start, _ in places)
    assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False))
    assert [t.unique().tolist() for t in tensors] == [[i] for i in range(len(sizes))]
    small = [weight_empty((1000,), torch.float32) for _ in range(8)]
    assert len({t.data_ptr() // LARGE for t in small}) <= 2
    assert weight_empty((0, 4), torch.bfloat16).shape == (0, 4)


def test_weights_are_drawn_by_threads_without_overlap():
    with ThreadPoolExecutor(8) as pool:
        tensors = list(pool.map(lambda i: weight_empty((997,), torch.int32).fill_(i), range(400)))
    assert all(bool((t == i).all()) for i, t in enumerate(tensors))
