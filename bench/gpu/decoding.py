"""Cases that run the engine: a captured decode step, and rollouts."""

import torch
import torch.nn.functional as F
from pyengine.kernels._graph import Graphs

from bench.gpu import prediction
from bench.gpu.case import Place, Prepared, close
from bench.gpu.models import random_model
from pyengine import kernels
from pyengine.engine import Engine, SamplingParams
from pyengine.engine.scheduler import Request
from pyengine.engine.step import ModelRunner
from pyengine.model import Transformer


def decode_step(place: Place, name: str, batch: int, context: int, persistent: bool = False) -> Prepared:
    """One token of each request, sampled after greedily: our captured step, and torch's, captured by hand."""
    batch, context = place.size(batch, 2), place.size(context, 70)
    model = random_model(place, name)
    c, per = model.config, -(-context // kernels.PAGE_SIZE)
    graphs = Graphs(place.device) if persistent else None  # without a GPU too, for its kernel alone
    runner = ModelRunner(model, batch, batch, batch * per, graphs=graphs, persistent=persistent)
    make = torch.Generator(device=place.device).manual_seed(0)
    shape = c.layers, batch, context, c.kv_heads, c.head_dim
    keys, values = (torch.randn(shape, generator=make, device=place.device).to(model.dtype) for _ in range(2))
    spots = torch.arange(batch * per * kernels.PAGE_SIZE, dtype=torch.int32, device=place.device)
    slots = spots.view(batch, per * kernels.PAGE_SIZE)[:, :context].flatten()
    for pages, k, v in zip(runner._cache, keys.flatten(1, 2), values.flatten(1, 2), strict=True):
        kernels.write_pages(k, v, *pages, slots)
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

    made: list = []

    def replay():
        if not made:
            function()
            made.append(Graphs(torch.device("cuda")).capture(lambda: (function(),)))
        made[0][0].replay()

    return replay


def rollout(place: Place, name: str, problems: int, group: int, prompt: int, new: int) -> Prepared:
    """Groups of attempts by the whole engine, Python included, and the trainer's log-probabilities of them."""
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
