"""How a request wants its tokens chosen, and what it gets back."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the tokens of one request.

    max_tokens: sampled tokens at most (what a tool returns does not count). temperature: 0 is greedy.
    top_k: 0 keeps all. top_p: 1 keeps all. seed: the same seed, prompt and parameters give the same tokens in
    any batch; None draws one. stop: ids that end the answer (and are its last id).
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        def expect(holds: bool, what: str, got) -> None:
            if not holds:
                raise UserError(f"sampling parameters: expected {what}, got {got!r}")

        expect(self.max_tokens >= 1, "max_tokens of at least 1", self.max_tokens)
        expect(0 <= self.temperature < float("inf"), "a temperature of at least 0", self.temperature)
        expect(self.top_k >= 0, "top_k of at least 0 (0 keeps all)", self.top_k)
        expect(0 < self.top_p <= 1, "top_p above 0 and at most 1 (1 keeps all)", self.top_p)
        expect(self.seed is None or 0 <= self.seed < 2**63, "a seed in [0, 2^63)", self.seed)

    def chosen_seed(self) -> int:
        return secrets.randbits(63) if self.seed is None else self.seed


@dataclass
class Completion:
    """What followed the prompt.

    ids: sampled and forced tokens, a stop token included. logprobs: of the distribution sampled from, 0.0
    where forced. forced: True for tokens that a tool put in. finish_reason: "stop" (a stop token), "length"
    (max_tokens or the context), "tools" (went on calling tools past the limit), "cancelled", or "error" with
    the sentence in `error`.
    """

    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""

    def append(self, token: int, logprob: float, forced: bool) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
