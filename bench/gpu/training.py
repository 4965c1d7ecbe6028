"""Cases of training: optimisers, and whole steps."""

import torch
from pyengine.kernels.muon import reference

from bench.gpu import prediction
from bench.gpu.case import BF16, F32, Place, Prepared, close
from bench.gpu.models import random_model
from bench.gpu.prediction import Work
from bench.plain_torch import PlainTransformer
from pyengine import kernels
from pyengine.model import ModelConfig, Transformer


def _parameters(place: Place, layers: int, channels: int) -> list[tuple[int, int]]:
    """Shapes of a transformer's matrices."""
    channels, layers = place.size(channels, 24), place.size(layers, 1)
    one = [(3 * channels, channels), (channels, channels), (4 * channels, channels), (channels, 4 * channels)]
    return one * layers


def adamw(place: Place, layers: int, channels: int) -> Prepared:
    shapes = _parameters(place, layers, channels)
    params, gradients = ([torch.randn(s, device=place.device) for s in shapes] for _ in range(2))
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    leaves = [p.clone().requires_grad_() for p in params]
    for leaf, grad in zip(leaves, gradients, strict=True):
        leaf.grad = grad
    peer = torch.optim.AdamW(leaves, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=not place.dry)

    def ours(step=1):
        kernels.adamw_(params, gradients, first, second, 1e-3, 0.9, 0.95, 1e-8, 0.1, step)

    def check():
        for step in (1, 2):
            ours(step)
            peer.step()
        close(params, [leaf.detach() for leaf in leaves], 1e-5)

    numbers = sum(p.numel() for p in params)
    return Prepared(ours, {"torch fused": peer.step}, check, prediction.streaming(28 * numbers))


def muon(place: Place, layers: int, channels: int) -> Prepared:
    shapes = _parameters(place, layers, channels)
    params, gradients = ([torch.randn(s, device=place.device) for s in shapes] for _ in range(2))
    momenta = [torch.zeros_like(p) for p in params]

    def plain(dtype):
        """The update as it is usually written: one matrix after the other, in `dtype`."""
        a, b, c = reference.NEWTON_SCHULZ
        for g in gradients:
            x = g.to(dtype) if g.shape[0] <= g.shape[1] else g.T.to(dtype)
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x

    def check():
        other, moved = [p.clone() for p in params], [m.clone() for m in momenta]
        kernels.muon_(params, gradients, momenta, 0.02)
        reference.step(other, gradients, moved, 0.02, 0.95, 0.0, 1.0)
        close(params, other, 1e-4)

    return Prepared(
        lambda: kernels.muon_(params, gradients, momenta, 0.02),
        {"torch float32": lambda: plain(F32), "torch bf16": lambda: plain(BF16)},
        check, prediction.muon(shapes),
    )  # fmt: skip


def training_step(place: Place, depth: int, channels: int, vocabulary: int, length: int) -> Prepared:
    """Forward, backward and AdamW on one model, ours in bf16 with float32 masters, the peer under autocast."""
    heads = place.size(channels // 64, 2)
    channels = place.size(channels, 32)
    config = ModelConfig(
        vocab_size=place.size(vocabulary, 97), hidden_size=channels, layers=place.size(depth, 1), heads=heads,
        kv_heads=heads, head_dim=place.size(64, 16), intermediate_size=place.size(channels * 8 // 3 // 64 * 64, 48),
    )  # fmt: skip
    rows, length = place.size(16384 // length, 2), place.size(length, 17)
    make = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, length + 1), generator=make).to(place.device)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(length, dtype=torch.int32, device=place.device).repeat(rows)
    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=place.device)
    start = Transformer(config, seed=1)
    model = Transformer(config, seed=None, dtype=place.dtype(BF16), device=place.device)
    model.load_state_dict(start.state_dict())
    plain = PlainTransformer(start).to(place.device)
    plain.cos, plain.sin = plain.cos.to(place.device), plain.sin.to(place.device)
    masters = [p.detach().float().clone() for p in model.parameters()]
    moments = [[torch.zeros_like(m) for m in masters] for _ in range(2)]
    peer_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=not place.dry)

    def our_loss():
        return model.loss(ids.flatten(), targets.flatten(), bounds, positions).mean()

    def ours():
        our_loss().backward()
        gradients = [p.grad.float() for p in model.parameters()]
        clip = min(1.0, 1.0 / (kernels.grad_norm(gradients) + 1e-6))
        kernels.adamw_(masters, gradients, *moments, 1e-4, 0.9, 0.95, 1e-8, 0.0, 1, clip)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), masters)
        model.zero_grad(set_to_none=True)

    spots = positions.view(rows, length).long()
    compiled = place.compile(plain.loss)

    def peer_loss(function):
        with torch.autocast(place.device, BF16, enabled=not place.dry):
            return function(ids, targets, spots, None).mean()

    def peer():
        peer_loss(compiled).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0, foreach=True)
        peer_optimizer.step()
        peer_optimizer.zero_grad(set_to_none=True)

    def check():
        close(our_loss().detach(), peer_loss(plain.loss).detach(), 1e-2)

    numbers = sum(p.numel() for p in model.parameters())
    flops = float(config.train_flops(length / 2)) * rows * length
    return Prepared(
        ours, {"torch.compile": peer}, check,
        Work(products=flops * 4 / 3, bytes=40 * numbers, launches=20 * config.layers, reach=0.55), flops,
    )  # fmt: skip


def finetuning(place: Place, name: str) -> Prepared:
    """Forward, backward of conversations of mixed lengths: packed by us, padded to the longest by the peer."""
    model = random_model(place, name).requires_grad_(True)
    c = model.config
    lengths = [7, 20, 13] if place.dry else [128, 256, 384, 512, 640, 768, 1024, 1408] * 2
    make, longest = torch.Generator().manual_seed(0), max(lengths)
    documents = [torch.randint(c.vocab_size, (n + 1,), generator=make) for n in lengths]
    ids, targets = (
        torch.cat([d[s] for d in documents]).to(place.device) for s in (slice(-1), slice(1, None))
    )
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(place.device)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]).to(place.device)
    plain = PlainTransformer(model, place.dtype(BF16)).to(place.device)
    plain.cos, plain.sin = plain.cos.to(place.device), plain.sin.to(place.device)
    rows = torch.full((2, len(lengths), longest), 0)
    for i, document in enumerate(documents):
        rows[0, i, : lengths[i]], rows[1, i, : lengths[i]] = document[:-1], document[1:]
    padded, wanted = rows.to(place.device)
    kept = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).to(place.device)
    spots = torch.arange(longest, device=place.device).expand(len(lengths), -1)
    compiled = place.compile(plain.loss)

    def our_loss():
        return model.loss(ids, targets, bounds, positions).mean()

    def peer_loss(function):
        return (function(padded, wanted, spots, None) * kept).sum() / kept.sum()

    def ours():
        model.zero_grad(set_to_none=True)
        our_loss().backward()

    def peer():
        plain.zero_grad(set_to_none=True)
        peer_loss(compiled).backward()

    flops = sum(float(c.train_flops(n / 2)) * n for n in lengths)
    return Prepared(
        ours, {"torch.compile, padded": peer},
        lambda: close(our_loss().detach(), peer_loss(plain.loss).detach(), 2e-2),
        prediction.Work(products=flops * 4 / 3, launches=30 * c.layers, reach=0.5), flops,
    )  # fmt: skip
