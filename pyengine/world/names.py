"""Names from one grammar of syllables, dealt to all groups from one shuffled stream.

Whether a name belongs to somebody known, somebody who appears later, or nobody at all must not be readable
from its letters. So every name is drawn by the same rule, all names are drawn before any is given to a
group, and the deal is a shuffle: the groups are exchangeable by construction. No two names are closer than
two edits, so that a slip of one letter never turns one entity into another.
"""

import random
from collections.abc import Mapping

_ONSETS = "b br d dr f g gr h j k kl l m n p r s sh st t th tr v w z".split()
_VOWELS = "a a a e e e i i o o u ai ea ou".split()
_MIDDLE = "l n r s".split()  # consonants that may close a syllable inside a name
_LAST = ["", "", "", *"l n r s m k t x nd rn ld".split()]
_FORBIDDEN = ("shit", "fuck", "nazi", "rape", "slut", "porn", "arse")  # what blunt word filters look for


def _neighbourhood(name: str) -> set[str]:
    """The name and all its one-letter deletions: two names meet here when they are within one edit."""
    return {name} | {name[:i] + name[i + 1 :] for i in range(len(name))}


class NameMaker:
    """Draws names that are new and at least two edits apart, among all names this maker has drawn."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._taken: set[str] = set()

    def draw(self) -> str:
        """One new name: two or three syllables, 4 to 9 letters, capitalised."""
        while True:
            syllables = 2 if self._rng.random() < 0.7 else 3
            name = "".join(self._syllable(i == syllables - 1) for i in range(syllables))
            if not 4 <= len(name) <= 9 or any(word in name for word in _FORBIDDEN):
                continue
            near = _neighbourhood(name)
            if near & self._taken:
                continue
            self._taken |= near
            return name.capitalize()

    def _syllable(self, last: bool) -> str:
        coda = (
            self._rng.choice(_LAST) if last else self._rng.choice(_MIDDLE) if self._rng.random() < 0.3 else ""
        )
        return self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS) + coda


def deal_names(maker: NameMaker, rng: random.Random, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Draw all names that the groups need, shuffle them, and deal them out: group -> names."""
    names = [maker.draw() for _ in range(sum(counts.values()))]
    rng.shuffle(names)
    dealt, start = {}, 0
    for group, count in counts.items():
        dealt[group] = names[start : start + count]
        start += count
    return dealt
