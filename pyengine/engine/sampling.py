"""How a request wants its tokens chosen, and what it gets back.

Most requests need a row of logits, a temperature and three filters: these run inside the captured step. A
request that also changes logits (penalties, biases, a grammar) or wants to see the model's own distribution
carries a `Choices`, and `choose` samples for it behind the step.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UserError
from ..ranges import AT_LEAST_0, AT_LEAST_1, Range
from .constraint import Constraint, Grammar

MAX_TOP = 20  # runners-up that a request may ask to see
STUCK = "the constraint cannot be kept to any further:"
# What the numbers of SamplingParams may be.
RANGES = {
    "max_tokens": AT_LEAST_1,
    "min_tokens": AT_LEAST_0,
    "temperature": Range(ge=0, le=1_000_000),  # far below where a float32 ends
    "top_k": Range(ge=0, lt=2**31, why="0 keeps all"),
    "top_p": Range(gt=0, le=1, why="1 keeps all"),
    "seed": Range(ge=0, lt=2**63),
    "min_p": Range(ge=0, le=1, why="0 keeps all"),
    "repetition_penalty": Range(ge=0.01, le=100, why="1 is none"),
    "presence_penalty": Range(ge=-100, le=100, why="0 is none"),
    "frequency_penalty": Range(ge=-100, le=100, why="0 is none"),
    "logprobs": Range(ge=0, le=MAX_TOP),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the tokens of one request.

    max_tokens: sampled tokens at most (what a tool returns does not count). temperature: 0 is greedy.
    top_k: 0 keeps all. top_p: 1 keeps all. min_p: drops what is less than so many times as likely as the
    likeliest; 0 keeps all. seed: the same seed, prompt and parameters give the same tokens in any batch; None
    draws one. stop: ids that end the answer (and are its last id); none of them is sampled before min_tokens others.

    Before the temperature, logits change: of ids in the prompt or the answer, divided by repetition_penalty
    where positive and multiplied elsewhere; of ids in the answer, less presence_penalty and less
    frequency_penalty a time; of ids in logit_bias, plus their bias. grammar: only ids it allows are sampled.
    logprobs: how many of the likeliest to report beside each token, of the model's own distribution, to which
    none of this was done; 0 reports the token's own, None nothing. tools: whether the engine's may be called.
    scored: whether the log-probability of each token in the distribution it was sampled from is computed; a greedy
    token alone costs one read of its logits.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[int, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None
    logprobs: int | None = None
    tools: bool = True
    scored: bool = True
    min_tokens: int = 0

    def __post_init__(self):
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UserError(f"sampling parameters: {name} = {value}: expected {allowed}")
        if self.min_tokens > self.max_tokens:
            raise UserError(
                f"sampling parameters: min_tokens = {self.min_tokens}: expected at most max_tokens = {self.max_tokens}"
            )
        for token, bias in self.logit_bias.items():
            if token < 0 or not abs(bias) <= 100:
                raise UserError(
                    f"sampling parameters: logit_bias = {{{token}: {bias}}}: expected ids, -100 to 100"
                )

    @property
    def changes(self) -> bool:
        """Whether single logits change."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.logit_bias)

    @property
    def plain(self) -> bool:
        """Whether a row of logits and the filters' numbers are all that choosing a token takes."""
        return self.logprobs is None and self.grammar is None and not self.changes and not self.held_back

    @property
    def held_back(self) -> tuple[int, ...]:
        """Ids that must not come before min_tokens others."""
        return self.stop if self.min_tokens else ()

    def chosen_seed(self) -> int:
        return secrets.randbits(63) if self.seed is None else self.seed


class Detail(NamedTuple):
    """A token in the model's own distribution: its log-probability, and (id, logprob) of the likeliest."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Completion:
    """What followed the prompt.

    ids: sampled and forced tokens, a stop token included. logprobs: of the distribution sampled from, 0.0 where
    forced, NaN where the request is not scored. forced: True for tokens that a tool put in. details: where asked
    for, of each token, None where forced. finish_reason: "stop" (a stop token), "length" (max_tokens or the
    context), "tools" (went on calling tools past the limit), "cancelled", or, with the sentence in `error`, "refused"
    (it asks for what cannot be done) and "error" (the engine failed).
    cached: tokens of the prompt that the cache knew when the request began.
    """

    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    details: list[Detail | None] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    cached: int = 0

    def append(self, token: int, logprob: float, forced: bool, detail: Detail | None = None) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.details.append(detail)
        self.forced.append(forced)

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append sampled tokens that nobody asked details of."""
        self.ids += tokens
        self.logprobs += logprobs
        self.details += [None] * len(tokens)
        self.forced += [False] * len(tokens)


