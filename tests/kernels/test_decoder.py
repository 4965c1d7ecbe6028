"""A decode step as one op: every backend against the model's ops, rows alone, pages, sizes that do not fit."""

import pytest
import torch
from pyengine.kernels import attention_append, embedding, linear, rmsnorm, rope, swiglu, use_backend
from pyengine.kernels.decoder import MOST_ROWS, decoder_step, random_step, refuses

OP = "decoder"
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}  # of the largest logit


def by_ops(ids, positions, slots, block_table, table, layers, norm, head, pages, theta, eps):
    """The same step by the public ops, as the model's own forward pass takes it."""
    starts = torch.arange(len(ids) + 1, dtype=torch.int32)
    x, update = embedding(table, ids), None
    for layer, pair in zip(layers, pages, strict=True):
        attention_norm, qkv, bias, q_norm, k_norm, out, mlp_norm, gate_up, down = layer
        h, x = added(x, update, attention_norm, eps)
        dim = 2 * pair[0].shape[2] if pair[0].dim() == 5 else pair[0].shape[2]
        q, k, v = rope(
            linear(h, qkv, bias).view(len(ids), -1, dim),
            out.shape[1] // dim,
            positions,
            q_norm,
            k_norm,
            theta,
            eps,
        )
        attended = attention_append(q, k, v, *pair, slots, block_table, starts, positions + 1)
        h, x = added(x, linear(attended.flatten(1), out), mlp_norm, eps)
        update = linear(swiglu(linear(h, gate_up)), down)
    return linear(added(x, update, norm, eps)[0], head, out_dtype=torch.float32)


def added(x, update, weight, eps):
    return (rmsnorm(x, weight, eps), x) if update is None else rmsnorm(update, weight, eps, residual=x)


def copied(given, device="cpu"):
    """Arguments with tensors of their own on `device`, since a step writes into its pages."""
    if isinstance(given, torch.Tensor):
        return given.to(device, copy=True)
    return type(given)(map(copied, given)) if isinstance(given, (list, tuple)) else given


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "bf16"])
@pytest.mark.parametrize("rows, dim, rich", [(1, 8, True), (2, 64, False), (3, 128, True), (8, 16, True)])
def test_is_the_ops_one_after_another(backend, dtype, rows, dim, rich):
    given = random_step(dtype, rows, dim, rich=rich)
    ours, truth = copied(given, backend.device), copied(given)
    logits = decoder_step(*ours).cpu()
    with use_backend("reference"):
        wanted = by_ops(*truth)
    assert logits.dtype == torch.float32 and logits.shape == wanted.shape
    assert (logits - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()
    for (k, v), (true_k, true_v) in zip(ours[8], truth[8], strict=True):
        for page, true in ((k, true_k), (v, true_v)):
            assert (page.cpu() - true).abs().max() <= TOLERANCE[dtype] * true.abs().max()


def test_a_row_is_computed_alone(backend):
    """Bits of a request's logits and of what it writes do not depend on the others, nor on what lies behind it."""
    if backend.name == "reference":
        pytest.skip("torch orders the reference's sums")
    given = random_step(torch.bfloat16, 5, 64, device=backend.device)
    together = copied(given)
    logits = decoder_step(*together)
    for row in range(5):
        alone = copied(given)
        for page in (part for pair in alone[8] for part in pair):
            others = torch.ones(len(page), dtype=torch.bool)
            others[given[3][row].long()] = False
            page[others] = torch.nan
        ids, positions, slots, block_table, *rest = alone
        one = slice(row, row + 1)
        assert torch.equal(
            decoder_step(ids[one], positions[one], slots[one], block_table[one], *rest)[0], logits[row]
        )
        for mine, all_ in zip(alone[8], together[8], strict=True):
            page = given[2][row] // 64
            for a, b in zip(mine, all_, strict=True):
                assert torch.equal(a[page], b[page])


def test_what_lies_behind_a_context_never_matters(backend):
    given = random_step(torch.float32, 2, 16, device=backend.device)
    ours = copied(given)
    for k, v in ours[8]:
        for row, position in enumerate(given[1].tolist()):
            last = given[3][row, position // 64]
            k[last, :, :, position % 64 :] = torch.nan
            v[last, :, position % 64 :] = torch.nan
            v[last, :, :, 16:] = 0  # no head has these
            k[given[3][row, position // 64 + 1 :].long()] = torch.nan
            v[given[3][row, position // 64 + 1 :].long()] = torch.nan
    assert torch.equal(decoder_step(*ours), decoder_step(*copied(given)))


def test_races(backend):
    """Two layers, two requests, all blocks at once: small enough for a thread of the system for each of CUDA's."""
    given = random_step(torch.float32, 2, 8)
    logits = decoder_step(*copied(given, backend.device)).cpu()
    with use_backend("reference"):
        wanted = decoder_step(*copied(given))
    assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_what_does_not_fit_is_refused(backend):
    given = random_step(torch.float32, 1, 8, device=backend.device)
    with pytest.raises(ValueError, match="positions, slots"):
        decoder_step(given[0], given[1].long(), *given[2:])
    with pytest.raises(ValueError, match="R at most 8"):
        decoder_step(*random_step(torch.float32, MOST_ROWS + 1, 8, device=backend.device))
    with pytest.raises(ValueError, match="one type"):
        decoder_step(*given[:4], given[4].bfloat16(), *given[5:])
    with pytest.raises(ValueError, match="2 layers"):
        decoder_step(*given[:8], given[8][:1], *given[9:])
    wrong = [(*layer[:8], layer[8][:-1]) for layer in given[5]]
    with pytest.raises(ValueError, match="in a layer"):
        decoder_step(*given[:5], wrong, *given[6:])


def test_sizes_that_the_kernel_cannot_do_are_named(backend, monkeypatch):
    def refusal(channels=64, heads=4, kv_heads=2, dim=64, width=64, layers=4, dtype=torch.bfloat16):
        return refuses(channels, heads, kv_heads, dim, width, layers, dtype, torch.device(backend.device))

    assert refusal() == ""
    if backend.name == "reference":  # does any size
        return
    assert "at most 40 layers, got 41" in refusal(layers=41)
    assert "at most 128 numbers a head, got 256" in refusal(dim=256)
    assert "8 divides" in refusal(channels=60)
    assert "fit into" in refusal(8192, 64, 8, 128, 28_672, 32)
    monkeypatch.setattr("pyengine.kernels.decoder.cuda.SHARED_BYTES", 1000)
    with pytest.raises(NotImplementedError, match="fit into 1000 bytes"):
        decoder_step(*random_step(torch.float32, 1, 8, device=backend.device))
