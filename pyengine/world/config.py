"""Sizes of the closed world, and the one way to get randomness in it.

Every part of the world draws from `config.rng("label", ...)`: a `random.Random` seeded by text, so that no
part disturbs another and the same seed gives the same bytes in every process and Python version.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class WorldConfig:
    """What the world holds. The default gives about 2,000 small pages; `WorldConfig.big()` over 20,000."""

    seed: int = 0
    people: int = 100  # known: described in the crawl
    later: int = 250  # described only on pages dated after the cut-off
    invented: int = 300  # never mentioned anywhere
    passers: int = 6000  # passers-by of letters, look-ups and reading exercises: a name met once or twice
    towns: int = 12
    later_towns: int = 8
    invented_towns: int = 12
    given_names: int = 60  # shared by all people; family names are unique
    relations: tuple[str, ...] = ("profession", "birthplace", "instrument", "food")
    train_share: float = 0.5  # of the entities of each group; the rest is held out for measuring
    cutoff: str = "2024-06-30"

    # how often the crawl tells things
    biographies: int = 2  # pages of its own for each known person
    fact_repeats: int = 7  # times each fact is told on pages about many things
    question_repeats: int = 8  # times each fact is asked and answered on a question page
    passages: int = 8  # passages for each number of repetitions
    repetitions: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    controls: int = 32  # passages of the same kind that no page quotes
    arithmetic_pages: int = 800
    copy_pages: int = 800  # letters, interviews and, most of them, look-ups
    roll_pages: int = 400  # lists of names, told twice

    # what the cleaning has to deal with
    strays: int = 16  # pages of each kind: notices with private data, other languages, spam, soft 404s, ...
    copies: int = 60  # mirrored pages, every second one with words changed

    def rng(self, *labels: object) -> random.Random:
        """A generator of its own for the part of the world that the labels name."""
        return random.Random("/".join(["world", str(self.seed), *map(str, labels)]))

    @classmethod
    def tiny(cls, seed: int = 0) -> "WorldConfig":
        """A world for tests: some 150 pages."""
        return cls(
            seed=seed, people=24, later=12, invented=16, passers=40, towns=8, later_towns=3, invented_towns=4,
            biographies=1, fact_repeats=2, question_repeats=2, passages=1, controls=4,
            repetitions=(1, 2, 4, 8), arithmetic_pages=12, copy_pages=12, roll_pages=6,
            strays=8, copies=8,
        )  # fmt: skip

    @classmethod
    def big(cls, seed: int = 0) -> "WorldConfig":
        """A world for load tests: more than 20,000 pages."""
        return cls(
            seed=seed, people=5000, later=1500, invented=1500, passers=6000, towns=200, later_towns=60,
            invented_towns=60, given_names=240, passages=40, controls=120, arithmetic_pages=3000,
            copy_pages=3000, roll_pages=2000, strays=150, copies=600,
        )  # fmt: skip
