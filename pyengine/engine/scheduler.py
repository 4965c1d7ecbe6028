"""Which tokens of which requests are computed in the next step.

A request is a list of ids of which the first `computed` are in the cache. All it ever needs is that the
others be computed: a prompt, what a tool returned, one sampled token, or everything again after a preemption.
So there is no prefill and no decode here, only `pending` tokens:

    each step:  admit waiting requests while there is room
                every request with one pending token gets it computed       (nobody's stream stalls)
                    but where it is not yet known what may follow it        (constraint.py)
                guesses of what follows it are computed along (draft.py)    (if there is room)
                the others share the rest of the step's budget, oldest first (chunks)
                if pages run out, the youngest gives up its own and waits     (the oldest always gets on)

Pure Python on integers: no tensor, no model, no clock. But when a request that is held goes on is up to threads.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from .cache import PAGE, PagePool, Prefix
from .constraint import Constraint
from .draft import PromptLookup
from .sampling import Choices, Completion, SamplingParams
from .tools import ToolState


@dataclass(eq=False)
class Request:
    """One prompt on its way to a completion."""

    number: int  # of arrival: the lower is the older
    ids: list[int]
    params: SamplingParams
    seed: int
    tool_state: ToolState | None = None
    choices: Choices | None = None
    lookup: PromptLookup | None = None
    completion: Completion = field(init=False)
    running: bool = False
    sampled: int = 0
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    serial: int = 0  # of the last full page that is known to the pool
    full: int = 0  # how many pages that is
    preemptions: int = 0
    cached: int = 0  # tokens found in the cache instead of computed
    draft: list[int] = field(default_factory=list)  # guesses to compute behind its last id in this step

    def __post_init__(self):
        self.prompt = tuple(self.ids)
        self.completion = Completion(self.prompt)

        self.constraint = self.choices.constraint if self.choices else None
        # nothing but its ids has to know of a token before the next is computed
        self.alone = not (self.tool_state or self.choices or self.lookup)

    @property
    def pending(self) -> int:
        return len(self.ids) - self.computed

    @property
    def done(self) -> bool:
        return bool(self.completion.finish_reason)

    @property
    def held(self) -> bool:
        """Whether its last id cannot be computed yet, for nothing could be sampled from its logits."""
        return self.constraint is not None and self.constraint.held


@dataclass
class Plan:
    """One step: pages to copy first, then (request, count) of tokens to compute, oldest first.

    ready: the requests whose ids are all computed then. tokens: of all chunks, with guesses. steps: as many such steps
    may follow each other, in which each request's sampled id is the next one computed.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    ready: list[Request] = field(default_factory=list)
    tokens: int = 0
    steps: int = 1

    @property
    def decodes(self) -> bool:
        """Whether each request computes its last id and nothing else."""
        return self.tokens == len(self.chunks) == len(self.ready)


