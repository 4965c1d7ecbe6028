"""Guessing what a request says next from what it said before: prompt look-up (Saxena, 2023).

    lookup = PromptLookup(most=7)
    lookup.propose(ids)          # what followed the last place where the last three (or two) ids stood, or nothing
    lookup.learn(accepted)       # how many of them came true

A step then computes the guessed ids behind the last one and samples at each of them; a guess that the sample
confirms is a token for which no step was needed. Nothing depends on the guesses but the time: a row's bits do not
depend on the rows beside it, and a position's dice are a hash of seed and position, so each sample is the one that
a step of its own would have given.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # of the ids that must be found again


class PromptLookup:
    """The places of all pairs and triples in one request's ids, and how far guesses have been right."""

    def __init__(self, most: int):
        self.most = most
        self._reach = min(2, most)  # ids to guess next: more after a guess that came true
        self._proposed = 0
        self._seen = 0  # ids whose end is in the tables
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST + 1)]

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` ids that may follow; `ids` only ever grow between calls."""
        for end in range(max(self._seen, SHORTEST), len(ids)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[size][tuple(ids[end - size : end])] = end
        self._seen = len(ids)
        found: list[int] = []
        for size in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            place = self._after[size].get(tuple(ids[-size:]))
            if place is not None:
                found = list(ids[place : place + max(0, min(self._reach, room))])
                break
        self._proposed = len(found)
        return found

    def learn(self, accepted: int) -> None:
        """How many ids of the last proposal came true."""
        if self._proposed:
            self._reach = min(self.most, 2 * self._reach if accepted == self._proposed else accepted + 1)