class Choices:
    """What choosing the next token of one request takes beyond a row of logits: follows its answer. vocabulary: ids of
    the model."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocabulary: int):
        self.params = params
        self.constraint = Constraint(params.grammar.start(), vocabulary) if params.grammar else None
        self.detail: Detail | None = None  # of the token sampled last
        self.error = ""  # why the answer cannot go on
        self._bias = params.logit_bias
        self._counts: dict[int, int] = {}  # in the answer
        self._places: dict[int, int] = {}  # of ids in the lists, which adjust_logits takes
        self.ids: list[int] = []
        self.repetition: list[float] = []
        self.added: list[float] = []
        self._sampled = 0
        self._held_back = () if self.constraint else params.held_back  # by `added`, where allow() does not
        for token in params.logit_bias:
            self._entry(token)
        for token in self._held_back:
            self.added[self._entry(token)] = -math.inf
        if params.repetition_penalty != 1:
            for token in set(prompt):
                self._repeat(token)

    def allow(self, words: np.ndarray) -> None:
        """Constraint.allow(), less what is held back; an error where that leaves nothing."""
        assert self.constraint
        self.constraint.allow(words)
        held = self.params.held_back if self._sampled < self.params.min_tokens else ()
        for token in held:
            words.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)
        if not words.any():
            self.error = f"{STUCK} it allows nothing" + " but to end before min_tokens" * bool(held)

    def accept(self, token: int) -> None:
        """A sampled token."""
        self._sampled += 1
        if self._sampled == self.params.min_tokens:
            for held in self._held_back:
                self.added[self._places[held]] = self._bias.get(held, 0.0)
        if self.constraint:
            try:
                self.constraint.accept(token)
            except ValueError as error:
                self.error = f"{STUCK} {error}"
        if self.params.changes:
            count = self._counts[token] = self._counts.get(token, 0) + 1
            place = self._repeat(token)
            penalty = self.params.presence_penalty + count * self.params.frequency_penalty
            self.added[place] = self._bias.get(token, 0.0) - penalty

    def _entry(self, token: int) -> int:
        if token not in self._places:
            self._places[token] = len(self.ids)
            self.ids.append(token)
            self.repetition.append(1.0)
            self.added.append(self._bias.get(token, 0.0))
        return self._places[token]

    def _repeat(self, token: int) -> int:
        place = self._entry(token)
        self.repetition[place] = self.params.repetition_penalty
        return place


def choose(
    logits: torch.Tensor,
    u: torch.Tensor,
    filters: Sequence[torch.Tensor],
    choices: Sequence[Choices | None],
    scored: bool,
) -> tuple[torch.Tensor, ...]:
    """draw() for rows of which some have Choices, whose `detail` is set."""

    changed = logits
    if any(c and (c.ids or c.constraint) for c in choices):
        changed = _changed(logits, choices)
    drawn = draw(changed, u, filters, scored)
    _show(logits, drawn[0], choices)
    return drawn


def draw(
    logits: torch.Tensor, u: torch.Tensor, filters: Sequence[torch.Tensor], scored: bool
) -> tuple[torch.Tensor, ...]:
    """What sample() gives, (ids, logprobs), or where nobody wants scores (ids,)."""
    from ..kernels import sample, sample_ids

    return sample(logits, u, *filters) if scored else (sample_ids(logits, u, *filters),)


def _changed(logits: torch.Tensor, choices: Sequence[Choices | None]) -> torch.Tensor:
    from ..kernels import adjust_logits
    from ..kernels._memory import to_device

    ids = [i for c in choices if c for i in c.ids]
    starts = np.cumsum([0, *(len(c.ids) if c else 0 for c in choices)], dtype=np.int32)
    repetition = [r for c in choices if c for r in c.repetition]
    added = [a for c in choices if c for a in c.added]
    allowed = None
    if any(c and c.constraint for c in choices):
        words = np.full((len(choices), -(-logits.shape[1] // 32)), -1, np.int32)
        for row, c in zip(words, choices, strict=True):
            if c and c.constraint:
                c.allow(row)
        allowed = to_device(torch.from_numpy(words), logits.device)
    entries = (
        torch.tensor(ids, dtype=torch.int32),
        torch.from_numpy(starts),
        torch.tensor(repetition, dtype=torch.float32),
        torch.tensor(added, dtype=torch.float32),
    )
    return adjust_logits(logits, *(to_device(part, logits.device) for part in entries), allowed)


def _show(logits: torch.Tensor, ids: torch.Tensor, choices: Sequence[Choices | None]) -> None:
    """Set the details that are asked for."""
    from ..kernels import sampled_logprob, top_logprobs
    from ..kernels._memory import to_device

    asked = [(row, c) for row, c in enumerate(choices) if c and c.params.logprobs is not None]
    if not asked:
        return
    rows = to_device(torch.tensor([row for row, _ in asked]), logits.device)
    seen = logits if len(asked) == len(logits) else logits[rows]
    own = sampled_logprob(seen, ids[rows]).cpu().tolist()
    most = min(max(c.params.logprobs or 0 for _, c in asked), logits.shape[1])
    top: Any = [t.cpu().tolist() for t in top_logprobs(seen, most)] if most else [[[]] * len(asked)] * 2
    for at, (_, c) in enumerate(asked):
        n = c.params.logprobs
        c.detail = Detail(own[at], tuple(zip(top[0][at][:n], top[1][at][:n], strict=True)))
