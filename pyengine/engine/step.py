"""One step on the model: its inputs (inputs.py) computed and sampled after, from captures where it can be.

Buffers are made once and written in place, so that a step of decoding (one token a request) can be captured
for each size of batch and replayed as one call (kernels/_capture.py; on a GPU kernels/_graph.py); sizes above 16 are
rounded up, and the rows between are dummies that write to a page of their own. On the CPU such steps follow each other
without Python in between for as long as nobody looks, and where rows are many each thread computes some by itself.
Steps with prompts in them run as Python, and on the CPU from a capture when their sizes come again: of tokens, of
requests and of those sampled, wherever the chunks begin and end. All run the same `Transformer.forward`.

The model's own parameters are read: on the CPU matrices as a copy packed for the kernels, refreshed when a
parameter's version has moved, everything else in place; on a GPU all in place, so new weights cost nothing. There the
buffers are written on the host and copied over in one go before a step, and the step itself waits for nothing.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import torch

from ..kernels import (
    PackedWeight,
    QuantizedWeight,
    _native,
    _select,
    attention_paged,
    decoder,
    new_pages,
    rope_append,
    rope_pages,
    uniform,
)
from ..kernels._capture import LENT, Arena, Decoder, Step, capture
from ..kernels._graph import Graphs, Outputs
from ..kernels._memory import to_device
from ..kernels.rope.table import table
from ..model.transformer import Rotation
from .cache import PAGE
from .inputs import Inputs
from .sampling import choose, draw
from .scheduler import Plan, Request

CACHE_BYTES = 1 << 30
KV_DTYPES = ("auto", "int8")
SHARED_CACHE = 32 << 20  # bytes of weights that a processor's cores keep in common, about
SHARE = 4  # rows that a thread must have to compute them alone, with such weights
LARGE_SHARE = 16  # and with larger ones
MOST_CAPTURED = 256  # steps; those with drafts or prompts come in many sizes, and the latest used are kept
CAPTURED_BYTES = 8 << 20  # that their recordings take at most on the CPU, 42 KB each for 30 layers
LARGE_STEP = 4 << 20  # bytes of its widest tensor from which a step takes long beside what lending costs
MOST_MET = 4096  # sizes of steps with prompts that are remembered, to capture them when they come again
NATIVE_OPS = ("embedding", "rmsnorm", "linear", "quantized", "rope", "attention", "swiglu", "sample")

_version = attrgetter("_version")


class ModelRunner:
    """Runs plans of at most step_tokens tokens of max_batch requests on a Transformer.

    kv_dtype: what the cache holds. graphs: what captures steps on the model's device, if that is no CPU; None for the
    device's own. persistent: steps of at most decoder.MOST_ROWS requests are one kernel that stays on the card.
    """

    def __init__(
        self,
        model: Any,
        max_batch: int,
        step_tokens: int,
        pages: int | None = None,
        kv_dtype: str = "auto",
        graphs: Graphs | None = None,
        persistent: bool = False,
    ):
        config = model.config
        on_gpu = model.device.type == "cuda"
        # kernels are launched on the thread's current device, and a server's thread is not the one that chose it
        self._current: Any = torch.cuda.device(model.device) if on_gpu else nullcontext()
        self._graphs = graphs or (Graphs(model.device) if model.device.type != "cpu" else None)
        self.model, self.max_batch = model, max_batch
        self.vocabulary, self.max_context = config.vocab_size, config.max_position_embeddings
        self._width = (
            4 * 2 * config.intermediate_size
        )  # bytes that a step makes for a token, where it is widest
        per_request = -(-self.max_context // PAGE)
        shape = config.kv_heads, config.head_dim, _cache_type(kv_dtype, model)
        self.page_bytes = config.layers * sum(part.nbytes for part in new_pages(1, *shape))
        self.pages = pages or max(per_request, min(max_batch * per_request, CACHE_BYTES // self.page_bytes))
        with_dummy = self.pages + 1  # the last: for dummies
        self._cache = [new_pages(with_dummy, *shape, model.device) for _ in range(config.layers)]
        # captured steps must not find it short
        table(config.rope_theta, config.head_dim, self.max_context, model.device, config.rope_divisors)
        self._inputs = Inputs(
            step_tokens, max_batch, per_request, self.pages, model.device, staged=self._graphs is not None
        )
        self._persistent = persistent
        if persistent and (problem := self._not_persistent()):
            raise ValueError(f"Engine: persistent=True needs {problem}")
        self._layout: Callable[[], Any] = model.weights if self._graphs else model.packed
        self._weights = self._layout()
        self._parameters = list(model.parameters())
        self._stamp = self._now()
        # by what _compute() takes: what replays it, and where its results are
        self._captured: dict[tuple[int, int, int, str], tuple[Any, Outputs]] = {}
        self._captured_bytes = 0
        self._met: dict[tuple[int, int, int, str], None] = {}  # sizes of steps with prompts, the latest last
        self._decoders: dict[tuple[int, str], tuple[Decoder, bool, list[Outputs]]] = {}  # by size and ending
        self._arenas: list[Arena] = []
        # of steps without a capture, and of what is sampled behind a step, whose logits' place is given away already
        self._scratch = Arena() if self._graphs is None else None
        self._setting: tuple | None = None
        self._capturable = False

    @property
    def weight_bytes(self) -> int:
        """Of what each step reads of the weights."""
        return _bytes(self._weights)

    def refresh(self) -> bool:
        """Whether the weights have changed since the last call; packed copies follow them."""
        now = self._now()
        if now == self._stamp:
            return False
        self._stamp = now
        for old, new in zip(_packed(self._weights), _packed(self._layout()), strict=True):
            old.data.copy_(new.data)  # in place: captured steps hold the address
        return True

    def run(self, plan: Plan, ready: Sequence[Request]) -> tuple[list[int], list[float]]:
        """Compute a plan; (ids, logprobs) for the requests `ready`, whose ids are all computed then: logprobs are NaN
        where no request wants scores.

        A request has a row for its last id, and one for each id of its draft. Where the plan has several steps it has
        a row for each that was computed, equally many in all requests: one, or up to the first in which a request
        sampled an id that ends it, or none.
        """
        with self._current:
            return self._run(plan, ready)

    def _run(self, plan: Plan, ready: Sequence[Request]) -> tuple[list[int], list[float]]:
        if plan.copies:
            self._copy_pages(plan.copies)
        requests, plain = len(plan.chunks), not any(request.choices for request in ready)
        scored = any(request.params.scored for request in ready)
        ending = ("scores" if scored else "ids") if plain else "logits"
        rows = ready
        if plan.decodes:
            size = min(_bucket(requests), self.max_batch)
            self._inputs.fill_decode(ready, size)
            if plain and self._graphs is None and self._can_capture():
                return self._decode(size, ending, plan.steps)
            self._inputs.upload()
            result = self._replay(size, size, size, ending)
        else:
            rows = [request for request in ready for _ in range(1 + len(request.draft))]
            tokens = self._inputs.fill(plan.chunks, rows)
            self._inputs.upload()
            result = self._replay(tokens, requests, len(rows), ending)
        if not plain:
            with _native.one_torch_thread(), self._lending(result[0].nbytes, LENT):
                u, *filters = self._sampling(len(rows))
                choices = [request.choices for request in rows]
                result = choose(result[0][: len(rows)], u, filters, choices, scored)
        if self._graphs is None:  # as numpy: torch's code has left the caches while the weights went through
            result = [part.numpy() for part in result]
        else:
            result = [part.to("cpu", non_blocking=True) for part in result]
        if self.model.device.type == "cuda":
            torch.cuda.current_stream(self.model.device).synchronize()  # once for both
        ids, *logprobs = (part[: len(rows)].tolist() for part in result)
        return ids, logprobs[0] if logprobs else [math.nan] * len(rows)

    def _decode(self, size: int, ending: str, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` steps of one token for each request that the inputs hold, without Python in between."""
        if (size, ending) not in self._decoders:
            with _native.one_torch_thread():
                self._decoders[size, ending] = self._make_decoder(size, ending)
        return self._inputs.decode(*self._decoders[size, ending], most)

    def _make_decoder(self, size: int, ending: str) -> tuple[Decoder, bool, list[Outputs]]:
        """(decode steps of `size` rows, whether they score, their outputs). Where rows are enough, each thread has some
        of its own: products of many rows compute longer than they read, so that each may read all weights, and
        activations never leave a core."""
        threads = _native.threads()
        shares = max(1, min(threads, size // (SHARE if self.weight_bytes <= SHARED_CACHE else LARGE_SHARE)))
        parts, outputs, first = [], [], 0
        with _native.one_thread() if shares > 1 else nullcontext():
            for share in range(shares):
                rows = (share + 1) * size // shares - first
                step, result = self._capture(partial(self._compute, rows, rows, rows, ending, first), share)
                ids, logprobs = result[0].data_ptr(), result[1].data_ptr() if ending == "scores" else 0
                parts.append((rows, step, ids, logprobs))
                outputs.append(result)
                first += rows
        return Decoder(parts, threads), ending == "scores", outputs

    def _replay(self, tokens: int, requests: int, ready: int, ending: str) -> Outputs:
        """_compute(), from its capture if it has one or is worth one."""
        key = tokens, requests, ready, ending
        capturable = self._can_capture()
        if key in self._captured:
            step, result = self._captured[key] = self._captured.pop(key)  # the latest used last
            step.replay()
            return result
        with _native.one_torch_thread():
            if not (capturable and self._comes_again(key)):
                with self._lending(self._width * tokens, LARGE_STEP):
                    return self._compute(*key)
            step, result = self._capture(partial(self._compute, *key))
            if self._graphs is None:  # logits of many requests are megabytes, and steps come in many sizes
                result = tuple(map(self._arenas[0].lent, result))
        if step is not None:
            self._captured[key] = step, result
            self._captured_bytes += _recorded(step)
            while len(self._captured) > MOST_CAPTURED or self._captured_bytes > CAPTURED_BYTES:
                self._drop(next(iter(self._captured)))
        return result

    def _drop(self, key: tuple[int, int, int, str]) -> None:
        """Forget the capture of a step, and that it came again."""
        step, _ = self._captured.pop(key)
        self._captured_bytes -= _recorded(step)
        self._met.pop(key, None)

    def _comes_again(self, key: tuple[int, int, int, str]) -> bool:
        """Whether a step of these sizes is worth a capture: without prompts, or, on the CPU, if it was met before."""
        tokens, _, ready, _ = key
        if tokens == ready or key in self._met:
            return True
        if self._graphs is None:
            self._met[key] = None
            if len(self._met) > MOST_MET:
                del self._met[next(iter(self._met))]
        return False

    def _lending(self, bytes: int, worth: int) -> AbstractContextManager:
        """Where large tensors come from memory that is kept, if the largest that will be made has `worth` bytes."""
        if self._scratch is None or bytes < worth or _native.keep:  # while a step is recorded it has its own
            return nullcontext()
        return self._scratch.lending()

    def _capture(self, compute: Callable[[], Outputs], share: int = 0) -> tuple[Any, Outputs]:
        """(what replays a step, its outputs, computed once); nothing replays one that no graph can hold. share: which
        of steps that run at once."""
        if self._graphs is None:
            compute()  # may make tables, which must not be captured
            if share == len(self._arenas):
                self._arenas.append(Arena())
            with capture(self._arenas[share]) as step:
                result = compute()
            return step, result
        try:
            return self._graphs.capture(compute)
        except RuntimeError as error:
            self._capturable = False
            warnings.warn(
                f"a decode step could not be captured as a graph and runs launch by launch, which is slower: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None, compute()

    @torch.no_grad()
    def _compute(self, tokens: int, rows: int, ready: int, ending: str, first: int = 0) -> Outputs:
        """The forward pass over the buffers' first `tokens` of `rows` requests: for those `ready`, by its `ending`,
        "scores" (ids and logprobs), "ids" alone, or "logits" to sample from behind it. Of one token a request, those
        from `first` on."""
        b = self._inputs
        here, requests = slice(first, first + tokens), slice(first, first + rows)
        slots, table, lengths = b.slots[here], b.block_table[requests], b.lengths[requests]
        starts = b.starts[: rows + 1]  # of one token each, the same wherever they begin

        def attend(layer: int, turn: Rotation) -> torch.Tensor:
            pages = self._cache[layer]
            if self._graphs is None:  # there a token is turned and written by the task that reads its page
                return rope_append(*turn, *pages, slots, table, starts, lengths)
            return attention_paged(rope_pages(*turn, *pages, slots), *pages, table, starts, lengths)

        if self._persistent and tokens == rows == ready <= decoder.MOST_ROWS:
            logits = self._persist(tokens)
        else:
            hidden = self.model(b.ids[here], b.positions[here], attend, self._weights)
            if ready == 0:
                return b.ids[:0], b.temperature[:0]  # only the middles of prompts
            if ready != tokens:
                hidden = hidden[b.last[:ready]]
            with self._lending(4 * ready * self.vocabulary, LENT):
                logits = self.model.logits(hidden, self._weights)
        if ending == "logits":
            return (logits,)
        u, *filters = self._sampling(ready, first)
        return draw(logits, u, filters, ending == "scores")

    def _persist(self, rows: int) -> torch.Tensor:
        """Logits after one token of each request, by one kernel."""
        b, w, c = self._inputs, self._weights, self.model.config
        return decoder.decoder_step(
            b.ids[:rows], b.positions[:rows], b.slots[:rows], b.block_table[:rows], w.embedding, w.layers, w.norm,
            w.head, self._cache, c.rope_theta, c.eps, c.rope_divisors,
        )  # fmt: skip

    def _not_persistent(self) -> str:
        """What keeps steps from being one kernel; "" if nothing does."""
        c, device = self.model.config, self.model.device
        if self._graphs is None:
            return "a GPU; on the CPU a step is one call already"
        if any(
            not isinstance(part, torch.Tensor)
            for layer in self.model.weights().layers
            for part in layer
            if part is not None
        ):
            return "weights in float32 or bfloat16, not in blocks of codes"
        if self._cache[0][0].dtype != self.model.dtype:
            return 'kv_dtype="auto"'
        if device.type == "cuda" and _select.select("decoder", device).__name__.endswith(".reference"):
            return f"its kernel, which {device} refuses: `python -m pyengine.info` says why"
        return decoder.refuses(
            c.hidden_size,
            c.heads,
            c.kv_heads,
            c.head_dim,
            c.intermediate_size,
            c.layers,
            self.model.dtype,
            device,
        )

    def _sampling(self, ready: int, first: int = 0) -> list[torch.Tensor]:
        """What draw() takes besides logits: u, and the filters."""
        b, here = self._inputs, slice(first, first + ready)
        u = uniform(b.seeds[here], b.sample_positions[here])
        return [u, *(t[here] for t in (b.temperature, b.top_k, b.top_p, b.min_p))]

    def _copy_pages(self, copies: list[tuple[int, int]]) -> None:
        sources, targets = to_device(torch.tensor(copies), self.model.device).unbind(1)
        with _native.one_torch_thread():
            for pages in self._cache:
                for part in pages:
                    part[targets] = part[sources]

    def _can_capture(self) -> bool:
        """Whether a step can be captured: on the CPU where every op runs on the compiled kernels, on a GPU unless it
        failed. Captured steps of another setting are dropped."""
        setting = _native.isa, _native.threads(), _select.epoch
        if setting != self._setting:
            self._setting = setting
            self._captured.clear()
            self._captured_bytes = 0
            self._decoders.clear()
            modules = [_select.select(op, self.model.device) for op in NATIVE_OPS]
            native = all(module.__name__.endswith(".cpu") for module in modules)
            self._capturable = self._graphs is not None or native
        return self._capturable

    def _now(self) -> list[int]:
        return list(map(_version, self._parameters))


def _recorded(step: Any) -> int:
    """Bytes that a recording takes on the host; of a graph they are the driver's."""
    return step.nbytes if isinstance(step, Step) else 0


def _cache_type(kv_dtype: str, model: Any) -> torch.dtype:
    """What pages hold: the model's numbers, or codes."""
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"Engine: kv_dtype must be one of {', '.join(KV_DTYPES)}, got {kv_dtype!r}")
    return torch.int8 if kv_dtype == "int8" else model.dtype


def _fields(weights: Any) -> list[Any]:
    """What a step reads from end to end."""
    return [field for layer in weights.layers for field in layer if field is not None] + [weights.head]


def _packed(weights: Any) -> list[PackedWeight]:
    return [field for field in _fields(weights) if isinstance(field, PackedWeight)]


def _bytes(weights: Any) -> int:
    def size(field: Any) -> int:
        if isinstance(field, QuantizedWeight):
            return sum(part.data.nbytes for part in field.parts)
        return (field.data if isinstance(field, PackedWeight) else field).nbytes

    return sum(map(size, _fields(weights)))


def _bucket(requests: int) -> int:
    """Up to 16 as they are; then multiples of 4, 8, 16 ...: at most an eighth more rows than asked for."""
    if requests <= 16:
        return requests
    step = 1 << (requests - 1).bit_length() - 3
    return -(-requests // step) * step
