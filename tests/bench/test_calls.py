"""A step's calls one by one: what the table counts is what the step did."""

import torch

from bench.calls import measure, product
from pyengine.model import ModelConfig


def test_the_table_has_every_product_of_a_step():
    config = ModelConfig(
        vocab_size=96, hidden_size=32, layers=2, heads=2, kv_heads=2, head_dim=16, intermediate_size=48
    )
    whole, rows = measure(config, 2, 64, False, torch.bfloat16, threads=1, repeats=1)
    tokens, found = 128, {(row.name, row.size): row for row in rows}
    assert whole > 0 and all(row.seconds >= 0 for row in rows)
    for n, k in ((96, 32), (32, 32), (96, 32), (32, 48)):  # qkv, out, gate and up, down
        twice = 2 if (n, k) == (96, 32) else 1
        forward, backward = (found[f"linear_{way}_bf16", (tokens, n, k)] for way in ("forward", "backward"))
        assert forward.count == backward.count == config.layers * twice
        assert backward.flops == 2 * forward.flops == 4 * tokens * n * k * forward.count
    assert found["cross_entropy_backward_bf16", (tokens, 96, 32)].flops == 4 * tokens * 96 * 32
    assert found["attention_forward_bf16", ()].count == config.layers


def test_what_is_no_product_has_no_arithmetic_to_compare_with():
    assert product("swiglu_forward_f32", (1, 2, 3)) == ((), 0)
