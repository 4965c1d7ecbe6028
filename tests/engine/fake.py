"""A model of integers for the engine's tests: its cache stores ids, its next token is a hash of the whole
context.

Reading a wrong, stale or overwritten page therefore changes the answer, and raises at once.
"""

import hashlib

import numpy as np

from pyengine.engine.cache import PAGE


def next_token(context, seed: int, vocabulary: int) -> int:
    digest = hashlib.blake2b(np.asarray([seed, *context], dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocabulary


class FakeRunner:
    def __init__(self, pages: int, vocabulary: int = 50, max_context: int = 1000):
        self.pages, self.vocabulary, self.max_context = pages, vocabulary, max_context
        self.memory = np.full((pages, PAGE), -1)
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
            for position in range(request.computed, request.computed + count):
                page, slot = request.pages[position // PAGE], position % PAGE
                self.memory[page, slot] = request.ids[position] + 1000 * self.salt
        self.most = max(self.most, len(plan.chunks))
        self.widest = max(self.widest, sum(count for _, count in plan.chunks))
        tokens = []
        for request in ready:
            length = len(request.ids)
            seen = self.memory[request.pages].reshape(-1)[:length] - 1000 * self.salt
            assert seen.tolist() == request.ids, "the cache does not hold this request's ids"
            tokens.append(next_token(request.ids, request.seed + self.salt, self.vocabulary))
        return tokens, [float("nan") if request.number in self.poison else -1.0 for request in ready]


def expected(prompt, params, vocabulary: int, max_context: int, salt: int = 0) -> list[int]:
    """What a request must answer, computed alone and without an engine."""
    ids = list(prompt)
    for _ in range(params.max_tokens):
        ids.append(next_token(ids, params.seed + salt, vocabulary))
        if ids[-1] in params.stop or len(ids) >= max_context:
            break
    return ids[len(prompt) :]
