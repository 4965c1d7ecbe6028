"""Entities and what is true of them: (entity, relation, value).

Groups: `known` entities are described in the crawl, `later` ones only on pages dated after the cut-off,
`invented` ones nowhere (their values exist so that a lucky guess can be told from an answer; no page tells
them), `passer` ones are passers-by of single pages. Within each group entities are split into `train` (may
be used in conversations) and `test` (held out for measuring). Values come from small closed sets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from .config import WorldConfig
from .names import NameMaker, deal_names

GROUPS = ("known", "later", "invented")

_CLOSED = {
    "profession": (
        "baker potter weaver surgeon sailor carpenter teacher judge printer gardener miller tailor painter "
        "astronomer botanist engineer lawyer farmer blacksmith librarian cook pilot shepherd singer"
    ).split(),
    "instrument": (
        "violin flute harp trumpet drum guitar cello piano clarinet organ oboe banjo accordion lute horn tuba"
    ).split(),
    "food": [
        "onion soup", "plum cake", "fried trout", "rye bread", "goat cheese", "apple pie", "bean stew",
        "pickled herring", "mushroom rice", "roast goose", "honey cake", "potato salad", "lentil soup",
        "cherry jam", "smoked ham", "egg noodles",
    ],
    "animal": (
        "cat parrot goat owl rabbit tortoise pony hen dog snake ferret donkey goose crow pig lizard"
    ).split(),
    "product": (
        "lace cheese clocks glass wool paper salt knives honey bricks wine rope"
    ).split(),
}  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """A person or a town with everything that is true of it."""

    id: str
    kind: str  # "person" or "town"
    name: str
    group: str  # "known", "later", "invented" or "passer"
    split: str  # "train" or "test"
    facts: tuple[tuple[str, str], ...]  # (relation, value)
    pronoun: str = "it"

    @property
    def short(self) -> str:
        """The family name of a person, the name of a town."""
        return self.name.split()[-1]

    def value(self, relation: str) -> str:
        """The value of a relation; KeyError where the entity has none."""
        return dict(self.facts)[relation]


@dataclass(frozen=True)
class Fact:
    """One thing that is true."""

    entity: Entity
    relation: str
    value: str


class Facts:
    """All entities of a world and their facts."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._found: dict[tuple[str, str | None, str | None], tuple[Entity, ...]] = {}
        rng = config.rng("facts")
        maker = NameMaker(config.rng("names"))
        deal = config.rng("deal")
        given = deal_names(maker, deal, {"she": config.given_names // 2, "he": config.given_names // 2})
        family = deal_names(
            maker, deal,
            {"known": config.people, "later": config.later, "invented": config.invented,
             "passer": config.passers},
        )  # fmt: skip
        places = deal_names(
            maker, deal,
            {"known": config.towns, "later": config.later_towns, "invented": config.invented_towns,
             "river": max(4, config.towns // 3)},
        )  # fmt: skip
        self.rivers = places.pop("river")
        self.titles = maker  # works draw their titles from the same grammar

        self.entities: list[Entity] = []
        for group, names in places.items():
            for i, name in enumerate(names):
                river, product = rng.choice(self.rivers), rng.choice(_CLOSED["product"])
                split = "train" if i < len(names) * config.train_share else "test"
                town = (("river", river), ("product", product))
                self.entities.append(Entity(f"town-{group}-{i}", "town", name, group, split, town))
        towns = places["known"]
        for group, names in family.items():
            for i, name in enumerate(names):
                pronoun = rng.choice(("she", "he"))
                facts = tuple((relation, self._value(relation, rng, towns)) for relation in config.relations)
                split = "train" if i < len(names) * config.train_share else "test"
                full = f"{rng.choice(given[pronoun])} {name}"
                self.entities.append(
                    Entity(f"person-{group}-{i}", "person", full, group, split, facts, pronoun)
                )

    @staticmethod
    def _value(relation: str, rng, towns: list[str]) -> str:
        if relation == "birthplace":
            return rng.choice(towns)
        if relation == "birth_year":
            return str(rng.randrange(1900, 1980))
        return rng.choice(_CLOSED[relation])

    def values(self, relation: str) -> list[str]:
        """Every value the relation can take: the chance of a blind guess is about 1 / len of it."""
        if relation == "birthplace":
            return [town.name for town in self.of("known", kind="town")]
        if relation == "river":
            return list(self.rivers)
        if relation == "birth_year":
            return [str(year) for year in range(1900, 1980)]
        return list(_CLOSED[relation])

    def of(self, group: str, split: str | None = None, kind: str | None = None) -> Sequence[Entity]:
        """The entities of a group, optionally of one split and one kind."""
        asked = group, split, kind  # thousands of times for the same
        if asked not in self._found:
            fit = [e for e in self._by_group[group] if split in (None, e.split) and kind in (None, e.kind)]
            self._found[asked] = tuple(fit)
        return self._found[asked]

    def each(self, group: str, split: str | None = None, kind: str | None = None) -> Iterator[Fact]:
        """The facts of those entities."""
        for entity in self.of(group, split, kind):
            for relation, value in entity.facts:
                yield Fact(entity, relation, value)

    @cached_property
    def _by_group(self) -> dict[str, list[Entity]]:
        grouped: dict[str, list[Entity]] = {group: [] for group in (*GROUPS, "passer")}
        for entity in self.entities:
            grouped[entity.group].append(entity)
        return grouped
