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
            self._write(request, request.ids + request.draft, count + len(request.draft))
        self.most = max(self.most, len(plan.chunks))
        self.widest = max(self.widest, sum(count + len(r.draft) for r, count in plan.chunks))
        rows = [
            [self._sample(request, request.ids + request.draft[:n]) for n in range(1 + len(request.draft))]
            for request in ready
        ]
        for request in ready:
            self._check(request, request.ids + request.draft)
        for _ in range(1, plan.steps):
            stops = {i for request in ready for i in request.params.stop}
            if any(row[-1][0] in stops or row[-1][1] != -1.0 for row in rows):
                break
            for request, sampled in zip(ready, rows, strict=True):
                ids = request.ids + [token for token, _ in sampled]
                self._write(request, ids, len(sampled) + 1)
                self._check(request, ids)
                sampled.append(self._sample(request, ids))
        flat = [pair for row in rows for pair in row]
        return [token for token, _ in flat], [logprob for _, logprob in flat]

    def _write(self, request, ids, count):
        for position in range(request.computed, request.computed + count):
            page, slot = request.pages[position // PAGE], position % PAGE
            self.memory[page, slot] = ids[position] + 1000 * self.salt

    def _check(self, request, ids):
        seen = self.memory[request.pages].reshape(-1)[: len(ids)] - 1000 * self.salt
        assert seen.tolist() == ids, "the cache does not hold this request's ids"

    def _sample(self, request, ids):
        token = next_token(ids, request.seed + self.salt, self.vocabulary, self.sees)
        return token, float("nan") if request.number in self.poison else -1.0


def expected(prompt, params, vocabulary: int, max_context: int, salt: int = 0, sees=None) -> list[int]:
    """What a request must answer, computed alone and without an engine."""
    ids = list(prompt)
    for _ in range(params.max_tokens):
        ids.append(next_token(ids, params.seed + salt, vocabulary, sees))
        if ids[-1] in params.stop or len(ids) >= max_context:
            break
    return ids[len(prompt) :]
