"""Sizes of the closed world, and the one way to get randomness in it.

Every part of the world draws from `config.rng("label", ...)`: a `random.Random` seeded by text, so that no
part disturbs another and the same seed gives the same bytes in every process and Python version.
"""

import random
from dataclasses import dataclass
from datetime import date
from typing import Annotated

from ..errors import UserError
from ..ranges import AT_LEAST_0, AT_LEAST_1, Range, check_ranges

SEED = Range(ge=0, lt=2**32)
RELATIONS = ("profession", "birthplace", "instrument", "food", "animal", "birth_year")  # of people


@dataclass(frozen=True)
class WorldConfig:
    """What the world holds. The default gives about 2,000 small pages; `WorldConfig.big()` over 20,000."""

    seed: Annotated[int, SEED] = 0
    """seed of all that it holds"""
    people: Annotated[int, Range(ge=2)] = 100
    """known: described in the crawl"""
    later: Annotated[int, Range(ge=2)] = 250
    """people described only on pages dated after the cut-off"""
    invented: Annotated[int, Range(ge=2)] = 300
    """people never mentioned anywhere"""
    passers: Annotated[int, Range(ge=8, why="some pages name seven")] = 6000
    """passers-by of letters, look-ups and reading exercises: a name met once or twice"""
    towns: Annotated[int, Range(ge=2)] = 12
    """towns described in the crawl"""
    later_towns: Annotated[int, AT_LEAST_0] = 8
    """towns described only after the cut-off"""
    invented_towns: Annotated[int, AT_LEAST_0] = 12
    """towns never mentioned anywhere"""
    given_names: Annotated[int, Range(ge=2)] = 60
    """shared by all people; family names are unique"""
    relations: tuple[str, ...] = ("profession", "birthplace", "instrument", "food")
    """what is told of people; also animal and birth_year"""
    train_share: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """of the entities of each group; the rest is held out for measuring"""
    cutoff: str = "2024-06-30"
    """date of the last page of the crawl; later pages are found by search only"""

    # how often the crawl tells things
    biographies: Annotated[int, AT_LEAST_0] = 2
    """pages of its own for each known person"""
    fact_repeats: Annotated[int, AT_LEAST_0] = 7
    """times each fact is told on pages about many things"""
    question_repeats: Annotated[int, AT_LEAST_0] = 8
    """times each fact is asked and answered on a question page"""
    passages: Annotated[int, AT_LEAST_1] = 8
    """passages for each number of repetitions"""
    repetitions: Annotated[tuple[int, ...], AT_LEAST_1] = (1, 2, 4, 8, 16, 32, 64)
    """how often the site quotes them"""
    controls: Annotated[int, AT_LEAST_1] = 32
    """passages of the same kind that no page quotes"""
    arithmetic_pages: Annotated[int, AT_LEAST_0] = 800
    """pages of worked problems"""
    copy_pages: Annotated[int, AT_LEAST_0] = 800
    """letters, interviews and, most of them, look-ups"""
    roll_pages: Annotated[int, AT_LEAST_0] = 400
    """lists of names, told twice"""

    # what the cleaning has to deal with
    strays: Annotated[int, AT_LEAST_0] = 16
    """pages of each kind: notices with private data, other languages, spam, soft 404s, ..."""
    copies: Annotated[int, AT_LEAST_0] = 60
    """mirrored pages, every second one with words changed"""

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

    def check(self, prefix: str = "world.") -> None:
        """Raise UserError, naming the setting after `prefix`, for what no world can be made of."""
        check_ranges(self, prefix)
        unknown = [name for name in self.relations if name not in RELATIONS]
        if unknown or not self.relations:
            told = repr(unknown[0]) if unknown else "()"
            raise UserError(f"{prefix}relations = {told}: expected some of {', '.join(RELATIONS)}")
        try:
            date.fromisoformat(self.cutoff)
        except ValueError:
            raise UserError(f"{prefix}cutoff = {self.cutoff!r}: expected a date such as 2024-06-30") from None
