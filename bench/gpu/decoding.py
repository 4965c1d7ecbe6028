"""Cases of the GPU suite that run the engine: a captured decode step, rollouts, packed fine-tuning, products of
quantised weights, the output layer with its sampling. See cases.py, which lists them.
"""

import torch
import torch.nn.functional as F

from bench.gpu import prediction
from bench.gpu.cases import BF16, F32, Place, Prepared, close
from bench.plain_torch import PlainTransformer
from pyengine.model import ModelConfig, Transformer

# the shapes of Qwen3-0.6B, of an 8B Llama, and of a model as the default run trains it
SIZES = {
    "1M": ModelConfig(vocab_size=2048, hidden_size=128, layers=4, heads=4, kv_heads=2, head_dim=32,
                      intermediate_size=384, max_position_embeddings=2048),
    "0.6B": ModelConfig(vocab_size=151_936, hidden_size=1024, layers=28, heads=16, kv_heads=8, head_dim=128,
                        intermediate_size=3072, max_position_embeddings=2048),
    "8B": ModelConfig(vocab_size=128_256, hidden_size=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
                      intermediate_size=14_336, max_position_embeddings=2048, qk_norm=False, tie_embeddings=False),
}  # fmt: skip
TINY = ModelConfig(vocab_size=61, hidden_size=32, layers=1, heads=4, kv_heads=2, head_dim=16, intermediate_size=48,
                   max_position_embeddings=256)  # fmt: skip


def random_model(place: Place, name: str) -> Transformer:
    """Weights drawn on the device: on the host billions of them would take minutes."""
    model = Transformer(TINY if place.dry else SIZES[name], None, place.dtype(BF16), place.device)
    make = torch.Generator(device=place.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.6 * parameter.shape[1] ** -0.5, generator=make)
        model.embedding.mul_(3)
    return model.requires_grad_(False)


