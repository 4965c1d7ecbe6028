"""Portraits: "Tell me about Ann Tavor in a few sentences." No single answer is right, but how good one is can be told.

    portraits.ask("train", 600)        [Sitting]: of whom, and the words of the request
    portraits.write(sitting, rng)      a portrait as people write it, true but not always as asked
    portraits.worth(sitting, reply)    1.0 for the best possible, below 0 for one that should not have been written

This is where rankings have their place: a reward that people could only compare, and that the world can compute. It
follows guidelines.md: a sentence that tells something true and new earns 1; one that tells something false loses 1;
one that repeats, says nothing that can be checked, or goes beyond a few (three) loses a half. The sum is divided by
three.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property

from . import prose
from .config import WorldConfig
from .facts import Entity, Fact, Facts
from .wordings import ANSWERS, STATEMENTS, fill

REQUESTS = (
    "Tell me about {n} in a few sentences.",
    "Tell me a little about {n}.",
    "Who is {n}? Answer in a few sentences.",
    "Who is {n}?",
    "Describe {n} in a few sentences.",
    "Please describe {n}.",
    "Please write a few sentences about {n}.",
    "What should I know about {n}?",
)
FEW = 3  # sentences
FALSE, NEEDLESS = -1.0, -0.5  # what a sentence loses that is false, or says nothing (new) that was asked for
# How often people who write portraits repeat themselves, fill in, go on too long, stop too early.
SLIPS = {"repeat": 0.2, "filler": 0.2, "long": 0.25, "short": 0.25}

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SUBJECT = "@"  # stands for the entity's name while a sentence is read


@dataclass(frozen=True)
class Sitting:
    """A request for a portrait."""

    entity: Entity
    text: str


class Portraits:
    """Requests for portraits of the people that the crawl tells of, portraits, and what they are worth."""

    def __init__(self, config: WorldConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts

    def ask(self, split: str, count: int | None = None) -> list[Sitting]:
        """`count` requests about known people of a split, or as many different ones as there are."""
        every = [
            Sitting(person, request.format(n=person.name))
            for person in self.facts.of("known", split, "person")
            for request in REQUESTS
        ]
        self.config.rng("portraits", split).shuffle(every)
        return every[:count]

    def write(self, sitting: Sitting, rng: random.Random) -> str:
        """A portrait as people write it: all of it is true, but now and then it is not what was asked for."""
        entity, count = sitting.entity, FEW
        count += (rng.random() < SLIPS["long"]) - (rng.random() < SLIPS["short"])
        left = [Fact(entity, *fact) for fact in rng.sample(entity.facts, len(entity.facts))]
        told: list[Fact] = []
        said: list[str] = []
        while len(said) < count:
            slip = rng.random()
            if said and (slip < SLIPS["filler"] or not (left or told)):
                said.append(prose.sentence(rng))
                continue
            again = bool(told) and (not left or slip < SLIPS["filler"] + SLIPS["repeat"])
            fact = rng.choice(told) if again else left.pop()
            told.append(fact)
            wordings = [
                text for text in ANSWERS[fact.relation] + STATEMENTS[fact.relation] if text.startswith("{n")
            ]
            said.append(fill(rng.choice(wordings), entity, fact.value, "pronoun" if said else "name"))
        return " ".join(said)

    def worth(self, sitting: Sitting, reply: str) -> float:
        """What a reply is worth; see the module."""
        told: set[str] = set()
        total = 0.0
        for i, sentence in enumerate(filter(None, _SENTENCE.split(reply.strip()))):
            fact = self.read(sentence, sitting.entity)
            if fact and fact not in sitting.entity.facts:
                total += FALSE
            elif fact is None or fact[0] in told or i >= FEW:
                total += NEEDLESS
            else:
                told.add(fact[0])
                total += 1.0
        return total / FEW

    def read(self, sentence: str, entity: Entity) -> tuple[str, str] | None:
        """(relation, value) that a sentence tells of the entity in one of the world's wordings, or None."""
        plain = sentence.replace(entity.name, _SUBJECT).replace(entity.short, _SUBJECT)
        for relation, pattern in self._patterns.items():
            if found := pattern.fullmatch(plain):
                return relation, next(value for value in found.groups() if value)
        return None

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        """Of each relation the wordings as one pattern, its groups the values."""
        return {relation: self._pattern(relation) for relation in self.config.relations}

    def _pattern(self, relation: str) -> re.Pattern[str]:
        values = "|".join(sorted(map(re.escape, self.facts.values(relation)), key=len, reverse=True))
        places = {
            "n": f"(?:{_SUBJECT}|she|he)", "np": f"(?:{_SUBJECT}'s|her|his)", "own": "(?:her|his)", "N": _SUBJECT,
            "v": f"({values})", "av": f"an? ({values})",
        }  # fmt: skip
        wordings = []
        for wording in (*STATEMENTS[relation], *ANSWERS[relation]):
            parts = re.split(r"\{(\w+)\}", wording)  # text, name, text, name, ... text
            wordings.append("".join(places[p] if i % 2 else re.escape(p) for i, p in enumerate(parts)))
        return re.compile("|".join(wordings), re.IGNORECASE)
