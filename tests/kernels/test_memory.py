"""Memory in large pages is memory: shape, type, place, contents, and gone with its last view."""

import gc
import weakref

import pytest
import torch
from pyengine.kernels._memory import LARGE, large_empty


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