def decode_step(place: Place, name: str, batch: int, context: int, persistent: bool = False) -> Prepared:
    """One token of each request, sampled after greedily: our captured step, and torch's, captured by hand."""
    from pyengine.kernels import PAGE_SIZE, write_pages
    from pyengine.kernels._graph import Graphs

    from pyengine.engine import SamplingParams
    from pyengine.engine.scheduler import Request
    from pyengine.engine.step import ModelRunner

    batch, context = place.size(batch, 2), place.size(context, 70)
    model = random_model(place, name)
    c, per = model.config, -(-context // PAGE_SIZE)
    graphs = Graphs(place.device) if persistent else None  # without a GPU too, for its kernel alone
    runner = ModelRunner(model, batch, batch, batch * per, graphs=graphs, persistent=persistent)
    make = torch.Generator(device=place.device).manual_seed(0)
    shape = c.layers, batch, context, c.kv_heads, c.head_dim
    keys, values = (torch.randn(shape, generator=make, device=place.device).to(model.dtype) for _ in range(2))
    spots = torch.arange(batch * per * PAGE_SIZE, dtype=torch.int32, device=place.device)
    slots = spots.view(batch, per * PAGE_SIZE)[:, :context].flatten()
    for pages, k, v in zip(runner._cache, keys.flatten(1, 2), values.flatten(1, 2), strict=True):
        write_pages(k, v, *pages, slots)
    requests = []
    for r in range(batch):
        request = Request(
            r, [(7 * r + i) % c.vocab_size for i in range(context)], SamplingParams(temperature=0.0), 1
        )
        request.pages, request.computed = list(range(r * per, r * per + per)), context - 1
        requests.append(request)
    runner._inputs.fill_decode(requests, batch)
    runner._inputs.upload()

    def step():
        return runner._compute(batch, batch, batch, "ids")

    ours = step if place.dry else runner._graphs.capture(step)[0].replay
    logits = _plain_step(place, model, keys, values, runner._inputs.ids[:batch], context - 1)
    peer = _captured(place, lambda: logits().argmax(-1))
    contexts = [context] * batch
    return Prepared(
        ours, {"torch.compile, CUDA graph": peer},
        lambda: close(runner._compute(batch, batch, batch, "logits")[0], logits(), 3e-2),
        prediction.decode_step(c, contexts, persistent),
    )  # fmt: skip


def _plain_step(place: Place, model: Transformer, keys, values, ids, position: int):
    """The same step on contiguous keys and values; one compiled function serves all layers."""
    c, w = model.config, model.weights()
    inverse = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    cos, sin = ((position * inverse).cos(), (position * inverse).sin())
    cos, sin = (t.float().to(place.device) for t in (cos, sin))

    def turn(x, weight):
        normed = x if weight is None else F.rms_norm(x, (c.head_dim,), weight, c.eps)
        a, b = normed.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    def layer(x, weights, k, v):
        """x (B, C) float32; k and v (B, S, K, D), whose last place is this token's."""
        h = F.rms_norm(x.to(k.dtype), (c.hidden_size,), weights.attention_norm, c.eps)
        qkv = F.linear(h, weights.qkv, weights.qkv_bias).view(len(x), -1, c.head_dim)
        q, own_k, own_v = qkv.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        k[:, -1], v[:, -1] = turn(own_k, weights.k_norm), own_v
        q, k, v = (t.transpose(1, 2) for t in (turn(q, weights.q_norm)[:, None], k, v))
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + F.linear(attended.reshape(len(x), -1), weights.out)
        h = F.rms_norm(x.to(k.dtype), (c.hidden_size,), weights.mlp_norm, c.eps)
        gate, up = F.linear(h, weights.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, weights.down)

    compiled = place.compile(layer)

    @torch.no_grad()
    def logits():
        x = F.embedding(ids, w.embedding).float()
        for weights, k, v in zip(w.layers, keys, values, strict=True):
            x = compiled(x, weights, k, v)
        return F.linear(F.rms_norm(x.to(w.norm.dtype), (c.hidden_size,), w.norm, c.eps), w.head).float()

    return logits


def _captured(place: Place, function):
    """The peer under a CUDA graph, captured at its first call."""
    if place.dry:
        return function
    from pyengine.kernels._graph import Graphs

    made: list = []

    def replay():
        if not made:
            function()
            made.append(Graphs(torch.device("cuda")).capture(lambda: (function(),)))
        made[0][0].replay()

    return replay


def rollout(place: Place, name: str, problems: int, group: int, prompt: int, new: int) -> Prepared:
    """Groups of attempts by the whole engine, Python included, and the trainer's log-probabilities of them."""
    from pyengine.engine import Engine, SamplingParams
    from pyengine.engine.step import ModelRunner

    problems, group, prompt, new = (
        place.size(*s) for s in ((problems, 2), (group, 1), (prompt, 9), (new, 3))
    )
    model, count = random_model(place, name), problems * group
    c = model.config
    runner = ModelRunner(model, count, max(count, place.size(4096, 32)), count * -(-(prompt + new) // 64))
    engine = Engine(model, runner=runner, max_batch=count, step_tokens=max(count, place.size(4096, 32)))
    asked = [
        [(5 * p + i * i) % c.vocab_size for i in range(prompt)] for p in range(problems) for _ in range(group)
    ]

    def ours():
        return engine.generate(asked, [SamplingParams(max_tokens=new, seed=i) for i in range(count)])

    def check():
        answers = ours()[: place.size(32, 2)]
        documents = [[*a.prompt, *a.ids] for a in answers]
        ids = torch.tensor([i for d in documents for i in d[:-1]], device=place.device)
        targets = torch.tensor(
            [i for a in answers for i in [-100] * (len(a.prompt) - 1) + a.ids], device=place.device
        )
        lengths = torch.tensor([0, *(len(d) - 1 for d in documents)])
        positions = torch.cat([torch.arange(int(n), dtype=torch.int32) for n in lengths[1:]])
        with torch.no_grad():
            losses = model.loss(
                ids, targets, lengths.cumsum(0).int().to(place.device), positions.to(place.device)
            )
        trained = -losses[targets >= 0].cpu()
        difference = (trained - torch.tensor([p for a in answers for p in a.logprobs])).abs().mean().item()
        assert difference < 1e-2, f"rollout and trainer differ by {difference:.3g} a token on average"

    steps = [prediction.decode_step(c, [prompt + i] * count) for i in range(new)]
    return Prepared(ours, {}, check, prediction.one_after_another(steps))


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


def quantized(place: Place, rows: int, bits: int) -> Prepared:
    """Weights of 14,336 x 4,096 in GGUF's Q8_0 or Q4_1, beside a bf16 product of the weights decoded."""
    from pyengine.kernels import linear, pack_quantized
    from pyengine.kernels.quantized import reference

    rows, n, k = place.size(rows, 5), place.size(14_336, 70), place.size(4096, 96)
    make = torch.Generator(device=place.device).manual_seed(0)
    codes = torch.randint(1 << bits, (n, k), generator=make, device=place.device, dtype=torch.uint8)
    scale = (torch.rand(n, k // 32, generator=make, device=place.device) * 2.0**-bits * k**-0.5).half()
    minimum, zero = (-8 * scale, 0) if bits == 4 else (None, 128)
    weight, wide = (
        pack_quantized(codes, zero, scale, minimum),
        reference.pack(codes, bits, zero, scale, minimum),
    )
    decoded = wide.to(place.dtype(BF16))
    x = place.randn(rows, k)

    def check():
        close(linear(x, weight), F.linear(x.float(), wide), 3e-2)
        assert torch.equal(linear(x[:1], weight), linear(x, weight)[:1]), (
            "a row depends on the rows beside it"
        )

    many = rows > 256
    return Prepared(
        lambda: linear(x, weight), {"torch, bf16": lambda: F.linear(x, decoded)}, check,
        prediction.quantized_product(rows, n, k, bits, minimum is not None), 2.0 * rows * n * k if many else 0.0,
        cold=not many,
    )  # fmt: skip


def head_and_sample(place: Place, batch: int) -> Prepared:
    """From hidden states to sampled ids, d = 1,024 and V = 151,936, beside the product alone and torch's way."""
    from pyengine.kernels import linear, sample, uniform

    batch, channels, vocabulary = place.size(batch, 2), place.size(1024, 32), place.size(151_936, 90)
    x, weight = place.randn(batch, channels), place.randn(vocabulary, channels, scale=channels**-0.5)
    seeds = torch.arange(batch, device=place.device)
    sizes = [torch.full((batch,), value, dtype=dtype, device=place.device)
             for value, dtype in ((0.9, F32), (0, torch.int32), (1.0, F32), (0.0, F32))]  # fmt: skip

    def ours():
        return sample(linear(x, weight, out_dtype=F32), uniform(seeds, seeds), *sizes)

    def plain():
        return torch.multinomial((F.linear(x, weight).float() / 0.9).softmax(-1), 1)

    def check():
        ids, logprobs = ours()
        truth = (F.linear(x.float(), weight.float()) / 0.9).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        close(logprobs, truth, 2e-2)

    compiled = place.compile(plain)
    return Prepared(
        ours, {"torch's product alone": lambda: F.linear(x, weight), "torch.compile": compiled}, check,
        prediction.Work(bytes=2 * weight.numel() + 3 * 4 * batch * vocabulary, launches=5, reach=0.75), cold=True,
    )  # fmt: skip
