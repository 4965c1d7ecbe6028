"""The linear layer beside torch's own product: training shapes forward and backward, and decoding from packed weights.

Training counts flops against the multiplier's ceiling, decoding counts the weight's bytes against the bandwidth
of the cache they fit in.
"""

import pytest
import torch
from pyengine.kernels import linear, pack_weight
from pyengine.kernels._select import select

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# (rows, N, K): a large square, and the layers of small models over 2048 tokens
TRAINING = [(1024, 1024, 1024), (2048, 384, 128), (2048, 1024, 256), (2048, 256, 1024), (2048, 3072, 768)]
DECODING = [(1, 1024, 1024), (1, 4096, 256), (8, 1024, 1024), (32, 1024, 1024)]


def tensors(rows, n, k, dtype):
    make = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=make).to(dtype) for shape in ((rows, k), (n, k), (rows, n))]


def close(a, b):
    return torch.allclose(a.float(), b.float(), rtol=5e-2, atol=1e-2 * b.float().abs().max().item())


@DTYPES
@pytest.mark.parametrize("shape", TRAINING, ids=str)
def test_forward(paired, shape, dtype):
    x, w, _ = tensors(*shape, dtype)
    paired(
        f"linear forward {shape} {str(dtype)[6:]}",
        ours=lambda: linear(x, w),
        peer=lambda: torch.mm(x, w.T),
        peer_name="torch.mm",
        equal=lambda: close(linear(x, w), x @ w.T),
        flops=2 * shape[0] * shape[1] * shape[2],
        dtype=dtype,
    )


@DTYPES
@pytest.mark.parametrize("wanted", ["dx", "dweight"])
@pytest.mark.parametrize("shape", TRAINING, ids=str)
def test_backward(paired, shape, wanted, dtype):
    x, w, dy = tensors(*shape, dtype)
    which = ["dx", "dweight"].index(wanted)
    needs = [which == 0, which == 1, False]
    backward = select("linear", x.device).backward

    def peer():
        return dy @ w if which == 0 else dy.T @ x

    paired(
        f"linear {wanted} {shape} {str(dtype)[6:]}",
        ours=lambda: backward(dy, x, w, needs),
        peer=peer,
        peer_name="torch.mm",
        equal=lambda: close(backward(dy, x, w, needs)[which], peer()),
        flops=2 * shape[0] * shape[1] * shape[2],
        dtype=dtype,
    )


@DTYPES
@pytest.mark.parametrize("shape", DECODING, ids=str)
def test_decoding(paired, shape, dtype):
    x, w, _ = tensors(*shape, dtype)
    packed = pack_weight(w)
    paired(
        f"linear decoding {shape} {str(dtype)[6:]}",
        ours=lambda: linear(x, packed),
        peer=lambda: torch.mm(x, w.T),
        peer_name="torch.mm",
        equal=lambda: torch.equal(linear(x, packed), linear(x, w)),
        bytes=w.numel() * w.element_size(),
    )
