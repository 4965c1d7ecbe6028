"""What the Triton kernels share: a matrix product that Triton's interpreter gets right too."""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b):
    """a b in float32, without tf32. The interpreter of Triton 3.6 is wrong for bfloat16: it gets float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
