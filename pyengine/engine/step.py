"""One step on the model: ids, positions and block tables into fixed buffers, sampled tokens out.

Buffers are made once and written in place, so that a step of decoding (one token a request) can be captured
for each size of batch and replayed as one call (kernels/_capture.py); sizes above 16 are rounded up, and the
rows between are dummies that write to a page of their own. Steps with prompts in them, whose shapes seldom
come again, run as Python. Both run the same `Transformer.forward`.

The model's own parameters are read: matrices as a copy packed for the kernels, refreshed when a parameter's
version has moved, everything else in place.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from ..kernels import PackedWeight, _native, _select, attention_append, new_pages, sample, uniform
from ..kernels._capture import Arena, Step, capture
from ..kernels.rope.table import table
from .cache import PAGE
from .sampling import choose
from .scheduler import Plan, Request

CACHE_BYTES = 1 << 30
MOST_CAPTURED = 256  # steps; those with drafts come in many sizes
NATIVE_OPS = ("embedding", "rmsnorm", "linear", "quantized", "rope", "attention", "swiglu", "sample")

_version = attrgetter("_version")


class ModelRunner:
    """Runs plans of at most step_tokens tokens of max_batch requests on a Transformer."""

    def __init__(self, model: Any, max_batch: int, step_tokens: int, pages: int | None = None):
        config = model.config
        self.model, self.max_batch = model, max_batch
        self.vocabulary, self.max_context = config.vocab_size, config.max_position_embeddings
        per_request = -(-self.max_context // PAGE)
        page_bytes = PAGE * 2 * config.layers * config.kv_heads * config.head_dim * model.dtype.itemsize
        self.pages = pages or max(per_request, min(max_batch * per_request, CACHE_BYTES // page_bytes))
        self._cache = [
            new_pages(self.pages + 1, config.kv_heads, config.head_dim, model.dtype)  # the last: for dummies
            for _ in range(config.layers)
        ]
        # captured steps must not find it short
        table(config.rope_theta, config.head_dim, self.max_context, divisors=config.rope_divisors)
        self._inputs = Inputs(step_tokens, max_batch, per_request, dummy_page=self.pages)
        self._weights = model.packed()
        self._parameters = list(model.parameters())
        self._stamp = self._now()
        self._captured: dict[tuple[int, int, bool], tuple[Step, tuple[torch.Tensor, ...]]] = {}
        self._arena = Arena()
        self._setting: tuple | None = None
        self._all_native = False

    def refresh(self) -> bool:
        """Whether the weights have changed since the last call; packed copies follow them."""
        now = self._now()
        if now == self._stamp:
            return False
        self._stamp = now
        for old, new in zip(_packed(self._weights), _packed(self.model.packed()), strict=True):
            old.data.copy_(new.data)  # in place: captured steps hold the address
        return True

    def run(self, plan: Plan, ready: Sequence[Request]) -> tuple[list[int], list[float]]:
        """Compute a plan; (ids, logprobs) for the requests `ready`, whose ids are all computed then.

        A request has a row for its last id, and one for each id of its draft.
        """
        if plan.copies:
            self._copy_pages(plan.copies)
        requests, plain = len(plan.chunks), all(request.choices is None for request in ready)
        rows = [request for request in ready for _ in range(1 + len(request.draft))]
        decodes = len(ready) == requests and all(count == 1 for _, count in plan.chunks)
        if decodes and len(rows) == requests:
            size = min(_bucket(requests), self.max_batch)
            self._inputs.fill_decode(ready, size)
            result = self._replay(size, size, plain)
        else:
            tokens = self._inputs.fill(plan.chunks, rows)
            if decodes and len(self._captured) < MOST_CAPTURED:
                result = self._replay(tokens, requests, plain)
            else:
                with _native.one_torch_thread():
                    result = self._compute(tokens, requests, len(rows), plain)
        if not plain:
            with _native.one_torch_thread():
                u, *filters = self._sampling(len(rows))
                result = choose(result[0][: len(rows)], u, filters, [request.choices for request in rows])
        ids, logprobs = result
        return ids[: len(rows)].tolist(), logprobs[: len(rows)].tolist()

    def _replay(self, tokens: int, requests: int, plain: bool) -> tuple[torch.Tensor, ...]:
        """A step in which every token is sampled after, captured for its numbers of tokens and requests."""
        if not self._can_capture():
            with _native.one_torch_thread():
                return self._compute(tokens, requests, tokens, plain)
        key = tokens, requests, plain
        if key not in self._captured:
            with _native.one_torch_thread():
                self._compute(tokens, requests, tokens, plain)  # may make tables, which must not be captured
                with capture(self._arena) as step:
                    result = self._compute(tokens, requests, tokens, plain)
            self._captured[key] = step, result
            return result
        step, result = self._captured[key]
        step.replay()
        return result

    @torch.no_grad()
    def _compute(self, tokens: int, rows: int, ready: int, plain: bool) -> tuple[torch.Tensor, ...]:
        """The forward pass over the buffers' first `tokens` of `rows` requests: for those `ready`, ids and
        logprobs or, where sampling is not plain, logits."""
        b = self._inputs
        slots, table = b.slots[:tokens], b.block_table[:rows]
        starts, lengths = b.starts[: rows + 1], b.lengths[:rows]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attention_append(q, k, v, *self._cache[layer], slots, table, starts, lengths)

        hidden = self.model(b.ids[:tokens], b.positions[:tokens], attend, self._weights)
        if ready == 0:
            return b.ids[:0], b.temperature[:0]  # only the middles of prompts
        if ready != tokens:
            hidden = hidden[b.last[:ready]]
        logits = self.model.logits(hidden, self._weights)
        return sample(logits, *self._sampling(ready)) if plain else (logits,)

    def _sampling(self, ready: int) -> list[torch.Tensor]:
        """What sample() takes besides logits."""
        b = self._inputs
        u = uniform(b.seeds[:ready], b.sample_positions[:ready])
        return [u, *(t[:ready] for t in (b.temperature, b.top_k, b.top_p, b.min_p))]

    def _copy_pages(self, copies: list[tuple[int, int]]) -> None:
        sources, targets = torch.tensor(copies).unbind(1)
        with _native.one_torch_thread():
            for pages in self._cache:
                for part in pages:
                    part[targets] = part[sources]

    def _can_capture(self) -> bool:
        """Whether every op runs on the compiled kernels; captured steps of another setting are dropped."""
        setting = _native.isa, _native.threads(), _select.epoch
        if setting != self._setting:
            self._setting = setting
            self._captured.clear()
            modules = [_select.select(op, self.model.device) for op in NATIVE_OPS]
            self._all_native = all(module.__name__.endswith(".cpu") for module in modules)
        return self._all_native

    def _now(self) -> list[int]:
        return list(map(_version, self._parameters))


class Inputs:
    """What a step reads, at fixed addresses: tensors for the kernels, and numpy views to write them."""

    def __init__(self, tokens: int, rows: int, pages_per_request: int, dummy_page: int):
        def new(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, np.ndarray]:
            tensor = torch.zeros(*shape, dtype=dtype)
            return tensor, tensor.numpy()

        i32, i64, f32 = torch.int32, torch.int64, torch.float32
        self.ids, self._ids = new(i64, tokens)
        self.positions, self._positions = new(i32, tokens)  # of each token in its request
        self.slots, self._slots = new(i32, tokens)  # where in the cache its key and value go
        self.starts, self._starts = new(i32, rows + 1)  # first token of each request
        self.lengths, self._lengths = new(i32, rows)  # of each request, with this step's tokens
        self.block_table, self._block_table = new(i32, rows, pages_per_request)
        self.last, self._last = new(i64, tokens)  # tokens that are sampled after
        self.seeds, self._seeds = new(i64, tokens)  # from here on: for each of these
        self.sample_positions, self._sample_positions = new(i64, tokens)  # of the token to sample
        self.temperature, self._temperature = new(f32, tokens)
        self.top_k, self._top_k = new(i32, tokens)
        self.top_p, self._top_p = new(f32, tokens)
        self.min_p, self._min_p = new(f32, tokens)
        self._dummy_page = dummy_page
        self._tables: list[tuple | None] = [None] * rows  # what each row of block_table holds
        self._ready: list[Request] = []  # whose parameters the sampling buffers hold

    def fill(self, chunks: Sequence[tuple[Request, int]], rows: Sequence[Request]) -> int:
        """Write a plan with its drafts; `rows` names the request of each row to sample. Returns its tokens."""
        at = 0
        last: list[int] = []
        positions: list[int] = []
        for row, (request, pending) in enumerate(chunks):
            start, end = request.computed, request.computed + pending + len(request.draft)
            count = end - start
            here, there = slice(at, at + count), np.arange(start, end)
            self._ids[here] = request.ids[start : start + pending] + request.draft
            self._positions[here] = there
            pages = np.asarray(request.pages)
            self._slots[here] = pages[there // PAGE] * PAGE + there % PAGE
            self._starts[row], self._lengths[row] = at, end
            self._set_table(row, request)
            at += count
            if start + pending == len(request.ids):
                last += range(at - 1 - len(request.draft), at)
                positions += range(len(request.ids), end + 1)
        self._starts[len(chunks)] = at
        self._last[: len(rows)] = last
        self._set_sampling(rows, positions)
        return at

    def fill_decode(self, requests: Sequence[Request], size: int) -> None:
        """Write one token of each request, and dummies up to `size` rows."""
        real = len(requests)
        computed = [request.computed for request in requests]
        self._ids[:real] = [request.ids[at] for request, at in zip(requests, computed, strict=True)]
        self._positions[:real] = computed
        self._slots[:real] = [
            r.pages[at // PAGE] * PAGE + at % PAGE for r, at in zip(requests, computed, strict=True)
        ]
        self._starts[: size + 1] = np.arange(size + 1)
        np.add(self._positions[:real], 1, out=self._lengths[:real])
        for row, request in enumerate(requests):
            self._set_table(row, request)
        self._set_sampling(requests, [len(request.ids) for request in requests])
        for row in range(real, size):
            self._ids[row], self._positions[row], self._lengths[row] = 0, 0, 1
            self._slots[row] = self._dummy_page * PAGE
            self._block_table[row, 0], self._tables[row] = self._dummy_page, None

    def _set_table(self, row: int, request: Request) -> None:
        held = (request.number, request.preemptions, len(request.pages))
        if self._tables[row] != held:
            self._tables[row] = held
            self._block_table[row, : len(request.pages)] = request.pages

    def _set_sampling(self, requests: Sequence[Request], positions: Sequence[int]) -> None:
        rows = len(requests)
        if self._ready[:rows] != requests:
            self._ready = list(requests)
            self._seeds[:rows] = [request.seed for request in requests]
            self._temperature[:rows] = [request.params.temperature for request in requests]
            self._top_k[:rows] = [request.params.top_k for request in requests]
            self._top_p[:rows] = [request.params.top_p for request in requests]
            self._min_p[:rows] = [request.params.min_p for request in requests]
        self._sample_positions[:rows] = positions


def _packed(weights: Any) -> list[PackedWeight]:
    fields = [field for layer in weights.layers for field in layer] + [weights.head]
    return [field for field in fields if isinstance(field, PackedWeight)]


def _bucket(requests: int) -> int:
    """Up to 16 as they are; then multiples of 4, 8, 16 ...: at most an eighth more rows than asked for."""
    if requests <= 16:
        return requests
    step = 1 << (requests - 1).bit_length() - 3
    return -(-requests // step) * step
