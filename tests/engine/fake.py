"""A model of integers for the engine's tests: its cache stores ids, its next token is a hash of the whole
context.

Reading a wrong, stale or overwritten page therefore changes the answer, and raises at once.
"""

import hashlib

import numpy as np

from pyengine.engine.cache import PAGE


def next_token(context, seed: int, vocabulary: int, sees: int | None = None) -> int:
    """sees: only the last few ids decide, so that answers soon repeat themselves."""
    if sees:
        context, vocabulary = context[-sees:], 5
    digest = hashlib.blake2b(np.asarray([seed, *context], dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocabulary


class FakeRunner:
    def __init__(self, pages: int, vocabulary: int = 50, max_context: int = 1000, sees: int | None = None):
        self.sees = sees
        self.pages, self.vocabulary, self.max_context = pages, vocabulary, max_context
        self.memory = np.full((pages, PAGE), -1)
        self.page_bytes = self.memory[0].nbytes
        self.salt = 0  # stands for the weights
        self.changed = False
        self.widest = self.most = 0
        self.poison: set[int] = set()  # requests whose logits are NaN

    def refresh(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def run(self, plan, ready):
        for source, target in plan.copies:
            self.memory[target] = self.memory[source]
        for request, count in plan.chunks:
            ids = request.ids + request.draft
            for position in range(request.computed, request.computed + count + len(request.draft)):
                page, slot = request.pages[position // PAGE], position % PAGE
                self.memory[page, slot] = ids[position] + 1000 * self.salt
        self.most = max(self.most, len(plan.chunks))
        self.widest = max(self.widest, sum(count + len(r.draft) for r, count in plan.chunks))
        tokens, logprobs = [], []
        for request in ready:
            ids = request.ids + request.draft
            seen = self.memory[request.pages].reshape(-1)[: len(ids)] - 1000 * self.salt
            assert seen.tolist() == ids, "the cache does not hold this request's ids"
            for length in range(len(request.ids), len(ids) + 1):
                tokens.append(next_token(ids[:length], request.seed + self.salt, self.vocabulary, self.sees))
                logprobs.append(float("nan") if request.number in self.poison else -1.0)
        return tokens, logprobs


def expected(prompt, params, vocabulary: int, max_context: int, salt: int = 0, sees=None) -> list[int]:
    """What a request must answer, computed alone and without an engine."""
    ids = list(prompt)
    for _ in range(params.max_tokens):
        ids.append(next_token(ids, params.seed + salt, vocabulary, sees))
        if ids[-1] in params.stop or len(ids) >= max_context:
            break
    return ids[len(prompt) :]
