"""What is compiled: each op's functions at the sizes that training and serving use, on tensors without data."""

from collections.abc import Callable

import torch
from pyengine.kernels import new_pages
from pyengine.kernels.adamw import triton as adamw
from pyengine.kernels.attention import triton as attention
from pyengine.kernels.cross_entropy import triton as cross_entropy
from pyengine.kernels.embedding import triton as embedding
from pyengine.kernels.linear import triton as linear
from pyengine.kernels.muon import triton as muon
from pyengine.kernels.quantized import Part
from pyengine.kernels.quantized import triton as quantized
from pyengine.kernels.rmsnorm import triton as rmsnorm
from pyengine.kernels.rope import triton as rope
from pyengine.kernels.sample import triton as sample
from pyengine.kernels.swiglu import triton as swiglu

from tests.triton_proof import Launch, recorded

BF16, F32, F64, I32, I64 = torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64


def t(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def host(*values: int, dtype: torch.dtype = I32) -> torch.Tensor:
    """Numbers that a launch looks at."""
    return torch.tensor(values, dtype=dtype)


def calls() -> dict[str, Callable[[], object]]:
    """Name of a call -> the call. Sizes: 4,096 tokens, 4,096 channels, a vocabulary of 128,256."""
    x, w, wide = t(4096, 4096), t(4096), t(4096, 4096, dtype=F32)
    table, ids, logits = t(128256, 4096), t(4096, dtype=I64), t(16, 128256, dtype=F32)
    per_row, row_ids = t(16, dtype=F32), t(16, dtype=I64)

    def normed(rows: int, channels: int, columns: int, gated: bool, dtype: torch.dtype = BF16):
        tensors = t(rows, channels, dtype=dtype), t(channels, dtype=dtype), t(columns, channels, dtype=dtype)
        return lambda: linear.forward_normed(*tensors, None, 1e-6, t(rows, channels, dtype=F32), gated)

    found: dict[str, Callable[[], object]] = {
        "rmsnorm forward": lambda: rmsnorm.forward(x, w, 1e-6, wide),
        "rmsnorm backward": lambda: rmsnorm.backward(x, wide, wide, w, t(4096, dtype=F32), True),
        "swiglu forward": lambda: swiglu.forward(x),
        "swiglu backward": lambda: swiglu.backward(t(4096, 2048), x),
        "embedding forward": lambda: embedding.forward(table, ids),
        "embedding backward": lambda: embedding.backward(wide, ids, table),
        "linear forward": lambda: linear.forward(x, x, None, BF16),
        "linear forward, few rows": lambda: linear.forward(t(16, 4096), x, None, BF16),
        "linear forward, few rows, gated": lambda: linear.forward(
            t(16, 4096), t(8192, 4096), None, BF16, True
        ),
        "norm_linear, 1 row": normed(1, 4096, 4096, False),
        "norm_linear, 8 rows": normed(8, 1024, 4096, False),
        "norm_linear, 4 rows, gated": normed(4, 1024, 6144, True),
        "norm_linear float32": normed(8, 256, 1024, True, F32),
        "linear forward float32": lambda: linear.forward(wide, wide, t(4096, dtype=F32), F32),
        "cross_entropy forward": lambda: cross_entropy.forward(x, table, ids, -100),
        "cross_entropy backward": lambda: cross_entropy.backward(
            t(1024, dtype=F32),
            t(1024, 4096),
            table,
            t(1024, dtype=I64),
            t(1024, dtype=F64),
            -100,
            [True, True],
        ),
        "adamw": lambda: adamw.step(
            *[[torch.empty(4096, 64)] for _ in range(4)], 1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1.0
        ),
        "grad_norm": lambda: adamw.grad_norm([torch.zeros(4096, 64)]),
        "muon": lambda: muon.step(*[[t(1024, 4096, dtype=F32)] for _ in range(3)], 0.02, 0.95, 0.1, 1.0),
        "muon, tall": lambda: muon.step(
            *[[t(4096, 1024, dtype=F32)] for _ in range(3)], 0.02, 0.95, 0.1, 1.0
        ),
        "sample": lambda: sample.sample(logits, per_row, per_row, t(16, dtype=I32), per_row, per_row),
        "sampled_logprob": lambda: sample.sampled_logprob(
            logits, row_ids, per_row, t(16, dtype=I32), per_row, per_row
        ),
        "top_logprobs": lambda: sample.top_logprobs(logits, 20),
        "adjust_logits": lambda: sample.adjust_logits(
            logits,
            t(64, dtype=I32),
            t(17, dtype=I32),
            t(64, dtype=F32),
            t(64, dtype=F32),
            t(16, 4008, dtype=I32),
        ),
        "uniform": lambda: sample.uniform(row_ids, row_ids),
    }
    for dim, heads, kv_heads in ((64, 32, 8), (128, 32, 8)):
        found |= _attention(dim, heads, kv_heads)
    return found | _quantized()


def _quantized() -> dict[str, Callable[[], object]]:
    """Weights of 4,096 x 4,096 in each way that files store them."""

    def call(part: Part, rows: int) -> Callable[[], object]:
        y = t(rows, 4096)
        return lambda: quantized.forward(t(rows, 4096), part, None, y, 0)

    found: dict[str, Callable[[], object]] = {}
    for name, bits, group, zero, scale, minimum in (
        ("Q8_0", 8, 32, 128, torch.float16, False),
        ("Q4_0", 4, 32, 8, torch.float16, False),
        ("Q4_1", 4, 32, 0, torch.float16, True),
        ("Q4_K", 4, 32, 0, F32, True),
        ("Q6_K", 8, 16, 32, F32, False),
    ):
        scales = 4096 // group * scale.itemsize * (1 + minimum)
        part = Part(
            t(4096 * (512 * bits + scales), dtype=torch.uint8), 4096, bits, group, zero, scale, minimum
        )
        found |= {f"quantized {name}, {rows} rows": call(part, rows) for rows in (1, 32, 512)}
    found["quantized rows"] = lambda: quantized.rows(part, 4096, t(16, dtype=I64))
    return found


def _attention(dim: int, heads: int, kv_heads: int) -> dict[str, Callable[[], object]]:
    q, k, weight = t(4096, heads, dim), t(4096, kv_heads, dim), t(dim)
    qkv = t(4096, heads + 2 * kv_heads, dim)
    bounds, positions = host(0, 4096), host(*range(4096))
    lse = t(4096, heads, dtype=F32)
    pages, codes = (
        [page.to("meta") for page in new_pages(64, kv_heads, dim, kept)] for kept in (BF16, torch.int8)
    )

    def paged(rows: int, pages: list[torch.Tensor] = pages) -> Callable[[], object]:
        numbers = t(rows, 128, dtype=I32), t(rows + 1, dtype=I32), t(rows, dtype=I32)
        return lambda: attention.forward_paged(t(rows, heads, dim), *pages, *numbers, 0.125)

    def turned(pages: list[torch.Tensor]) -> Callable[[], object]:
        constants = weight, weight, 1e4, 1e-6, ()
        return lambda: rope.forward_pages(qkv, heads, positions, *constants, *pages, t(4096, dtype=I32))

    return {
        f"rope_pages {dim}": turned(pages),
        f"rope_pages {dim}, int8": turned(codes),
        f"rope forward {dim}": lambda: rope.forward(qkv, heads, positions, weight, weight, 1e4, 1e-6),
        f"rope forward {dim}, no norm": lambda: rope.forward(qkv, heads, positions, None, None, 1e4, 1e-6),
        f"rope backward {dim}": lambda: rope.backward(q, k, k, positions, qkv, weight, weight, 1e4, 1e-6),
        f"rope backward {dim}, no norm": lambda: rope.backward(
            q, k, k, positions, None, None, None, 1e4, 1e-6
        ),
        f"attention forward {dim}": lambda: attention.forward(q, k, k, bounds, 0.125),
        f"attention backward {dim}": lambda: attention.backward(q, q, k, k, q, lse, bounds, 0.125),
        f"attention_paged {dim}, few rows": paged(16),
        f"attention_paged {dim}, many rows": paged(64),
        f"attention_paged {dim}, int8, few rows": paged(16, codes),
        f"attention_paged {dim}, int8, many rows": paged(64, codes),
        f"write_pages {dim}": lambda: attention.write_pages(k, k, *pages, t(4096, dtype=I32)),
        f"write_pages {dim}, int8": lambda: attention.write_pages(k, k, *codes, t(4096, dtype=I32)),
    }


def cases() -> dict[str, Launch]:
    """ "call: kernel" -> launch, for every kernel of every call; a second launch of one kernel is numbered."""
    found: dict[str, Launch] = {}
    for name, call in calls().items():
        for launch in recorded(call):
            case = stem = f"{name}: {launch.kernel.__name__}"
            number = 1
            while case in found:
                number += 1
                case = f"{stem} {number}"
            found[case] = launch
    return found
