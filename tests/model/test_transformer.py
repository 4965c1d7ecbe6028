"""The model against plain PyTorch in float64: losses, gradients, packing, weights, packed matrices."""

import math

import pytest
import torch

from bench.plain_torch import PlainTransformer, document_mask
from pyengine.model import ModelConfig, Transformer, over_documents

CONFIGS = {
    "qwen3": ModelConfig(97, 48, 2, 4, 2, 12, 56),
    "llama": ModelConfig(97, 32, 2, 2, 2, 16, 40, qk_norm=False, tie_embeddings=False, rope_theta=500.0),
    "qwen2": ModelConfig(97, 32, 1, 4, 1, 8, 24, qk_norm=False, qkv_bias=True),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    model = Transformer(request.param, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms and biases away from their initial ones and zeros
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def batch(lengths=(1, 30, 7), vocab=97):
    total = sum(lengths)
    ids = torch.randint(0, vocab, (total + 1,), generator=torch.Generator().manual_seed(1))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return ids[:-1], ids[1:], cu_seqlens, positions


def test_losses_and_gradients_are_those_of_float64(model):
    ids, targets, cu_seqlens, positions = batch()
    weights = torch.linspace(-1, 2, len(ids))
    truth, plain = (PlainTransformer(model, dtype) for dtype in (torch.float64, torch.float32))
    ours = model.loss(ids, targets, cu_seqlens, positions)
    exact, torchs = (
        twin.loss(ids[None], targets[None], positions[None], document_mask(cu_seqlens))[0]
        for twin in (truth, plain)
    )
    assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max() + 1e-6
    for loss in (ours, exact, torchs):
        (loss * weights.to(loss.dtype)).sum().backward()
    for (name, p), e, t in zip(model.named_parameters(), truth.weights, plain.weights, strict=True):
        scale = e.grad.abs().max().item()
        error, allowed = (p.grad - e.grad).abs().max().item(), (t.grad - e.grad).abs().max().item()
        assert error <= 2 * allowed + 2e-6 * scale, f"{name}: {error:.2e} of {scale:.2e}, torch {allowed:.2e}"


def test_a_document_does_not_see_its_neighbours(model):
    ids, targets, cu_seqlens, positions = batch()
    before = model.loss(ids, targets, cu_seqlens, positions)
    ids = ids.clone()
    ids[3] = (ids[3] + 1) % 97
    after = model.loss(ids, targets, cu_seqlens, positions)
    same = before == after
    assert same[:3].all() and same[31:].all() and not same[3:31].any()


def test_weights_choose_the_tokens_that_count(model):
    ids, targets, cu_seqlens, positions = batch()
    weights = torch.tensor([0.0, 1.0, -2.0] * 13)[: len(ids)]
    full = model.loss(ids, targets, cu_seqlens, positions)
    chosen = model.loss(ids, targets, cu_seqlens, positions, weights)
    assert torch.equal(chosen, torch.where(weights != 0, full, 0.0))
    nothing = model.loss(ids, targets, cu_seqlens, positions, torch.zeros(len(ids)))
    nothing.sum().backward()
    assert torch.equal(nothing, torch.zeros(len(ids)))
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@torch.no_grad()
def test_packed_weights_give_the_same_bits(model, dtype):
    model = model.to(dtype)
    ids, _, cu_seqlens, positions = batch()

    packed = model.packed()
    plain, fast = (model(ids, positions, over_documents(cu_seqlens), weights) for weights in (None, packed))
    assert torch.equal(plain, fast)
    assert torch.equal(model.logits(plain), model.logits(fast, packed))
    assert model.logits(plain).dtype == torch.float32


def test_bf16_is_close_to_f32(model):
    ids, targets, cu_seqlens, positions = batch()
    exact = model.loss(ids, targets, cu_seqlens, positions).mean()
    rounded = model.to(torch.bfloat16).loss(ids, targets, cu_seqlens, positions)
    rounded.mean().backward()
    assert rounded.dtype == torch.float32 and abs(rounded.mean() - exact) < 0.05
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_random_weights_know_nothing():
    config = ModelConfig.from_depth(4, vocab_size=1024)
    ids, targets, cu_seqlens, positions = batch((64, 128), vocab=1024)
    loss = Transformer(config, seed=1).loss(ids, targets, cu_seqlens, positions).mean().item()
    assert abs(loss - math.log(1024)) < 0.1


def test_the_dial_and_the_counts():
    config = ModelConfig.from_depth(4, vocab_size=1000)
    assert (config.hidden_size, config.heads, config.head_dim, config.intermediate_size) == (128, 4, 32, 344)
    assert ModelConfig.from_depth(24, 1000).head_dim == 64
    untied = ModelConfig.from_depth(2, 300, kv_heads=1, tie_embeddings=False)
    for each in (config, untied, *CONFIGS.values()):
        assert each.parameters == sum(p.numel() for p in Transformer(each).parameters())
    with pytest.raises(ValueError, match="not a multiple"):
        ModelConfig.from_depth(3, 1000, hidden_size=100)
    with pytest.raises(ValueError, match="does not divide"):
        ModelConfig.from_depth(4, 1000, kv_heads=3)


def test_seeds_decide_the_weights():
    a, b, c = (Transformer(CONFIGS["qwen3"], seed) for seed in (1, 1, 2))
    assert torch.equal(a.layers[1].down, b.layers[1].down) and not torch.equal(a.embedding, c.embedding)


def test_rows_that_no_text_names_stay_apart():
    model = Transformer(CONFIGS["qwen3"], seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-5, betas=(0.9, 0.95), weight_decay=0)
    generator, named = torch.Generator().manual_seed(1), 49
    cu_seqlens = torch.tensor([0, 64, 128], dtype=torch.int32)
    positions = torch.arange(64, dtype=torch.int32).repeat(2)
    for _ in range(100):
        ids = torch.randint(0, named, (129,), generator=generator)
        optimizer.zero_grad()
        model.loss(ids[:-1], ids[1:], cu_seqlens, positions).mean().backward()
        optimizer.step()
    unseen = torch.nn.functional.normalize(model.embedding[named:].detach(), dim=1)
    cosines = (unseen @ unseen.T)[~torch.eye(len(unseen), dtype=torch.bool)]
    assert cosines.mean() < 0.95  # begun near 0 they end at 0.98: one row, as good as
