"""Engine: prompts of ids in, completions of ids out, many at once, on one model.

    engine = Engine("runs/default/rl")                        # or Engine(model) with the model being trained
    answers = engine.generate([ids, ids], SamplingParams(max_tokens=64, seed=1))
    for token in engine.stream(ids): ...

A step is: plan (scheduler.py), compute (step.py), and for each request whose ids are now all computed, append
the sampled token and see whether that ends it, or calls a tool (tools.py). The engine holds no weights of its
own: it reads the model's parameters, and starts its cache afresh when they have changed.

What a request answers never depends on its neighbours: not on the batch, chunks, preemption or prefix hits.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any, NamedTuple

from .cache import PAGE, PagePool
from .constraint import await_any
from .draft import PromptLookup
from .sampling import Choices, Completion, Detail, SamplingParams
from .scheduler import Plan, Request, Scheduler
from .tools import Tools

DRAFT_ROWS = 16  # guesses in one step at most
# at most computed at once where nobody looks in between: what Python does then has left the caches
STEPS = 64
PATIENCE = 0.1  # seconds that they may take, about; an interrupt waits for them
MOMENT = 0.005  # seconds that a step waits at most where it has nothing to compute; an arrival waits for it


class Token(NamedTuple):
    """One token of a stream; forced: put in by a tool; detail: where the request asks for it."""

    id: int
    logprob: float
    forced: bool
    detail: Detail | None = None


@dataclass
class Stats:
    """Counts since the engine was made."""

    steps: int = 0
    sampled: int = 0  # tokens given to requests
    computed: int = 0  # tokens that went through the model
    cached: int = 0  # tokens found in the cache instead
    guessed: int = 0  # tokens computed on a guess of what would be sampled
    confirmed: int = 0  # of these, guesses that came true
    preemptions: int = 0
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0  # inside steps, where all wait for their constraints too

    @property
    def tokens_per_second(self) -> float:
        return self.sampled / self.seconds if self.seconds else 0.0


class Engine:
    """See the module. model: a Transformer, or the path of a Hugging Face directory or a .gguf file.

    tokenizer: kept for callers; the engine itself sees ids only. tools: what a request may call. max_batch:
    requests computed at once. pages: of 64 tokens in the KV cache, by default enough for max_batch requests of the
    model's whole context, at most about 1 GiB. kv_dtype: "auto" keeps keys and values in the model's type; "int8"
    as bytes with a scale for each token and head, half of bfloat16's memory, so that answers differ a little from
    the trainer's log-probabilities and from an engine's without it. step_tokens: tokens computed in one step at
    most. draft: tokens of a request that a step may guess from its earlier ones and compute along (draft.py), 0
    for none: the same answers bit for bit, in fewer steps where text repeats itself. device: where a path is loaded
    to, "cpu" or "cuda"; a model given is used where it is. persistent: on a GPU, steps of at most 8 requests are one
    kernel that stays on the card, for small models, where launches would take longer than they compute.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        tools: Tools | None = None,
        *,
        max_batch: int = 128,
        pages: int | None = None,
        kv_dtype: str = "auto",
        step_tokens: int = 512,
        draft: int = 0,
        runner: Any = None,
        device: str = "cpu",
        persistent: bool = False,
    ):
        if runner is None:
            from .step import ModelRunner  # the model's packages are only needed when there is a model

            if isinstance(model, (str, PathLike)):
                model, tokenizer = _load(model, tokenizer, device)
            runner = ModelRunner(
                model, max_batch, max(step_tokens, max_batch), pages, kv_dtype, persistent=persistent
            )
        self.model, self.tokenizer, self.tools = model, tokenizer, tools
        self.max_context = min(runner.max_context, runner.pages * PAGE)
        self.stats = Stats()
        self._runner = runner
        self._scheduler = Scheduler(PagePool(runner.pages), max_batch, max(step_tokens, max_batch))
        self._arrivals = 0
        self._draft = draft
        self._unseen = 1  # steps that take PATIENCE, by what the last took

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order; params: for all, or one each."""
        params = params or SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"generate: got {len(prompts)} prompts and {len(each)} parameters")
        requests = [self.add(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        try:
            for request in requests:
                while not request.done:
                    self.advance()
        finally:
            for request in requests:
                self.cancel(request)  # of what an interrupt left unfinished
        return [request.completion for request in requests]

    def stream(self, prompt: Sequence[int], params: SamplingParams | None = None) -> Iterator[Token]:
        """The tokens of one completion as they come; closing the iterator cancels the rest."""
        return self.follow(self.add(prompt, params or SamplingParams()))

    def follow(self, request: Request) -> Iterator[Token]:
        """The tokens of a request that add() queued, stepping the engine as needed."""
        done, answer = 0, request.completion
        try:
            while True:
                for token in zip(
                    answer.ids[done:],
                    answer.logprobs[done:],
                    answer.forced[done:],
                    answer.details[done:],
                    strict=True,
                ):
                    done += 1
                    yield Token(*token)
                if request.done and done == len(answer.ids):
                    return
                self.step()
        finally:
            self.cancel(request)

    def add(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        """Queue a request; one that cannot be answered is done at once, with its reason."""
        state = self.tools.start() if self.tools and params.tools else None
        vocabulary = self._runner.vocabulary
        choices = None if params.plain else Choices(params, prompt, vocabulary)
        lookup = PromptLookup(self._draft) if self._draft and choices is None else None
        request = Request(self._arrivals, list(prompt), params, params.chosen_seed(), state, choices, lookup)
        self._arrivals += 1
        self.stats.requests += 1
        if not request.ids:
            self._refuse(request, "the prompt is empty")
        elif len(request.ids) >= self.max_context:
            self._refuse(
                request, f"the prompt has {len(prompt)} tokens; the context holds {self.max_context}"
            )
        elif not 0 <= min(request.ids) <= max(request.ids) < vocabulary:
            self._refuse(request, f"the prompt has an id outside the vocabulary of {vocabulary}")
        elif params.logit_bias and max(params.logit_bias) >= vocabulary:
            self._refuse(request, f"logit_bias has an id outside the vocabulary of {vocabulary}")
        else:
            self._scheduler.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request, wherever it is; its pages are free again. A finished one stays as it is."""
        if not request.done:
            self._finish(request, "cancelled")

    def fail_all(self, why: str) -> None:
        """End every unfinished request with an error, after a step that raised."""
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            self._fail(request, why)

    @property
    def unfinished(self) -> int:
        """Requests that are waiting or running."""
        return len(self._scheduler.waiting) + len(self._scheduler.running)

    @property
    def running(self) -> int:
        """Requests that hold a place in the batch."""
        return len(self._scheduler.running)

    @property
    def pages(self) -> int:
        """Pages of the cache."""
        return self._scheduler.pool.pages

    @property
    def pages_held(self) -> int:
        """Pages that requests hold; the others are free, or known and given away when needed."""
        return self._scheduler.pool.pages - self._scheduler.pool.available

    @property
    def bytes_per_token(self) -> float:
        """Memory that a token's keys and values take in the cache, all layers together."""
        return self._runner.page_bytes / PAGE

    @property
    def weight_bytes(self) -> int:
        """Memory that each step reads for its weights, however few its tokens."""
        return self._runner.weight_bytes

    def advance(self) -> list[Request]:
        """Compute steps as step() does, as many as take about PATIENCE at most."""
        return self.step(self._unseen)

    def step(self, most: int = 1) -> list[Request]:
        """Compute one step, or up to `most` of them where each request gets one token a step and needs nobody between;
        the requests that got a token or ended in it. Where all wait for their constraints it waits a moment for one."""
        start = time.perf_counter()
        if self._runner.refresh():
            self._scheduler.forget()
        if self._draft:
            self._guess()
        plan = self._scheduler.plan()
        ready, steps = plan.ready, 1
        if plan.chunks:
            if most > 1 and plan.decodes:
                self._extend(plan, most)
            ids, logprobs = self._runner.run(plan, ready)
            if plan.steps > 1:
                steps = len(ids) // len(ready)
                ids, logprobs = self._take_steps(ready, ids, logprobs, steps)
            self.stats.computed += plan.tokens * steps
            self._scheduler.commit(plan, steps)
            rows = zip(ids, logprobs, strict=True)
            for request in ready:
                if request.draft:
                    self._take_guesses(request, list(islice(rows, 1 + len(request.draft))))
                else:
                    self._accept(request, *next(rows))
            self.stats.sampled += len(ready) * steps
            self.stats.steps += steps
        elif held := self._scheduler.held:
            await_any(held, MOMENT)
        seconds = time.perf_counter() - start
        self.stats.seconds += seconds
        self._unseen = max(1, min(STEPS, int(steps * PATIENCE / max(seconds, 1e-6))))
        return ready

    def _extend(self, plan: Plan, most: int) -> None:
        """Let a plan go on for as many steps as no request of it can end in, but by what it samples, unless others are
        held that would join the next."""
        if len(plan.ready) < self.running:
            return
        for request in plan.ready:
            if not request.alone:
                return
            left = request.params.max_tokens - request.sampled, self.max_context - len(request.ids)
            most = min(most, *left)
        if most > 1:
            self._scheduler.extend(plan, most)

    def _take_steps(
        self, ready: Sequence[Request], ids: list[int], logprobs: list[float], steps: int
    ) -> tuple[list[int], list[float]]:
        """Append what all steps but the last sampled, of each request `steps` neighbours; the last's (ids, logprobs).

        In none of these has a request ended.
        """
        before = steps - 1
        for at, request in zip(range(0, len(ids), steps), ready, strict=True):
            tokens = ids[at : at + before]
            scores = logprobs[at : at + before] if request.params.scored else [math.nan] * before
            request.ids += tokens
            request.completion.extend(tokens, scores)
            request.sampled += before
        return ids[before::steps], logprobs[before::steps]

    def _guess(self) -> None:
        """Ask the running requests what they may say next; few rows are cheap, many are not."""
        running = self._scheduler.running
        share = DRAFT_ROWS // max(1, len(running))
        for request in running:
            if request.lookup and request.pending == 1:
                left = request.params.max_tokens - request.sampled, self.max_context - len(request.ids)
                request.draft = request.lookup.propose(request.ids, min(share, *(n - 1 for n in left)))

    def _take_guesses(self, request: Request, rows: list[tuple[int, float]]) -> None:
        """Accept what was sampled after the last id, and after each guess for as long as these come true."""
        draft, request.draft = request.draft, []
        for at, (token, logprob) in enumerate(rows):
            known = len(request.ids)
            self._accept(request, token, logprob)
            right = at < len(draft) and token == draft[at]
            self.stats.confirmed += right
            if not right or request.done or len(request.ids) != known + 1:
                break
            request.computed += 1  # the guess's keys and values are in the cache
        self.stats.sampled += at
        self.stats.guessed += len(draft)
        if request.lookup:
            request.lookup.learn(at + right)

    def _accept(self, request: Request, token: int, logprob: float) -> None:
        """Append a sampled token and follow its consequences."""
        params, completion, choices = request.params, request.completion, request.choices
        if choices and choices.error:
            return self._refuse(request, choices.error)
        if token < 0 or (params.scored and logprob != logprob):
            return self._fail(request, "the model's logits are not numbers")
        request.ids.append(token)
        score = logprob if params.scored else math.nan  # whatever the neighbours want
        completion.append(token, score, False, choices.detail if choices else None)
        request.sampled += 1
        if choices:
            choices.accept(token)
            if choices.error and token not in params.stop:
                return self._refuse(request, choices.error)
        out_of_room = request.sampled >= params.max_tokens or len(request.ids) >= self.max_context
        state = request.tool_state
        if state is not None and state.follow(token):
            if out_of_room:
                self._finish(request, "length")
            elif not state.writing:
                self._force(request, state.answer())
        elif token in params.stop:
            self._finish(request, "stop")
        elif out_of_room:
            self._finish(request, "length")

    def _force(self, request: Request, tokens: list[int]) -> None:
        """Append what a tool returned, unless the request ends here."""
        if not tokens:
            return self._finish(request, "tools")
        if len(request.ids) + len(tokens) >= self.max_context:
            return self._finish(request, "length")
        request.ids.extend(tokens)
        for token in tokens:
            request.completion.append(token, 0.0, True)

    def _fail(self, request: Request, why: str, reason: str = "error") -> None:
        request.completion.error = why
        self.stats.errors += 1
        self._finish(request, reason)

    def _refuse(self, request: Request, why: str) -> None:
        """End a request whose asker has to change it."""
        self._fail(request, why, "refused")

    def _finish(self, request: Request, reason: str) -> None:
        request.completion.finish_reason = reason
        if request.constraint:
            request.constraint.drop()
        self.stats.cached += request.cached
        self.stats.preemptions += request.preemptions
        self._scheduler.finish(request)


def _load(path: str | PathLike, tokenizer: Any, device: str):
    from ..model import load
    from ..text import Tokenizer

    return load(path, device=device), tokenizer or Tokenizer.load(path)
