"""Cases of products: the linear layer, its gradients, weights of 4 and 8 bits, the output layer with its loss."""

import torch
import torch.nn.functional as F
from pyengine.kernels.quantized import reference

from bench.gpu import prediction
from bench.gpu.case import BF16, Place, Prepared, close, grads
from pyengine import kernels


def linear(place: Place, m: int, n: int, k: int) -> Prepared:
    m, n, k = place.size(m, 70), place.size(n, 33), place.size(k, 65)
    x, weight = place.randn(m, k), place.randn(n, k)

    def check():
        y = kernels.linear(x, weight)
        close(y, F.linear(x, weight))
        for rows in (slice(0, 1), slice(m // 2, m // 2 + 7)):
            assert torch.equal(kernels.linear(x[rows], weight), y[rows]), (
                "a row depends on the rows beside it"
            )

    predict = prediction.product_on_hopper if place.backend == "hopper" else prediction.product
    return Prepared(
        lambda: kernels.linear(x, weight), {"torch": lambda: F.linear(x, weight)}, check, predict(m, n, k),
        2.0 * m * n * k if m > 256 else 0.0, cold=m <= 256,
    )  # fmt: skip


def linear_backward(place: Place, m: int, n: int, k: int) -> Prepared:
    m, n, k = place.size(m, 70), place.size(n, 33), place.size(k, 65)
    inputs = [place.randn(*shape).requires_grad_() for shape in ((m, k), (n, k))]
    dy = place.randn(m, n)
    ours, peer = grads(kernels.linear, inputs, dy), grads(F.linear, inputs, dy)
    return Prepared(
        ours, {"torch": peer}, lambda: close(ours(), peer()),
        prediction.linear_backward_on_hopper(m, n, k), 4.0 * m * n * k,
    )  # fmt: skip


def quantized(place: Place, rows: int, bits: int) -> Prepared:
    """Weights of 14,336 x 4,096 in GGUF's Q8_0 or Q4_1, beside a bf16 product of the weights decoded."""
    rows, n, k = place.size(rows, 5), place.size(14_336, 70), place.size(4096, 96)
    make = torch.Generator(device=place.device).manual_seed(0)
    codes = torch.randint(1 << bits, (n, k), generator=make, device=place.device, dtype=torch.uint8)
    scale = (torch.rand(n, k // 32, generator=make, device=place.device) * 2.0**-bits * k**-0.5).half()
    minimum, zero = (-8 * scale, 0) if bits == 4 else (None, 128)
    weight, wide = (
        kernels.pack_quantized(codes, zero, scale, minimum),
        reference.pack(codes, bits, zero, scale, minimum),
    )
    decoded = wide.to(place.dtype(BF16))
    x = place.randn(rows, k)

    def check():
        close(kernels.linear(x, weight), F.linear(x.float(), wide), 3e-2)
        assert torch.equal(kernels.linear(x[:1], weight), kernels.linear(x, weight)[:1]), (
            "a row depends on the rows beside it"
        )

    many = rows > 256
    return Prepared(
        lambda: kernels.linear(x, weight), {"torch, bf16": lambda: F.linear(x, decoded)}, check,
        prediction.quantized_product(rows, n, k, bits, minimum is not None), 2.0 * rows * n * k if many else 0.0,
        cold=not many,
    )  # fmt: skip


def cross_entropy(place: Place, channels: int, vocabulary: int) -> Prepared:
    tokens, channels, vocabulary = (
        place.size(16384, 20),
        place.size(channels, 40),
        place.size(vocabulary, 150),
    )
    x, weight = place.randn(tokens, channels), place.randn(vocabulary, channels, scale=channels**-0.5)
    make = torch.Generator(device=place.device).manual_seed(0)
    targets = torch.randint(vocabulary, (tokens,), generator=make, device=place.device)
    inputs = [x.requires_grad_(), weight.requires_grad_()]

    def plain(x, weight):
        return F.cross_entropy(F.linear(x, weight).float(), targets)

    compiled = place.compile(plain)

    def ours():
        loss = kernels.linear_cross_entropy(x, weight, targets).mean()
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    def peer(function=compiled):
        loss = function(x, weight)
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    predict = prediction.cross_entropy_on_hopper if place.backend == "hopper" else prediction.cross_entropy
    return Prepared(
        ours, {"torch.compile": peer}, lambda: close(ours(), peer(plain)),
        predict(tokens, channels, vocabulary), 6.0 * tokens * channels * vocabulary,
    )  # fmt: skip