class Scheduler:
    """max_batch requests at once, step_tokens tokens a step, over the pages of `pool`."""

    def __init__(self, pool: PagePool, max_batch: int, step_tokens: int):
        if not 1 <= max_batch <= step_tokens:
            raise ValueError(f"Scheduler: need 1 <= max_batch <= step_tokens, got {max_batch}, {step_tokens}")
        self.pool, self.max_batch, self.step_tokens = pool, max_batch, step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # by age

    def add(self, request: Request) -> None:
        """Queue a request; its ids and all that it may grow to must fit the pool alone."""
        self.waiting.append(request)

    def plan(self) -> Plan:
        """Decide the next step and reserve its pages; empty when there is nothing to do."""
        plan = Plan()
        if self.waiting:
            self._admit(plan)
        all_pending = [len(request.ids) - request.computed - request.held for request in self.running]
        room = self.step_tokens - all_pending.count(1)
        for request, pending in zip(self.running[:], all_pending, strict=True):
            if not request.running:
                continue  # an older one took its pages
            count = pending
            if count > 1:
                count = min(count, room)
                room -= count
            elif request.draft:
                request.draft = request.draft[: self._room_for_guesses(request, room)]
                room -= len(request.draft)
            tokens = count + len(request.draft)
            if count and self._reserve(request, request.computed + tokens):
                plan.chunks.append((request, count))
                plan.tokens += tokens
                if request.computed + count == len(request.ids):
                    plan.ready.append(request)
        return plan

    @property
    def held(self) -> list[Constraint]:
        """What the requests wait for, running or not, of which it is not yet known what may follow their last id."""
        constraints = [request.constraint for request in (*self.running, *self.waiting)]
        return [one for one in constraints if one is not None and one.held]

    def extend(self, plan: Plan, steps: int) -> None:
        """Let a plan of one token a request go on for `steps` steps, or for half as many and so on, down to what pages
        can be had for without taking any from others."""
        for count in (steps >> halved for halved in range(steps.bit_length() - 1)):
            ahead = [(request, request.computed + count) for request, _ in plan.chunks]
            if sum(max(0, _pages(end) - len(request.pages)) for request, end in ahead) <= self.pool.available:
                for request, end in ahead:
                    self._reserve(request, end)
                plan.steps = count
                return

    def commit(self, plan: Plan, steps: int = 1) -> None:
        """So many steps were computed: move on, and make full pages and prompt tails known to the pool."""
        for request, count in plan.chunks:
            end = len(request.prompt) - 1
            ends_prompt = request.computed <= end < request.computed + count
            request.computed += count + steps - 1
            if ends_prompt or request.computed >= (request.full + 1) * PAGE:
                self._publish(request, end if ends_prompt else 0)

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is."""
        if request.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def forget(self) -> None:
        """The weights have changed: nothing in the cache is true any more."""
        while self.running:
            self._preempt(self.running[-1])
        self.pool.forget()

    def _admit(self, plan: Plan) -> None:
        busy = {request.prompt for request in self.running if request.computed < len(request.prompt)}
        later = []
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting.popleft()
            if request.held:
                later.append(request)  # pages that it shares are copied in a step that it is in
            elif request.prompt in busy and not request.preemptions:
                later.append(request)  # its twin is computing the prompt: take it over when it is done
            elif self._start(request, plan):
                busy.add(request.prompt)
            else:
                later.append(request)
                break
        self.waiting.extendleft(reversed(later))

    def _start(self, request: Request, plan: Plan) -> bool:
        prefix = self.pool.lookup(request.ids)
        if not (
            self._take_over(request, prefix, plan) or self._take_over(request, prefix.without_tail(), plan)
        ):
            return False
        request.running = True
        insort(self.running, request, key=lambda other: other.number)
        return True

    def _take_over(self, request: Request, prefix: Prefix, plan: Plan) -> bool:
        """Give a request what is known of its ids, if there is room for the rest of them."""
        found = (*prefix.pages, prefix.tail) if prefix.tail is not None else prefix.pages
        for page in found:
            self.pool.share(page)  # before any page is taken: it might be one of these
        fits = _pages(len(request.ids)) - len(prefix.pages) <= self.pool.available
        if fits:
            request.pages, request.serial, request.full = list(prefix.pages), prefix.serial, len(prefix.pages)
            request.computed = prefix.tokens
            request.cached += prefix.tokens
            if not request.preemptions:
                request.completion.cached = prefix.tokens
            if prefix.tail is not None:
                request.pages.append(self.pool.take())
                plan.copies.append((prefix.tail, request.pages[-1]))
        for page in found[len(prefix.pages) if fits else 0 :]:
            self.pool.release(page)
        return fits

    def _publish(self, request: Request, end: int) -> None:
        """Make known the full pages that are not yet, and the page in which a prompt's ids[:end] ends."""
        while True:
            start = request.full * PAGE
            if start < end < start + PAGE:
                self.pool.publish(request.pages[request.full], request.serial, request.ids[start:end])
            if start + PAGE > request.computed:
                return
            ids = request.ids[start : start + PAGE]
            request.serial = self.pool.publish(request.pages[request.full], request.serial, ids)
            request.full += 1

    def _room_for_guesses(self, request: Request, room: int) -> int:
        """Guesses that fit the step and take no page that a token may need."""
        spare = max(0, self.pool.available - len(self.running))
        held = len(request.pages) * PAGE - len(request.ids)
        return max(0, min(room, held + spare * PAGE))

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Pages for `tokens` tokens, taken from the youngest if need be; False if that was itself."""
        while len(request.pages) * PAGE < tokens:
            if self.pool.available:
                request.pages.append(self.pool.take())
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.preemptions += 1
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        request.running = False
        for page in reversed(request.pages):  # the end of a prefix is given away before its beginning
            self.pool.release(page)
        request.pages, request.computed, request.serial, request.full = [], 0, 0, 0
        request.draft = []


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
